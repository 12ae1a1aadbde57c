"""Attention of long and packed sequences on TPU, block by block.

"FlashAttention-2", Dao 2023: a block of queries meets the blocks of keys that
its mask leaves (`tpu_steps`), and keeps a running maximum and sum. Lengths
need not be multiples of blocks: the last block masks what is not there.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mmjax.ops import blocks
from mmjax.ops.kernels import tpu_band, tpu_steps
from mmjax.ops.kernels import tpu_scores as tile
from mmjax.ops.kernels.tiles import Flash

VMEM = 48 * 2**20  # bytes a program may take; tpu7x and v5p have 64 MiB


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that is static of a call; hashable."""

  rule: tile.Rule
  tiles: Flash
  interpret: Any


class Call:
  """Shapes, steps and blocks of a call, for one of its kernels.

  q: [B N T H]; k: [B K S H]; v: [B K S H']; bias: [B|1 N|1 T|1 S|1], or windows
  [N D 8 2*block] of `tpu_band`, or None;
  leaves of the mask: int32 [B], [B 1 T] or [B 1 S]; seeds: int32 [B N].

  Args:
    plan: what is static.
    args: (q, k, v, bias, leaves, seeds).
    keys_major, every: as of `tpu_steps.steps`.
    grid: sizes of the grid, None for the steps.
    place: from indices of the grid to (b, n, p): row, query head and step.
  """

  def __init__(
    self,
    plan: Plan,
    args: Sequence[Any],
    *,
    grid: Sequence[int | None],
    place: Callable[..., tuple[Any, Any, Any]],
    keys_major: bool = False,
    every: bool = False,
  ):
    q, k, v, bias, leaves, seeds = args
    self.rule, self.plan, self.place = plan.rule, plan, place
    self.T, self.S = q.shape[2], k.shape[2]
    self.heads = q.shape[1]
    self.group = q.shape[1] // k.shape[1]
    self.block_q = min(plan.tiles.block_q, self.T)
    self.block_k = min(plan.tiles.block_k, self.S)
    mask = None
    if plan.rule.mask is not None:
      mask = jax.tree.unflatten(
        plan.rule.mask, [x if x.ndim == 1 else x[:, 0] for x in leaves]
      )
    self.steps = tpu_steps.steps(
      mask,
      self.T,
      self.S,
      self.block_q,
      self.block_k,
      keys_major=keys_major,
      every=every,
    )
    self.grid = tuple(self.steps.count if n is None else n for n in grid)
    axes = plan.rule.axes
    table = self.steps.table
    self.scalars = [] if table is None else [table.reshape(-1)]
    self.lengths = len(self.scalars)  # where those of the mask begin
    self.scalars += [x for x, a in zip(leaves, axes, strict=True) if a == "b"]
    if seeds is not None:
      self.scalars.append(seeds.reshape(-1))
    self.inputs = [q, k, v]
    self.specs = [
      self.spec((self.block_q, q.shape[-1]), lambda b, n, s: (b, n, s.q, 0)),
      self.of_keys(k.shape[-1]),
      self.of_keys(v.shape[-1]),
    ]
    if bias is not None:
      self.inputs.append(bias)
      self.specs.append(self.of_bias(bias.shape))
    for x, axis in zip(leaves, axes, strict=True):
      if axis == "q":
        self.inputs.append(x)
        self.specs.append(
          self.spec((1, self.block_q), lambda b, n, s: (b, 0, s.q), lead=1)
        )
      elif axis == "k":
        self.inputs.append(x)
        self.specs.append(
          self.spec((1, self.block_k), lambda b, n, s: (b, 0, s.k), lead=1)
        )

  def where(self, programs: Sequence[Any], scalars: Sequence[Any]):
    """Returns (b, n, step) of a program."""
    b, n, p = self.place(*programs)
    table = None if self.steps.table is None else scalars[0]
    return b, n, self.steps.read(table, b, p)

  def spec(self, block, index, lead: int = 2) -> pl.BlockSpec:
    """Makes the spec of an array; index is of (b, n, step)."""

    def at(*args):
      count = len(self.grid)
      return index(*self.where(args[:count], args[count:]))

    return pl.BlockSpec((*((None,) * lead), *block), at)

  def of_queries(self, width: int) -> pl.BlockSpec:
    """Blocks [B N T width]."""
    return self.spec((self.block_q, width), lambda b, n, s: (b, n, s.q, 0))

  def of_keys(self, width: int) -> pl.BlockSpec:
    """Blocks [B K S width]."""
    return self.spec(
      (self.block_k, width), lambda b, n, s: (b, n // self.group, s.k, 0)
    )

  def of_rows(self) -> pl.BlockSpec:
    """Blocks [B N 1 T], one number a query."""
    return self.spec((1, self.block_q), lambda b, n, s: (b, n, 0, s.q))

  def of_bias(self, shape: Sequence[int]) -> pl.BlockSpec:
    """Blocks a bias, whose axes are full or 1, or windows."""
    if self.rule.band:
      return self.spec(shape[2:], lambda b, n, s: (n, self.diagonal(s), 0, 0))
    block = (
      self.block_q if shape[2] > 1 else 1,
      self.block_k if shape[3] > 1 else 1,
    )
    return self.spec(
      block,
      lambda b, n, s: tuple(
        i if size > 1 else 0
        for i, size in zip((b, n, s.q, s.k), shape, strict=True)
      ),
    )

  def diagonal(self, step: tpu_steps.Step) -> Any:
    """Returns which window a step has."""
    return step.k - step.q + self.steps.shape[0] - 1

  def run(
    self,
    kernel,
    name,
    extra,
    outs,
    scratch,
    products,
    parallel,
    memory: int | None = None,
  ):
    """Calls a kernel.

    Args:
      kernel: called with (this, refs of scalars, inputs, extra, outs and
        scratch).
      name: of the kernel.
      extra: pairs of arrays and specs, after the inputs.
      outs: pairs of shapes and specs.
      scratch: shapes of scratch memory.
      products: multiplications of matrices of width H, for the cost.
      parallel: how many axes of the grid may run in any order.
      memory: bytes a program may take, or None for `VMEM`.
    """
    q = self.inputs[0]
    pairs = q.shape[0] * self.heads * self.steps.static
    pairs *= self.block_q * self.block_k
    arrays = [*self.inputs, *(x for x, _ in extra), *(x for x, _ in outs)]
    return pl.pallas_call(
      functools.partial(kernel, self),
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=len(self.scalars),
        grid=self.grid,
        in_specs=[*self.specs, *(s for _, s in extra)],
        out_specs=[s for _, s in outs],
        scratch_shapes=scratch,
      ),
      out_shape=[x for x, _ in outs],
      name=name,
      interpret=self.plan.interpret,
      cost_estimate=pl.CostEstimate(
        flops=2 * pairs * products * q.shape[-1],
        transcendentals=pairs,
        bytes_accessed=sum(
          math.prod(x.shape) * x.dtype.itemsize for x in arrays
        ),
      ),
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=tuple(
          "parallel" if i < parallel else "arbitrary"
          for i in range(len(self.grid))
        ),
        vmem_limit_bytes=memory or VMEM,
      ),
    )(*self.scalars, *self.inputs, *(x for x, _ in extra))


