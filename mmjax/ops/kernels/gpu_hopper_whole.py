"""Gradients of attention on Hopper where a head is short: one fused kernel.

At a few hundred tokens attention is bound by what it reads and writes. Here a
thread block (CTA) reads q, k, v, out and d_out of a head once, holds them in
shared memory, and writes dq, dk and dv once. It also multiplies five times
where two kernels multiply seven times.

Two warpgroups compute, each on 64 keys at a time: over chunks of 64 queries
they hold dk and dv in registers, the weights with keys as rows. A third one
loads, makes delta, the row sums of out * d_out, and multiplies the gradients
of logits, which the others leave in shared memory, by k: it holds dq of the
whole head. Nothing is added up by atomics, so results are deterministic.

Passes are rounds of the computing warpgroups over the tiles of keys; steps are
the chunks of queries of all passes one after the other. Barriers:

  keys, chunk: what TMA loads of a tile of keys, of a chunk of queries.
  delta: of a chunk, once it is in shared memory.
  full, free: a slot of d_logits, with two halves of 64 keys; filled by the
    computing warpgroups, and free once it is multiplied.

Who computes waits for loads, for delta, and for the slot of the step three
before; who multiplies first makes all delta, for which it waits for loads
alone, and then waits for steps in their order. So no two wait for one another.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mmjax.ops import blocks
from mmjax.ops.kernels import gpu_hopper_grid as hg
from mmjax.ops.kernels import gpu_hopper_memory as hm
from mmjax.ops.kernels import gpu_hopper_ring as hr
from mmjax.ops.kernels import gpu_tiles as gt
from mmjax.ops.kernels.gpu_hopper_memory import ROWS
from mmjax.ops.kernels.gpu_tiles import Plan

WIDTH = 64
LENGTH = 256  # of queries and of keys, at most
# Of gradients of logits. Of 4 chunks the first 3 need not wait for one to be
# free, which is not before all chunks are loaded.
_SLOTS = 3


@dataclasses.dataclass(frozen=True)
class Whole:
  """Stands for this kernel where tiles of others do; it has no choices."""


def refuses(plan: Plan) -> str | None:
  """Says why the kernel cannot compute a plan; None if it can.

  Nothing of dtypes, bias, soft-cap, dropout and masks with data, see
  `gpu_hopper.refuses`, which says it of the forward pass.
  """
  if plan.H != WIDTH or plan.width != WIDTH:
    return f"head_dim {plan.H} and value width {plan.width}; it takes {WIDTH}"
  if plan.N != plan.K:
    return f"{plan.K} key heads of {plan.N}"
  if max(plan.T, plan.S) > LENGTH:
    return f"lengths {plan.T}, {plan.S}; at most {LENGTH}"
  return None


def gradients(
  plan: Plan,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  d_out: jax.Array,
  lse: jax.Array,
  out: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Computes the gradients of q, k and v.

  With p the weights and d = p * (d_out v' - delta), they are scale d k,
  scale d' q and p' d_out.

  Args:
    plan: the call, as `refuses` takes it.
    q, d_out, out: [B T N 64], bfloat16 or float16.
    k, v: [B S N 64].
    lse: log2 of each row's sum of exp2, float32 [B N up(T, 128)]; +inf past T
      and of rows that see no key.

  Returns:
    d_q [B T N 64], d_k and d_v [B S N 64] in the dtypes of q, k and v.

  Raises:
    ValueError: what `refuses` says.
  """
  why = refuses(plan)
  if why is not None:
    raise ValueError(f"the fused Hopper kernel refuses {why}.")
  kinds = plan.kinds((), gt.Tiles(q=ROWS, k=ROWS))
  work = _Work.of(plan, kinds)

  def tiles(count):
    return hm.Part(0, WIDTH).memory((count, ROWS), q.dtype, tiled=False)

  def vectors():
    return plgpu.SMEM((work.chunks, ROWS), jnp.float32)

  arrays = (q, k, v, d_out, out, lse)
  return plgpu.kernel(
    lambda *refs: _Block(work, *refs).run(),
    out_type=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)],
    scratch_types=[
      {
        "q": tiles(work.chunks),
        "d_out": tiles(work.chunks),
        # dk leaves by way of what held out.
        "out": tiles(max(work.chunks, work.tiles)),
        "k": tiles(work.tiles),
        "v": tiles(work.tiles),
        "d_logits": tiles(_SLOTS * work.wgs),
        "lse": vectors(),
        "delta": vectors(),
      },
      {
        "keys": plgpu.Barrier(num_arrivals=2, num_barriers=work.tiles),
        "chunk": plgpu.Barrier(num_arrivals=4, num_barriers=work.chunks),
        "delta": plgpu.Barrier(num_arrivals=1, num_barriers=work.chunks),
        "full": plgpu.Barrier(num_arrivals=work.wgs, num_barriers=_SLOTS),
        "free": plgpu.Barrier(num_arrivals=1, num_barriers=_SLOTS),
      },
    ],
    grid=(plan.B, plan.N),
    grid_names=(hg.B, hg.N),
    num_threads=work.wgs + 1,
    thread_name=hm.WG,
    kernel_name="attention_dqkv",
    **hm.costs(plan.cost(10 * WIDTH, kinds, *arrays, q, k, v)),
    compiler_params=plgpu.CompilerParams(
      approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
    ),
  )(*arrays)


