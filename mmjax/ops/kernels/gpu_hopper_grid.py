"""Which thread blocks of a kernel for Hopper compute what.

An item is a tile of rows of one head. Either each thread block has one item, or
there are no more blocks than the GPU holds and each takes one item after the
other, so that loads of the next run beside products of this one.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Names of the axes; a mesh of devices must have none of these.
B, N, ROW = "hopper_b", "hopper_n", "hopper_row"
_PROCESSORS = 132  # of H100 and H200 with SXM


def processors() -> int:
  """Returns the multiprocessors of the GPU for which a kernel is traced.

  By the mesh's devices, which may be none of this machine, else by the first of
  the default backend; 132 where it does not say.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is not None:
    return device.num_cores or _PROCESSORS
  return getattr(jax.devices()[0], "core_count", None) or _PROCESSORS


@dataclasses.dataclass(frozen=True)
class Item:
  """An item of a thread block: how many it had before, and their steps."""

  count: Any = 0
  done: Any = 0


@dataclasses.dataclass(frozen=True)
class Grid:
  """The items of a kernel, and how thread blocks take them.

  batch, heads, rows: how many there are; rows of tiles.
  last_first: whether the last rows have most to do and should begin.
  resident: whether a block takes one item after the other. One such block must
    fill a multiprocessor.
  """

  batch: int
  heads: int
  rows: int
  last_first: bool
  resident: bool

  @property
  def items(self) -> int:
    return self.batch * self.heads * self.rows

  def launch(self) -> dict[str, Any]:
    """Returns the arguments of `plgpu.kernel` for it."""
    if self.resident:
      return dict(grid=(min(processors(), self.items),), grid_names=(ROW,))
    # The last axis runs fastest: blocks side by side share keys and values.
    grid = (self.batch, self.heads, self.rows)
    return dict(grid=grid, grid_names=(B, N, ROW))

  def place(self, item: Item) -> tuple[Any, Any, Any]:
    """Returns batch row, head and row of tiles of an item."""
    if not self.resident:
      b, n, row = map(lax.axis_index, (B, N, ROW))
    else:
      heads, rows = jnp.int32(self.heads), jnp.int32(self.rows)
      at = lax.axis_index(ROW) + item.count * lax.axis_size(ROW)
      if self.last_first:
        # The longest rows of all heads first, or some blocks would get more of
        # them than others; of one row of the batch, or none of it would be
        # left in the cache for the next rows.
        at, n = lax.div(at, heads), lax.rem(at, heads)
        b, row = lax.div(at, rows), lax.rem(at, rows)
      else:
        at, row = lax.div(at, rows), lax.rem(at, rows)
        b, n = lax.div(at, heads), lax.rem(at, heads)
    return b, n, self.rows - 1 - row if self.last_first else row

  def for_each(self, run: Any, steps: Any) -> None:
    """Calls run(item) for each item of this block; steps(item) has it."""
    if not self.resident:
      run(Item())
      return
    blocks = lax.axis_size(ROW)

    def body(count, done):
      item = Item(count, done)
      run(item)
      return done + steps(item)

    more = jnp.int32(self.items + blocks - 1) - lax.axis_index(ROW)
    many = lax.div(more, jnp.int32(blocks))
    lax.fori_loop(jnp.int32(0), many, body, jnp.int32(0))
