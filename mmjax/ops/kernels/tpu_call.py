"""Calls of the whole-sequence kernels on TPU: blocks, programs, layouts.

Arrays come with heads first, or as a model's projection leaves them, [B T N*H].
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mmjax.ops.kernels import tpu_scores as tile
from mmjax.ops.kernels.tiles import Whole, sharing
from mmjax.ops.kernels.tpu_chunks import chunks, pairs

VMEM = 48 * 2**20  # bytes a program may take; tpu7x and v5p have 64 MiB


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that is static of a call; hashable.

  width: of a head where arrays are [B T N*H]; 0 where heads come first.
  narrow: whether the chip multiplies by 128 x 128, not by 256 x 256, at once.
  """

  rule: tile.Rule
  tiles: Whole
  interpret: Any
  width: int = 0
  narrow: bool = False


class Call:
  """Blocks of rows, key heads and their queries, and the order of programs.

  q: [B K G T H], G query heads of K key heads, or [B T K*G*H]; k: [B K S H] or
  [B S K*H]; v: [B K S H'] or as k; bias: [B|1 K|1 G|1 S|1 T|1] or None; leaves
  of the mask: int32 [B], [B 1 T] or [B 1 S]; seeds: of dropout, int32 [B N] or
  None.
  """

  def __init__(self, plan: Plan, args: Sequence[Any], backward: bool):
    q, k, v, bias, leaves, seeds = args
    self.packed = plan.width > 0
    if self.packed:
      (B, self.T, wide), self.S = q.shape, k.shape[1]
      K, G = k.shape[2] // plan.width, wide // k.shape[2]
      self.widths = (plan.width, plan.width)
    else:
      B, K, G, self.T, H = q.shape
      self.S, self.widths = k.shape[2], (H, v.shape[-1])
    tiles = plan.tiles
    if backward and tiles.backward is not None:
      tiles = tiles.backward
    self.plan, self.backward, self.tiles = plan, backward, tiles
    self.lines: Any = plan.rule.spec() if plan.rule.laid else None
    self.heads = (B, K, G)
    # Heads that share tiles of lanes: they end where a tile does.
    self.share = sharing(plan.width) if self.packed else 1
    self.chunks = chunks(
      plan.rule, self.T, self.S, tiles.rows, backward, tiles.block_k
    )
    self.block = (tiles.batch, tiles.kv_heads, tiles.groups)
    self.counts = tuple(
      n // m for n, m in zip(self.heads, self.block, strict=True)
    )
    if self.counts[2] > 1 and self.block[0] * self.block[1] > 1:
      raise ValueError(
        f"{tiles}: of {G} query heads that share keys, some are a program's; "
        "give it one row and one key head, whose sums go on in the next."
      )
    # What is summed over comes last, so that its block stays in place.
    self.order = [0, 1, 2]
    self.summed = [False, False, backward and self.counts[2] > 1]
    if backward and bias is not None:
      self.summed = [n == 1 for n in bias.shape[:3]]
      self.order.sort(key=lambda axis: self.summed[axis])
    axes = plan.rule.axes
    self.scalars = [x for x, a in zip(leaves, axes, strict=True) if a == "b"]
    self.vectors = [x for x, a in zip(leaves, axes, strict=True) if a != "b"]
    if seeds is not None:
      self.scalars.append(seeds.reshape(-1))
    self.inputs = [q, k, v, *([] if bias is None else [bias]), *self.vectors]
    self.specs = [self.of_heads(q, 3), self.of_heads(k, 2), self.of_heads(v, 2)]
    if bias is not None:
      self.specs.append(self.spec(bias.shape, 3))
    self.specs += [self.spec(x.shape, 1) for x in self.vectors]

  def of_heads(self, x: Any, blocked: int) -> pl.BlockSpec:
    """Blocks q, k, v or what has their shape; `blocked` of its first axes."""
    if not self.packed:
      return self.spec(x.shape, blocked)
    rows, many, groups = self.block
    many *= groups if blocked == 3 else 1

    def index(*programs):
      b, k, g = (self.at(programs)[axis] for axis in range(3))
      # The query heads of several key heads are all of them, or of one some.
      return b, 0, k * self.counts[2] + g if blocked == 3 else k

    return pl.BlockSpec((rows, x.shape[1], many * self.plan.width), index)

  def spec(self, shape: Sequence[int], blocked: int) -> pl.BlockSpec:
    """Blocks the first axes of an array by (b, k, g); the rest is whole."""
    alike = [shape[axis] == 1 for axis in range(blocked)]
    rest = tuple(shape[blocked:])

    def index(*programs):
      place = self.at(programs)
      first = [0 if alike[axis] else place[axis] for axis in range(blocked)]
      return (*first, *(0 for _ in rest))

    lead = [1 if alike[axis] else self.block[axis] for axis in range(blocked)]
    return pl.BlockSpec((*lead, *rest), index)

  def at(self, programs: Sequence[Any]) -> dict[int, Any]:
    """Returns which blocks (b, k, g) indices of the grid stand for."""
    return dict(zip(self.order, programs[:3], strict=True))

  def program(self) -> tuple[Any, Any, Any]:
    """Returns which blocks (b, k, g) this program has; within a kernel."""
    at = self.at([pl.program_id(i) for i in range(3)])
    return at[0], at[1], at[2]

  def first(self, axes: Sequence[int]) -> Any:
    """Returns whether the program is the first along all of these axes."""
    at = self.program()
    found = [at[axis] == 0 for axis in axes if self.counts[axis] > 1]
    return functools.reduce(jnp.logical_and, found) if found else True

  def run(self, kernel, name, extra, outs, scratch):
    """Calls the kernel for all programs.

    Args:
      kernel: called with this and lists of refs: scalars, inputs, extra, outs
        and scratch.
      name: of the kernel.
      extra: pairs of arrays and specs, after the inputs.
      outs: pairs of shapes and specs.
      scratch: shapes of scratch memory.
    """
    counts = [len(x) for x in (self.scalars, self.inputs, extra, outs, scratch)]
    ends = list(itertools.accumulate(counts))

    def body(*refs):
      parts = zip([0, *ends[:-1]], ends, strict=True)
      kernel(self, *([*refs[a:b]] for a, b in parts))

    scores = math.prod(self.heads) * pairs(self.chunks)
    H, other = self.widths
    products = 3 * H + 2 * other if self.backward else H + other
    inputs = [*self.inputs, *(x for x, _ in extra)]
    arrays = [*inputs, *(x for x, _ in outs)]
    some = self.counts[1] * self.counts[2] > 1
    if self.packed and some and not self.plan.interpret:
      # What XLA puts in vector memory by itself is cut into blocks by loads and
      # stores; from HBM the copy engine brings some of the lanes as they are.
      inputs = [_in_hbm(x) for x in inputs]
      outs = [(pltpu.HBM(x.shape, x.dtype), spec) for x, spec in outs]
    return pl.pallas_call(
      body,
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=len(self.scalars),
        grid=tuple(self.counts[axis] for axis in self.order),
        in_specs=[*self.specs, *(s for _, s in extra)],
        out_specs=[s for _, s in outs],
        scratch_shapes=scratch,
      ),
      out_shape=[x for x, _ in outs],
      name=name,
      interpret=self.plan.interpret,
      cost_estimate=pl.CostEstimate(
        flops=2 * scores * products,
        transcendentals=scores,
        bytes_accessed=sum(
          math.prod(x.shape) * x.dtype.itemsize for x in arrays
        ),
      ),
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=tuple(
          "arbitrary" if self.summed[axis] else "parallel"
          for axis in self.order
        ),
        vmem_limit_bytes=VMEM,
      ),
    )(*self.scalars, *inputs)


@jax.custom_batching.custom_vmap
def _in_hbm(x: jax.Array) -> jax.Array:
  return pltpu.with_memory_space_constraint(x, pltpu.HBM)


@_in_hbm.def_vmap
def _(axis_size, in_batched, x):  # jax 0.10 has no rule for it
  del axis_size
  return _in_hbm(x), in_batched[0]


def side_by_side(call: Call) -> int:
  """Returns how many tiles are laid side by side."""
  if call.backward and call.heads[2] > 1:
    return 1  # the query heads of one are
  most = call.block[0] * call.block[1] // call.share
  return min(most, max(1, call.tiles.unroll // call.share // call.block[2]))


def of_lines(call: Call, x: jax.Array, count: int) -> list[Any]:
  """Returns the memory for `count` arrays laid line by line: of each tile."""
  if call.lines is None:
    return []
  size = (side_by_side(call), call.T, call.share * call.widths[0])
  return [pltpu.VMEM(size, x.dtype)] * count