class Tile:
  """The tile of a program, within a kernel."""

  def __init__(self, call: Call, refs: Sequence[Any], keys: int):
    self.call, self.rule, self.keys = call, call.rule, keys
    programs = [pl.program_id(i) for i in range(len(call.grid))]
    self.programs = programs
    self.scalars = refs[: len(call.scalars)]
    self.refs = refs[len(call.scalars) :]
    self.b, self.n, self.step = call.where(programs, self.scalars)
    self.q, self.k = tile.positions(
      self.step.q * call.block_q,
      call.block_q,
      self.step.k * call.block_k,
      call.block_k,
      keys,
    )
    self.rest = self.refs[len(call.inputs) :]

  def bias(self) -> jax.Array | None:
    """Loads the tile's bias."""
    if not self.rule.biased:
      return None
    bias = self.refs[3][...]
    if self.rule.band:
      return tpu_band.spread(bias)
    if self.keys == 1:
      return bias
    bias = bias.astype(jnp.float32)
    if 1 in bias.shape:
      return bias.reshape(bias.shape[::-1])
    return bias.T

  def allowed(self) -> jax.Array | None:
    """Computes which pairs of a PARTIAL tile there are and may be seen."""
    call, found = self.call, None
    if self.rule.mask is not None:
      vectors = iter(self.refs[3 + self.rule.biased : len(call.inputs)])
      scalars = iter(self.scalars[call.lengths :])
      leaves = []
      for axis in self.rule.axes:
        if axis == "b":
          leaves.append(next(scalars)[self.b])
        else:
          along = self.keys if axis == "k" else 1 - self.keys
          leaves.append(tile.vector(next(vectors)[...], along))
      found = tile.seen(self.rule, leaves, self.q, self.k)
    if call.S % call.block_k:
      inside = self.k < call.S
      found = inside if found is None else found & inside
    if call.T % call.block_q:
      inside = self.q < call.T
      found = inside if found is None else found & inside
    return found

  def scores(self, q, k, partial: bool):
    """Computes (scores, slope of the soft-cap)."""
    a, b = (q, k) if self.keys == 1 else (k, q)
    s, slope = tile.scores(self.rule, tile.dot(a, b, 1, 1), self.bias())
    allowed = self.allowed() if partial else None
    return (s if allowed is None else tile.hide(s, allowed)), slope

  def thin(self, x: jax.Array) -> jax.Array:
    """Applies dropout."""
    if self.rule.rate == 0.0:
      return x
    seed = self.scalars[-1][self.b * self.call.heads + self.n]
    return tile.thin(self.rule, x, seed, self.q, self.k)

  def queries(self, ref, partial: bool) -> jax.Array:
    """Loads [q H], zero where there are no queries left."""
    call = self.call
    return _clean(ref[...], self.step.q * call.block_q, call.T, partial)

  def per_key(self, ref, partial: bool) -> jax.Array:
    """Loads [k H], zero where there are no keys left."""
    call = self.call
    return _clean(ref[...], self.step.k * call.block_k, call.S, partial)

  def each_kind(self, body: Callable[[bool], None]) -> None:
    """Runs body(partial) unless the tile is empty."""
    kind, *tails = self.call.steps.kinds
    table = self.call.steps.table
    if table is None and kind == blocks.FULL and not any(tails):
      body(False)
      return
    if table is not None or kind == blocks.FULL:
      pl.when(self.step.kind == blocks.FULL)(lambda: body(False))
    pl.when(self.step.kind == blocks.PARTIAL)(lambda: body(True))


