"""What one thread block of `gpu_hopper` does: its loads, steps and stores.

A step is one tile of keys and values: wgmma multiplies queries and keys, the
softmax goes on by their products, wgmma multiplies its weights and values.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mmjax.ops import blocks
from mmjax.ops.kernels import gpu_hopper_memory as hm
from mmjax.ops.kernels import gpu_hopper_softmax as softmax
from mmjax.ops.kernels import gpu_tiles as gt
from mmjax.ops.kernels.gpu_hopper_grid import Grid
from mmjax.ops.kernels.gpu_hopper_memory import ROWS, View
from mmjax.ops.kernels.gpu_hopper_softmax import Running
from mmjax.ops.kernels.gpu_tiles import Plan, Walk


@dataclasses.dataclass(frozen=True)
class HopperTiles:
  """What a thread block computes, and how.

  wgs: warpgroups that compute, of 64 queries each; 1 to 3.
  k: keys a step, a multiple of 16 up to 256; best one of 64.
  stages: slots for tiles of keys, and as many for values.
  pingpong: whether two warpgroups take turns at the tensor cores.
  overlap: whether a warpgroup multiplies the next tile of keys while it takes
    the softmax of this one. Costs registers: k more for two tiles of scores.
  resident: whether there are no more thread blocks than the GPU holds, each
    with one tile of queries after the other. The loads of the next one then
    run beside the products of this one; costs memory for results.
  lazy: whether weights go by an older reference than the highest logit, as long
    as that is near; see `gpu_hopper_softmax`. Costs registers: the scores.
  """

  wgs: int = 2
  k: int = 128
  stages: int = 2
  pingpong: bool = True
  overlap: bool = False
  resident: bool = False
  lazy: bool = False

  @property
  def q(self) -> int:
    return ROWS * self.wgs


def value_rows(tiles: HopperTiles) -> int:
  """Returns the values of a step: wgmma takes weights by 64 of them."""
  return gt.up(tiles.k, hm.LINE)


@dataclasses.dataclass(frozen=True)
class Work:
  """What all warpgroups of a kernel know.

  loader: whether a warpgroup of its own loads. There is none where all tiles
    have a slot of their own: nobody needs to wait for a slot to be free.
  overlap: as of the tiles, where every row of the walk has a step.
  resident: as of the tiles, where there is a loader and one such thread block
    fills a multiprocessor.
  tiled: whether TMA tiles rows by 8 as wgmma reads them. It can if lengths
    are multiples of 8.
  parts: the columns of a head. One part if tiled, else as of `split`: up to 64
    columns lie alike with tiles and without.
  """

  plan: Plan
  tiles: HopperTiles
  dtype: Any
  walk: Walk
  rows: int
  loader: bool
  overlap: bool
  resident: bool
  tiled: bool
  parts: tuple[hm.Part, ...]

  @classmethod
  def of(cls, plan: Plan, tiles: HopperTiles, dtype: Any) -> "Work":
    kinds = plan.kinds((), gt.Tiles(q=tiles.q, k=tiles.k))
    walk = gt.walk(kinds, tail=plan.S % tiles.k > 0)
    loader = walk.fixed is None or _steps(walk) > tiles.stages
    tiled = plan.T % 8 == plan.S % 8 == plan.H % hm.LINE == 0
    return cls(
      plan,
      tiles,
      dtype,
      walk,
      rows=pl.cdiv(plan.T, tiles.q),
      loader=loader,
      overlap=tiles.overlap and bool((kinds != blocks.EMPTY).any(1).all()),
      resident=tiles.resident and loader and tiles.wgs > 1,
      tiled=tiled,
      parts=(hm.Part(0, plan.H),) if tiled else hm.split(plan.H),
    )

  @property
  def grid(self) -> Grid:
    plan = self.plan
    return Grid(plan.B, plan.N, self.rows, self.walk.last_first, self.resident)

  @property
  def turns(self) -> bool:
    """Whether two warpgroups take turns at the tensor cores."""
    once = self.walk.fixed is not None and _steps(self.walk) < 2
    return self.tiles.pingpong and self.tiles.wgs == 2 and not once

  @property
  def may_be_empty(self) -> bool:
    """Whether a row of the walk may have no step."""
    return self.loader and self.walk.fixed is None

  @property
  def stages(self) -> int:
    return self.tiles.stages if self.loader else max(1, _steps(self.walk))


class Block:
  """One thread block, as one of its warpgroups sees it while it is traced."""

  def __init__(self, work, refs, memory, signals, wg, item):
    self.work, self.plan, self.tiles = work, work.plan, work.tiles
    self.q_ref, self.k_ref, self.v_ref, *tables, self.out, self.lse = refs
    self.signals, self.wg = signals, wg
    # Zero. A slice that may reach past the end must not be static.
    self.none = wg * 0
    self.memory = {
      name: [View.of(ref, work.tiled) for ref in memory[name]]
      for name in ("q", "k", "v", "out")
      if name in memory
    }
    if not work.resident:  # nobody loads queries any more
      self.memory["out"] = self.memory["q"]
    self.lse_memory = memory["lse"]
    self.item = item
    self.b, self.n, self.row = work.grid.place(item)
    self.q0, self.tables = self.row * self.tiles.q, tuple(tables)
    # Read once: the compiler would not keep them from step to step.
    self.first, self.ends = self.read_ends()
    self.c = self.plan.scale * gt.LOG2E
    self.masked = self.plan.mask is not None

  # Loads.

  def columns(self, part: hm.Part) -> Any:
    if part.offset + part.size <= self.plan.H:
      return pl.ds(part.offset, part.size)
    return pl.ds(part.offset + self.none, part.size)

  def load_q(self, wg: Any) -> None:
    rows = (self.b, pl.ds(self.q0 + wg * ROWS, ROWS), self.n)
    for view, part in zip(self.memory["q"], self.work.parts, strict=True):
      plgpu.copy_gmem_to_smem(
        self.q_ref.at[(*rows, self.columns(part))],
        view.plain.at[wg],
        self.signals["q"].at[wg],
      )

  def load_side(self, name: str, column: Any, slot: Any) -> None:
    """Loads a tile of keys or values; arrives at the barrier of its slot."""
    ref = self.k_ref if name == "k" else self.v_ref
    size = self.tiles.k if name == "k" else value_rows(self.tiles)
    start = column * self.tiles.k + self.none
    head = lax.div(self.n, jnp.int32(self.plan.group))
    rows = (self.b, pl.ds(start, size), head)
    for view, part in zip(self.memory[name], self.work.parts, strict=True):
      plgpu.copy_gmem_to_smem(
        ref.at[(*rows, self.columns(part))],
        view.plain.at[slot],
        self.signals[name].at[slot],
      )

  def load_all(self) -> None:
    """Loads all that the block reads, by warpgroups that compute."""
    self.load_q(self.wg)

    @pl.when(self.wg == 0)
    def _():
      for step in range(_steps(self.work.walk)):
        self.load_side("k", self.column(step), step)
        self.load_side("v", self.column(step), step)

  def load(self) -> None:
    """Loads queries, and tile after tile into slots that are free."""

    def queries():
      for wg in range(self.tiles.wgs):
        if self.work.resident:

          @pl.when(self.item.count > 0)
          def _(wg=wg):
            plgpu.barrier_wait(self.signals["q_free"].at[wg])

        self.load_q(wg)

    def body(step, column, carry):
      slot = self.slot(step)
      for name in ("k", "v"):

        @pl.when(self.item.done + step >= self.tiles.stages)
        def _(name=name):
          plgpu.barrier_wait(self.signals[f"{name}_free"].at[slot])

        self.load_side(name, column, slot)
        if name == "k":
          pl.when(step == 0)(queries)
      return carry

    for lo, hi, _ in self.limits():
      self.walk(lo, hi, body, None)
    if self.work.may_be_empty:
      pl.when(self.steps() == 0)(queries)

  # Products and softmax.

  def compute(self) -> None:
    wide = plgpu.Layout.WGMMA
    acc = tuple(
      plgpu.layout_cast(jnp.zeros((ROWS, size), jnp.float32), wide)
      for _, size in self.work.parts
    )
    carry: Any = (Running.begin(self.tiles.lazy), acc)
    plgpu.barrier_wait(self.signals["q"].at[self.wg])
    self.await_turn()
    if self.work.overlap:
      carry = self.overlapped(carry)
    else:
      for lo, hi, partial in self.limits():
        body = functools.partial(self.step, partial=partial)
        carry = self.walk(lo, hi, body, carry)
    if self.work.may_be_empty:
      self.free_q(self.steps() == 0)
    self.end_turn()
    self.store(*carry)

  def begin_turns(self) -> None:
    """Lets the first warpgroup begin."""
    if self.work.turns:

      @pl.when(self.wg == 1)
      def _():
        plgpu.barrier_arrive(self.signals["turn"].at[0])

  def await_turn(self) -> None:
    if self.work.turns:
      plgpu.barrier_wait(self.signals["turn"].at[self.wg])

  def end_turn(self) -> None:
    if self.work.turns:
      plgpu.barrier_arrive(self.signals["turn"].at[1 - self.wg])

  def read_ends(self) -> tuple[Any, list[Any]]:
    """Returns the first tile of keys, and where each loop of the walk ends."""
    walk = self.work.walk
    if walk.fixed is not None:
      return walk.fixed[0], [x - walk.fixed[0] for x in walk.fixed[1:]]
    loops = range(len(walk.partial))
    if len(self.tables) == 2:
      return None, [self.tables[1][0, self.row, n] for n in loops]
    first, *ends = (self.tables[0][self.row, n] for n in (*loops, len(loops)))
    return first, [x - first for x in ends]

  def limits(self) -> list[tuple[Any, Any, bool]]:
    """Returns (first step, end, partial) of each loop of the walk."""
    ends, partial = self.ends, self.work.walk.partial
    starts = [0, *ends][:-1]
    if self.work.overlap:
      # The last tiles first. Of the first tile the predicate is computed if any
      # is partial; with a causal mask, or a tail, the last one is.
      starts, ends = (
        [self.steps() - x for x in at[::-1]] for at in (ends, starts)
      )
      partial = partial[::-1]
    return list(zip(starts, ends, partial, strict=True))

  def steps(self) -> Any:
    """Returns how many steps there are."""
    return self.ends[-1] if self.ends else 0

  def column(self, step: Any) -> Any:
    """Returns which tile of keys a step is about."""
    if self.work.overlap:
      step = self.steps() - 1 - step
    if self.first is None:
      return self.tables[0][0, self.row, step]
    return self.first + step

  def slot(self, step: Any) -> Any:
    if not self.work.loader:
      return step
    return lax.rem(self.item.done + step, jnp.int32(self.tiles.stages))

  def walk(self, lo: Any, hi: Any, body: Any, carry: Any) -> Any:
    """Returns carry after body(step, column, carry) of steps [lo, hi)."""
    if not self.work.loader:
      for step in range(lo, hi):
        carry = body(step, self.column(step), carry)
      return carry

    def loop(step, carry):
      return body(step, self.column(step), carry)

    return lax.fori_loop(jnp.int32(lo), jnp.int32(hi), loop, carry)

  def step(self, step, column, carry, partial):
    """Returns (what runs on, acc) after one more tile of keys.

    acc: the sums of weighted values, relative to the row's reference.
    """
    old, acc = carry
    slot = self.slot(step)
    scores = self.scores(slot)
    self.free_q(step == self.steps() - 1)
    scores = self.mask(scores, column, partial)
    run, acc, weights = self.weigh(scores, old, acc)
    plgpu.barrier_wait(self.signals["v"].at[slot])
    self.await_turn()
    acc = self.mix(weights, slot, acc)
    self.free("v", slot)
    return run, acc

  def scores(self, slot):
    """Returns the products of queries and a tile of keys."""
    plgpu.barrier_wait(self.signals["k"].at[slot])

    def multiply(ref):
      self.multiply_keys(ref, slot)
      self.end_turn()
      return ref[...]

    found = pl.run_scoped(multiply, self.score_spec())
    self.free("k", slot)
    return found

  def weigh(self, scores, old, acc):
    """Returns what runs on, acc faded, and weights in the dtype of values."""
    if self.tiles.lazy:
      return self.guess(scores, old, acc)
    run, fade, weights = softmax.eager(scores, old, self.c, self.masked)
    weights = weights.astype(self.work.dtype)
    acc = _fade(acc, fade)
    run, acc, weights = lax.optimization_barrier((run, acc, weights))
    return run, acc, weights

  def guess(self, scores, old, acc):
    """Returns as `weigh`, mostly without a look at the highest logits."""
    weights, run, far = softmax.guess(scores, old, self.c)
    weights = weights.astype(self.work.dtype)
    # Or the compiler would put all of it behind the branch.
    weights, total = lax.optimization_barrier((weights, run.total))

    def again():
      run, fade, weights = softmax.again(scores, old, self.c)
      return run, _fade(acc, fade), weights.astype(self.work.dtype)

    def settled():
      return Running(old.top, total), acc, weights

    return lax.cond(hm.any_of_warp(far), again, settled)

  def overlapped(self, carry):
    """Returns what the steps one by one would, their products ahead of time.

    Each step multiplies its keys beside the values of the step before.
    """
    old, acc = carry
    limits = self.limits()
    zero = limits[0][0]
    scores = self.scores(self.slot(zero))
    # Which loop the first tile is of may differ from row to row.
    partial = any(x for _, _, x in limits)
    scores = self.mask(scores, self.column(zero), partial)
    run, acc, weights = self.weigh(scores, old, acc)
    carry = (run, acc, weights)
    for lo, hi, partial in limits:
      if self.work.walk.fixed is not None:
        lo = max(lo, 1)
      else:
        lo = jnp.maximum(lo, 1)
      body = functools.partial(self.overlapped_step, partial=partial)
      carry = self.walk(lo, hi, body, carry)
    self.free_q(True)
    run, acc, weights = carry
    slot = self.slot(self.steps() - 1)
    plgpu.barrier_wait(self.signals["v"].at[slot])
    self.await_turn()
    acc = self.mix(weights, slot, acc)
    self.free("v", slot)
    return run, acc

  def overlapped_step(self, step, column, carry, partial):
    old, acc, weights = carry
    slot, last = self.slot(step), self.slot(step - 1)
    plgpu.barrier_wait(self.signals["k"].at[slot])
    plgpu.barrier_wait(self.signals["v"].at[last])
    self.await_turn()

    def multiply(refs):
      accs, *rooms = refs

      def inner(ref):
        self.multiply_keys(ref, slot)
        self.multiply_values(accs, weights, last)
        self.end_turn()
        # The products of values go on while those of keys are here.
        return plgpu.wgmma_accumulator_load(ref, wait_n=len(accs))

      scores = pl.run_scoped(inner, self.score_spec())
      self.free("k", slot)
      scores = self.mask(scores, column, partial)
      run, fade, found = softmax.eager(scores, old, self.c, self.masked)
      found = lax.optimization_barrier((*run, fade, found))
      for room, value in zip(rooms, found, strict=True):
        room[...] = value

    accs = tuple(hm.MOSAIC.ACC.init(x) for x in acc)
    wide = jnp.zeros((ROWS, self.tiles.k), jnp.float32)
    wide = plgpu.layout_cast(wide, plgpu.Layout.WGMMA)
    rooms = old.top, old.total, old.top, wide
    acc, top, total, fade, found = pl.run_state(multiply)((accs, *rooms))
    self.free("v", last)
    # Cast once the products with the older weights are done: a compiler that
    # gives both the same registers would put everything in sequence.
    found = lax.optimization_barrier(found)
    run = Running(top, total)
    return run, _fade(acc, fade), found.astype(self.work.dtype)

  def free(self, name: str, slot: Any) -> None:
    if self.work.loader:
      plgpu.barrier_arrive(self.signals[f"{name}_free"].at[slot])

  def free_q(self, done: Any) -> None:
    """Lets the queries of the next item be loaded, if those of this are done.

    Not while products run: a branch would put them in sequence.
    """
    if self.work.resident:

      @pl.when(done)
      def _():
        plgpu.barrier_arrive(self.signals["q_free"].at[self.wg])

  def score_spec(self) -> Any:
    return hm.MOSAIC.ACC((ROWS, self.tiles.k), jnp.float32)

  def mask(self, scores, column, partial):
    seen = self.seen(column) if partial else None
    return scores if seen is None else jnp.where(seen, scores, -jnp.inf)

  def multiply_keys(self, ref, slot) -> None:
    for q, k in zip(self.memory["q"], self.memory["k"], strict=True):
      keys = k.tiled.at[slot].transpose((1, 0))
      plgpu.wgmma(ref, q.tiled.at[self.wg], keys)

  def multiply_values(self, refs, weights, slot) -> None:
    more = value_rows(self.tiles) - self.tiles.k
    if more:
      none = jnp.zeros((ROWS, more), weights.dtype)
      none = plgpu.layout_cast(none, plgpu.Layout.WGMMA)
      weights = jnp.concatenate([weights, none], 1)
    for ref, v in zip(refs, self.memory["v"], strict=True):
      plgpu.wgmma(ref, weights, v.tiled.at[slot])

  def mix(self, weights, slot, acc):
    """Returns acc + weights v."""

    def multiply(refs):
      self.multiply_values(refs, weights, slot)

    return pl.run_state(multiply)(tuple(hm.MOSAIC.ACC.init(x) for x in acc))

  def seen(self, column) -> jax.Array | None:
    """Returns which pairs of a tile are seen, or None for all."""
    plan, size = self.plan, self.tiles.k
    shape, layout = (ROWS, size), plgpu.Layout.WGMMA
    k = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=layout)
    k = k + column * size
    seen = (k < plan.S) if plan.S % size else None
    if plan.mask is not None:
      q = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=layout)
      q = q + (self.q0 + self.wg * ROWS)
      rule = jax.tree.unflatten(plan.mask, ()).seen(q, k)
      seen = rule if seen is None else rule & seen
    return seen

  def store(self, run: Running, acc: tuple[jax.Array, ...]) -> None:
    top, total = run.top, run.sums()
    empty = total == 0.0
    if self.masked:
      total = jnp.where(empty, 1.0, total)
    share = 1.0 / total
    start = self.q0 + self.wg * ROWS
    lse = top * self.c + jnp.log2(total)
    if self.masked:
      lse = jnp.where(empty, jnp.inf, lse)
    if self.plan.T % gt.LSE_ROWS:
      layout = plgpu.Layout.WGMMA.reduce(1)
      row = plgpu.broadcasted_iota(jnp.int32, (ROWS,), 0, layout=layout)
      lse = jnp.where(row + start < self.plan.T, lse, jnp.inf)
    if self.work.resident:  # by the item before
      plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    for view, x in zip(self.memory["out"], acc, strict=True):
      view.tiled.at[self.wg][...] = (x * softmax.rows(share, x.shape)).astype(
        self.work.dtype
      )
    self.lse_memory.at[self.wg][...] = lse
    plgpu.commit_smem()
    for view, part in zip(self.memory["out"], self.work.parts, strict=True):
      rows = (self.b, pl.ds(start, ROWS), self.n, self.columns(part))
      plgpu.copy_smem_to_gmem(view.plain.at[self.wg], self.out.at[rows])
    hm.store_vector(
      self.lse_memory.at[self.wg],
      self.lse,
      (self.b, self.n),
      start,
      self.work.rows * self.tiles.q,
    )


def _fade(acc: tuple[jax.Array, ...], by: jax.Array) -> tuple[jax.Array, ...]:
  return tuple(x * softmax.rows(by, x.shape) for x in acc)


def _steps(walk: Walk) -> int:
  assert walk.fixed is not None
  return walk.fixed[-1] - walk.fixed[0]
