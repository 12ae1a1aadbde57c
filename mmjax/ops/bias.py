"""Biases of attention scores as tables: a number per bucket and head.

A bias by relative position is a small table and a rule that says which entry a
query and a key read. The door takes such a spec wherever it takes a dense
bias [B|1 N|1 T|1 S|1]. A kernel reads the table and never forms [N T S]; what
cannot, takes `dense`. The table is a leaf of the pytree, with a gradient.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import errors

Index = Any  # an integer or an integer array


@dataclasses.dataclass(frozen=True, eq=False)
class Bias:
  """A table and which of its entries a query and a key read.

  table: float [N E], E entries for each head.
  """

  DIAGONAL: ClassVar = False  # whether `index` is one of key minus query
  table: jax.Array

  def entries(self) -> int:
    """Returns E, from the static fields."""
    raise NotImplementedError

  def index(self, q: Index, k: Index) -> Any:
    """Returns which entry query q and key k read, int32 in [0, E).

    For index arrays that broadcast. Integer arithmetic that kernels for TPU
    and GPU can compute on a tile, as `Mask.seen`.
    """
    raise NotImplementedError

  def misfit(self, length_q: int, length_k: int) -> str | None:
    """Says why the bias has no entry for some of T and S; None if it has."""
    del length_q, length_k
    return None

  def dense(self, length_q: int, length_k: int) -> jax.Array:
    """Returns the bias as an array [1 N T S], of the dtype of the table."""
    at = self.index(
      np.arange(length_q, dtype=np.int32)[:, None],
      np.arange(length_k, dtype=np.int32)[None],
    )
    return jnp.take(self.table, jnp.asarray(at), axis=1)[None]


def register(cls):
  """Makes a pytree of a bias class: its table is a leaf, the rest static."""
  static = [f.name for f in dataclasses.fields(cls) if f.name != "table"]
  return jax.tree_util.register_dataclass(cls, ["table"], static)


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Buckets(Bias):
  """A bias by bucket of the distance, key minus query (T5).

  table: [N E], E buckets; see `relative_buckets` for the other fields.
  """

  DIAGONAL: ClassVar = True
  max_distance: int = 128
  bidirectional: bool = True

  def entries(self):
    return self.table.shape[-1]

  def index(self, q, k):
    return relative_buckets(
      k - q, self.entries(), self.max_distance, self.bidirectional
    )


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Offsets(Bias):
  """A bias by offset of row and column on a grid (Swin, BEiT).

  table: [N (2Y-1)*(2X-1)], Y = rows and X = columns, of the offset query minus
  key, rows first: entry (y + Y - 1) * (2X - 1) + x + X - 1. With `first`, that
  many tokens stand before the grid, and three entries follow: from them to the
  grid, from the grid to them, and among them (BEiT's class token).
  """

  rows: int
  columns: int
  first: int = 0

  def entries(self):
    grid = (2 * self.rows - 1) * (2 * self.columns - 1)
    return grid + 3 if self.first else grid

  def misfit(self, length_q, length_k):
    total = self.first + self.rows * self.columns
    if max(length_q, length_k) <= total:
      return None
    return (
      f"{self.first} tokens and {self.rows} x {self.columns} on the grid are "
      f"{total}, but there are {length_q} queries and {length_k} keys; give "
      "the grid that they are on."
    )

  def index(self, q, k):
    width = 2 * self.columns - 1
    # Each side apart: a kernel divides vectors, not a tile. The entry is the
    # difference of the two, plus that of the offset 0.
    at_q, at_k = self._place(q, width), self._place(k, width)
    found = at_q - at_k + (self.rows - 1) * width + self.columns - 1
    if not self.first:
      return found
    n = (2 * self.rows - 1) * width
    outside_q = (q < self.first) & (k >= 0)
    outside_k = (k < self.first) & (q >= 0)
    where = np.where if _is_numpy(found) else jnp.where
    found = where(outside_q, n, where(outside_k, n + 1, found))
    return where(outside_q & outside_k, n + 2, found)

  def _place(self, i: Index, width: int) -> Any:
    i = i - self.first
    return i // self.columns * width + i % self.columns


def relative_buckets(
  distance: Index, buckets: int, max_distance: int, bidirectional: bool
) -> Any:
  """Sorts distances, key minus query, into buckets (T5, Raffel et al. 2020).

  Half of the buckets are single distances, the others grow as a logarithm up
  to max_distance. Bidirectional, half of all are for keys after the query;
  else those fall into bucket 0.

  Compared with the first distance of each bucket, which are computed once: no
  logarithm that a platform could round its own way.

  Args:
    distance: integers.
    buckets, max_distance: static.
    bidirectional: static.

  Returns:
    int32, of the shape of distance.

  Raises:
    InputError: too few buckets, or distances.
  """
  side = buckets // 2 if bidirectional else buckets
  if side < 2 or max_distance <= side // 2:
    raise errors.InputError(
      f"relative positions of {buckets} buckets and max_distance "
      f"{max_distance}: give at least {4 if bidirectional else 2} buckets, and "
      "a distance above half of those of a side."
    )
  # What lies behind, and if only that counts, 0 for what lies ahead.
  size = (distance < 0) * -distance
  found = 0
  if bidirectional:
    found = (distance > 0) * side
    size = size + (distance > 0) * distance
  single = side // 2
  found = found + (size < single) * size + (size >= single) * (single - 1)
  for first in _firsts(side, max_distance):
    found = found + (size >= first)
  return found.astype(np.int32)


def _firsts(side: int, max_distance: int) -> list[int]:
  """Returns the least distance of each bucket that has more than one."""
  single = side // 2
  distances = np.arange(single, max_distance + 1)
  # In float32, as the reference computes it.
  far = np.log(distances.astype(np.float32) / np.float32(single))
  far = far / np.float32(np.log(max_distance / single))
  far = (far * np.float32(side - single)).astype(np.int32)
  return [int(distances[far >= n][0]) for n in range(side - single)]


def _is_numpy(x: Any) -> bool:
  return not isinstance(x, jax.Array)