def _clean(x: jax.Array, first: Any, length: int, partial: bool) -> jax.Array:
  if not partial or length % x.shape[0] == 0:
    return x
  row = jax.lax.broadcasted_iota(jnp.int32, (x.shape[0], 1), 0) + first
  return jnp.where(row < length, x, jnp.zeros_like(x))


def _kernel(call: Call, *refs):
  # Keys along the sublanes: what is kept of a query is a lane, and the maximum
  # and the sum of its keys are those of whole registers.
  t = Tile(call, refs, keys=0)
  q_ref, k_ref, v_ref = t.refs[:3]
  out_ref, lse_ref, top_ref, total_ref, sum_ref = t.rest

  @pl.when(t.step.first)
  def _():
    top_ref[...] = jnp.full(top_ref.shape, tile.LOWEST, jnp.float32)
    total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
    sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)

  def body(partial):
    s, _ = t.scores(q_ref[...], k_ref[...], partial)
    old = top_ref[...]
    top = jnp.maximum(old, s.max(0, keepdims=True))
    top_ref[...] = top
    shrink = tile.power(call.rule, old - top)
    p = tile.power(call.rule, s - top)
    total_ref[...] = total_ref[...] * shrink + p.sum(0, keepdims=True)
    v = t.per_key(v_ref, partial)
    sum_ref[...] = sum_ref[...] * shrink + tile.dot(
      v, t.thin(p).astype(v.dtype), 0, 0
    )

  t.each_kind(body)

  @pl.when(t.step.last)
  def _():
    total = total_ref[...]
    out_ref[...] = (sum_ref[...] * tile.inverse(total)).T.astype(out_ref.dtype)
    # Of a row that sees nothing: infinite, so that its weights come out 0.
    lse_ref[...] = jnp.where(
      total == 0.0, jnp.inf, top_ref[...] + tile.logarithm(call.rule, total)
    )


def forward(plan: Plan, args: Sequence[Any]) -> tuple[jax.Array, jax.Array]:
  """Returns the output [B N T H'] and the log of sums [B N 1 T]."""
  q, _, v, bias = args[:4]
  B, N, T, _ = q.shape
  if plan.rule.band:
    args = (*args[:3], tpu_band.turned(bias), *args[4:])
  call = Call(plan, args, grid=(B, N, None), place=lambda b, n, p: (b, n, p))
  out = jax.ShapeDtypeStruct((B, N, T, v.shape[-1]), q.dtype)
  lse = jax.ShapeDtypeStruct((B, N, 1, T), jnp.float32)
  out, lse = call.run(
    _kernel,
    "attention_flash",
    [],
    [(out, call.of_queries(v.shape[-1])), (lse, call.of_rows())],
    [pltpu.VMEM((n, call.block_q), jnp.float32) for n in (1, 1, v.shape[-1])],
    products=2,
    parallel=2,
  )
  return out, lse