@dataclasses.dataclass(frozen=True)
class _Pass:
  """One round over the queries, each warpgroup with its tile of keys.

  tile: of the first warpgroup. wgs: how many have one. lo, hi: the chunks of
  queries that see any. step: number of the first step. partial: whether any
  pair needs the predicate.
  """

  tile: int
  wgs: int
  lo: int
  hi: int
  step: int
  partial: bool


@dataclasses.dataclass(frozen=True)
class _Work:
  """What all warpgroups know.

  chunks, tiles: of queries and of keys. wgs: that compute.
  """

  plan: Plan
  chunks: int
  tiles: int
  wgs: int
  passes: tuple[_Pass, ...]

  @classmethod
  def of(cls, plan: Plan, kinds: Any) -> "_Work":
    chunks, tiles = pl.cdiv(plan.T, ROWS), pl.cdiv(plan.S, ROWS)
    wgs = min(2, tiles)
    passes, step = [], 0
    for tile in range(0, tiles, wgs):
      mine = kinds[:, tile : tile + wgs]
      some = (mine != blocks.EMPTY).any(1).nonzero()[0]
      lo, hi = (int(some[0]), int(some[-1]) + 1) if some.size else (0, 0)
      # Keys past S are zero, but their weights may be inf: 0 * inf is NaN.
      tail = plan.S % ROWS > 0 and tile + wgs >= tiles
      partial = tail or bool((mine[lo:hi] != blocks.FULL).any())
      passes.append(_Pass(tile, mine.shape[1], lo, hi, step, partial))
      step += hi - lo
    return cls(plan, chunks, tiles, wgs, tuple(passes))


