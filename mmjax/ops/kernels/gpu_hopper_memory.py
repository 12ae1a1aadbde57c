"""How the kernels for Hopper keep rows of a head in shared memory.

TMA fills it and wgmma reads it, both by tiles of 8 rows whose columns are
swizzled: 64 of 16 bits, the 128 bytes that a swizzle spans at most, or 16 or
32.
"""

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, vector

ROWS = 64  # of a warpgroup: what one wgmma multiplies
LINE = 64  # elements of the 128 bytes that the widest swizzle spans
WG = "hopper_wg"  # a mesh of devices must have no axis of this name
# Without types, which jax gives these names wrongly or not at all.
MOSAIC: Any = plgpu


def costs(estimate: pl.CostEstimate) -> dict[str, Any]:
  """Returns the argument of `plgpu.kernel` for a cost; JAX 0.11 has none."""
  if "cost_estimate" not in inspect.signature(plgpu.kernel).parameters:
    return {}
  return {"cost_estimate": estimate}


class Part(NamedTuple):
  """Columns of a head that lie together in shared memory.

  Those past the width of the head are zeros; they are loaded and stored by
  nobody.
  """

  offset: int
  size: int

  def memory(self, shape: tuple[int, int], dtype: Any, tiled: bool) -> Any:
    """Returns what to allocate for [*shape size], for `View.of` to read."""
    line = min(self.size, LINE)
    tiling = MOSAIC.TilingTransform((8, line))
    swizzle = MOSAIC.SwizzleTransform(2 * line)
    full = (*shape, self.size)
    found = plgpu.SMEM(full, dtype, transforms=(tiling, swizzle))
    if tiled:
      return found
    # Rows of one swizzle one after the other are tiles of 8 of them, too. TMA
    # is given the first view, since it would not tile lengths like 197.
    return plgpu.RefUnion(plgpu.SMEM(full, dtype, transforms=(swizzle,)), found)


class View(NamedTuple):
  """Shared memory as TMA fills it, and as wgmma reads it."""

  plain: Any
  tiled: Any

  @classmethod
  def of(cls, ref: Any, tiled: bool) -> "View":
    return cls(ref, ref) if tiled else cls(*ref)


def split(width: int) -> tuple[Part, ...]:
  """Returns parts of 64 columns, and one of 16, 32 or 64 for the rest."""
  whole = width // LINE * LINE
  parts = [Part(i, LINE) for i in range(0, whole, LINE)]
  if whole < width:
    parts.append(Part(whole, max(16, pl.next_power_of_2(width - whole))))
  return tuple(parts)


def load_vector(
  ref: Any, place: tuple[Any, ...], start: Any, memory: Any, barrier: Any
) -> None:
  """Begins to load 64 numbers of rows; any, of rows past the array's end.

  Bytes in sequence are not copied as TMA copies tiles: past the end there is
  the next row of the array.
  """
  start = jnp.minimum(start, ref.shape[-1] - ROWS)
  part = ref.at[(*place, pl.ds(start, ROWS))]
  plgpu.copy_gmem_to_smem(part, memory, barrier)


def store_vector(
  memory: Any, ref: Any, place: tuple[Any, ...], start: Any, rows: int
) -> None:
  """Begins to store 64 numbers of rows; nothing past the array's end.

  rows: how many the kernel computes.
  """

  def copy():
    part = ref.at[(*place, pl.ds(start, ROWS))]
    plgpu.copy_smem_to_gmem(memory, part)

  if rows > ref.shape[-1]:  # see `load_vector`
    pl.when(start < ref.shape[-1])(copy)
  else:
    copy()


def any_of_warp(x: jax.Array) -> jax.Array:
  """Returns whether x [64 8] is true anywhere in the rows of a warp.

  A warp has 16 of a warpgroup's rows. Each has its own answer: what hangs on it
  must not wait for other warps.
  """

  @MOSAIC.inline_mgpu(
    arg_types=(plgpu.Layout.WGMMA,),
    return_type=MOSAIC.ShapeDtypeStruct(
      (), jnp.int32, layout=plgpu.Layout.WG_SPLAT
    ),
  )
  def vote(_, given):
    i32 = ir.IntegerType.get_signless(32)
    found = [
      vector.extract(
        pair,
        dynamic_position=[],
        static_position=ir.DenseI64ArrayAttr.get([i]),
      )
      for pair in given.registers.flat
      for i in range(ir.VectorType(pair.type).shape[0])
    ]
    mine = arith.extui(i32, functools.reduce(arith.ori, found))
    text = """{
      .reg .pred p;
      setp.ne.s32 p, $1, 0;
      vote.sync.any.pred p, p, 0xffffffff;
      selp.s32 $0, 1, 0, p;
    }"""
    any_of: Any = llvm.inline_asm(
      i32, [mine], text, "=r,r", has_side_effects=True
    )
    return gpu.FragmentedArray.splat(any_of, (), is_signed=True)

  return vote(x) != 0