class _Block:
  """A thread block, as one of its warpgroups sees it while it is traced."""

  def __init__(self, work, *refs):
    self.work, self.plan = work, work.plan
    *arrays, memory, self.signals = refs
    names = ("q", "k", "v", "d_out", "out", "lse", "d_q", "d_k", "d_v")
    self.refs: dict[str, Any] = dict(zip(names, arrays, strict=True))
    self.vectors = {name: memory[name] for name in ("lse", "delta")}
    # As TMA takes them, and as wgmma does.
    self.rows: dict[str, Any] = {}
    self.tiles: dict[str, Any] = {}
    for name, ref in memory.items():
      if name not in self.vectors:
        self.rows[name], self.tiles[name] = ref
    self.dtype = self.refs["q"].dtype
    self.b, self.n = lax.axis_index(hg.B), lax.axis_index(hg.N)
    self.wg = lax.axis_index(hm.WG)

  def run(self) -> None:
    work = self.work

    # Both sides need about the 168 registers that each of 3 warpgroups gets.
    @pl.when(self.wg == work.wgs)
    def _():
      self.load()
      self.sum_rows()
      self.multiply()

    @pl.when(self.wg < work.wgs)
    def _():
      for each in work.passes:
        tile = each.tile + self.wg
        if each.wgs == work.wgs:
          self.compute(each, tile)
          continue
        pl.when(self.wg < each.wgs)(lambda e=each, t=tile: self.compute(e, t))
        pl.when(self.wg >= each.wgs)(lambda e=each: self.skip(e))
      plgpu.wait_smem_to_gmem(0)

  # Of the warpgroup for dq.

  def load(self) -> None:
    """Begins all loads, in the order in which they are wanted."""
    first = self.work.passes[0].wgs

    def keys(tile):
      for name in ("k", "v"):
        self.fetch(name, tile, self.signals["keys"].at[tile])

    for tile in range(first):
      keys(tile)
    for chunk in range(self.work.chunks):
      signal = self.signals["chunk"].at[chunk]
      for name in ("q", "d_out", "out"):
        self.fetch(name, chunk, signal)
      some = pl.ds(chunk * ROWS, ROWS)
      plgpu.copy_gmem_to_smem(
        self.refs["lse"].at[self.b, self.n, some],
        self.vectors["lse"].at[chunk],
        signal,
      )
    for tile in range(first, self.work.tiles):
      keys(tile)

  def fetch(self, name: str, tile: int, signal: Any) -> None:
    """Begins to load 64 rows; past the array's end there are zeros."""
    plgpu.copy_gmem_to_smem(
      self.refs[name].at[self.place(tile)], self.rows[name].at[tile], signal
    )

  def place(self, tile: Any) -> tuple[Any, ...]:
    """Returns where a tile's rows are in an array."""
    # A sum with an index, since a slice past the end must not be static.
    start = tile * ROWS + self.wg * 0
    return self.b, pl.ds(start, ROWS), self.n

  def sum_rows(self) -> None:
    """Computes delta of all chunks; of rows past T it is 0."""
    for chunk in range(self.work.chunks):
      plgpu.barrier_wait(self.signals["chunk"].at[chunk])
      self.vectors["delta"].at[chunk][...] = hr.row_sums(
        [self.tiles["out"].at[chunk]], [self.tiles["d_out"].at[chunk]]
      )
      plgpu.barrier_arrive(self.signals["delta"].at[chunk])

  def multiply(self) -> None:
    """Computes and stores dq of all chunks."""
    work, signals = self.work, self.signals

    def accumulate(*acc):
      before = None
      for each in work.passes:
        for tile in range(each.tile, each.tile + each.wgs):
          plgpu.barrier_wait(signals["keys"].at[tile])
        for chunk in range(each.lo, each.hi):
          slot = (each.step + chunk - each.lo) % _SLOTS
          plgpu.barrier_wait(signals["full"].at[slot])
          for wg in range(each.wgs):
            # Or the addresses of all slots would take registers all along.
            half = lax.optimization_barrier(jnp.int32(slot * work.wgs + wg))
            d_logits = self.tiles["d_logits"].at[half]
            keys = self.tiles["k"].at[each.tile + wg]
            plgpu.wgmma(acc[chunk], d_logits.transpose((1, 0)), keys)
          if before is not None:
            plgpu.wgmma_wait(each.wgs)  # those of this step may go on
            plgpu.barrier_arrive(signals["free"].at[before])
          before = slot
      return tuple(x[...] for x in acc)

    acc = [hr.acc(WIDTH)] * work.chunks
    found = pl.run_scoped(accumulate, *acc)
    # All gradients of logits are multiplied: their memory is free.
    room = _SLOTS * work.wgs
    for first in range(0, work.chunks, room):
      some = range(first, min(first + room, work.chunks))
      if first:
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
      for chunk in some:
        self.stage("d_logits", chunk % room, found[chunk] * self.plan.scale)
      plgpu.commit_smem()
      for chunk in some:
        self.store("d_logits", chunk % room, "d_q", chunk)
    plgpu.wait_smem_to_gmem(0)

  # Of those that compute.

  def compute(self, each: _Pass, tile: Any) -> None:
    """Computes and stores dk and dv of a tile."""
    plgpu.barrier_wait(self.signals["keys"].at[tile])

    def accumulate(d_k, d_v):
      def body(chunk, carry):
        if each.tile == 0:
          plgpu.barrier_wait(self.signals["chunk"].at[chunk])
        acc = hr.acc(ROWS)
        pl.run_scoped(
          lambda *x: self.step(each, tile, chunk, d_k, d_v, *x), acc, acc
        )
        return carry

      lax.fori_loop(jnp.int32(each.lo), jnp.int32(each.hi), body, jnp.int32(0))
      return d_k[...], d_v[...]

    acc = hr.acc(WIDTH)
    d_k, d_v = pl.run_scoped(accumulate, acc, acc)
    if each.tile == 0:
      for chunk in range(self.work.chunks):
        if not each.lo <= chunk < each.hi:
          plgpu.barrier_wait(self.signals["chunk"].at[chunk])
          plgpu.barrier_wait(self.signals["delta"].at[chunk])
    # Nobody else reads this tile of v, and out once there is delta of it.
    self.stage("out", tile, d_k * self.plan.scale)
    self.stage("v", tile, d_v)
    plgpu.commit_smem()
    self.store("out", tile, "d_k", tile)
    self.store("v", tile, "d_v", tile)

  def step(self, each, tile, chunk, d_k, d_v, scores, d_weights) -> None:
    """Adds a chunk of queries to dk and dv, and leaves what dq needs."""
    work, plan, signals = self.work, self.plan, self.signals
    q, d_out = self.tiles["q"].at[chunk], self.tiles["d_out"].at[chunk]
    k, v = self.tiles["k"].at[tile], self.tiles["v"].at[tile]
    plgpu.wgmma(scores, k, q.transpose((1, 0)))
    plgpu.wgmma(d_weights, v, d_out.transpose((1, 0)))
    logits = plgpu.wgmma_accumulator_load(scores, wait_n=1)
    lse = self.along_queries("lse", chunk)
    weights = jnp.exp2(logits * (plan.scale * gt.LOG2E) - lse())
    if each.partial:
      weights = jnp.where(self.seen(tile, chunk), weights, 0.0)
    plgpu.wgmma(d_v, weights.astype(self.dtype), d_out)
    if each.tile == 0:
      plgpu.barrier_wait(signals["delta"].at[chunk])
    delta = self.along_queries("delta", chunk)
    slope = plgpu.wgmma_accumulator_load(d_weights, wait_n=1)
    d_logits = (weights * (slope - delta())).astype(self.dtype)
    plgpu.wgmma(d_k, d_logits, q)
    slot = self.claim(each, chunk)
    self.tiles["d_logits"].at[slot * work.wgs + self.wg][...] = d_logits
    plgpu.commit_smem()
    # Were they to run on into the next step, registers would not suffice.
    plgpu.wgmma_wait(0)
    plgpu.barrier_arrive(signals["full"].at[slot])

  def claim(self, each: _Pass, chunk: Any) -> Any:
    """Returns the slot of a step, once it is free."""
    step = each.step + chunk - each.lo
    slot = lax.rem(step, jnp.int32(_SLOTS))

    @pl.when(step >= _SLOTS)
    def _():
      plgpu.barrier_wait(self.signals["free"].at[slot])

    return slot

  def skip(self, each: _Pass) -> None:
    """Keeps up with a pass that has no tile for this warpgroup."""

    def body(chunk, carry):
      slot = self.claim(each, chunk)
      plgpu.barrier_arrive(self.signals["full"].at[slot])
      return carry

    lax.fori_loop(jnp.int32(each.lo), jnp.int32(each.hi), body, jnp.int32(0))

  def along_queries(self, name: str, chunk: Any) -> Any:
    """Loads a vector of queries; returns what makes a tile of it."""
    return hr.vector(self.vectors[name].at[chunk], 1, ROWS)

  def seen(self, tile: Any, chunk: Any) -> Any:
    """Returns which pairs of keys and queries are seen."""

    def index(start, axis):
      layout = plgpu.Layout.WGMMA.reduce(1 - axis)
      row = plgpu.broadcasted_iota(jnp.int32, (ROWS,), 0, layout=layout)
      row = row + start * ROWS
      if axis == 1:  # 16 registers; not to be kept from step to step
        row = lax.optimization_barrier(row)
      return lax.broadcast_in_dim(row, (ROWS, ROWS), (axis,))

    plan, k = self.plan, index(tile, 0)
    seen = None
    if plan.mask is not None:
      seen = jax.tree.unflatten(plan.mask, ()).seen(index(chunk, 1), k)
    if plan.S % ROWS:
      seen = (k < plan.S) if seen is None else seen & (k < plan.S)
    return seen

  # Of all.

  def stage(self, name: str, tile: Any, value: jax.Array) -> None:
    self.tiles[name].at[tile][...] = value.astype(self.dtype)

  def store(self, name: str, tile: Any, to: str, at: Any) -> None:
    """Begins to store 64 rows, but not past the array's end."""
    plgpu.copy_smem_to_gmem(
      self.rows[name].at[tile], self.refs[to].at[self.place(at)]
    )
