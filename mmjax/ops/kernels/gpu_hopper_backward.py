"""Gradients of attention on Hopper: dq, and dk with dv, by wgmma and TMA.

After "FlashAttention-3", Shah et al. 2024: one warpgroup of a CTA issues the
loads (TMA) into a ring of buffers in shared memory, the others compute, each on
its own 64 rows, with the tensor cores' asynchronous products (wgmma). As in
`gpu_backward`, dq and dk, dv are kernels of their own that compute the weights
anew: nothing is added up by atomics, so results are deterministic.

All warpgroups of a CTA walk over the same tiles, so that barriers match.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mmjax.ops.kernels import gpu_hopper_memory as hm
from mmjax.ops.kernels import gpu_hopper_ring as hr
from mmjax.ops.kernels import gpu_tiles as gt
from mmjax.ops.kernels.gpu_hopper_grid import Grid
from mmjax.ops.kernels.gpu_hopper_ring import BackwardTiles
from mmjax.ops.kernels.gpu_tiles import Plan

MAX_WIDTH = 128
_SMEM = 227 * 1024  # bytes of shared memory that a CTA may take


def refuses(plan: Plan, tiles: BackwardTiles, own: int = 3) -> str | None:
  """Says why the kernels cannot compute a plan with these tiles, or None.

  Nothing of bias, soft-cap, dropout and masks with data, which they do not
  know of.

  Args:
    plan: the call.
    tiles: to be used.
    own: arrays of which each warpgroup keeps its rows: 3 in `d_q`, which has
      one result, and 2 in `d_kv`, which has two.
  """
  if plan.H != plan.width or plan.H % 8 or not 8 <= plan.H <= MAX_WIDTH:
    return (
      f"head_dim {plan.H} and value width {plan.width}; it takes equal ones, a "
      f"multiple of 8 up to {MAX_WIDTH}"
    )
  if tiles.step not in (64, 128) or tiles.stages < 2:
    return f"{tiles}; step is 64 or 128, stages at least 2"
  if tiles.held not in (0, 1, 2):
    return f"{tiles}; held are 0 to 2"
  if tiles.wgs not in (1, 2, 3):
    return f"{tiles}; wgs are 1 to 3"
  if tiles.resident and tiles.wgs == 1:
    return f"{tiles}; a resident CTA has wgs of 2 or 3"
  others = tiles.stages * tiles.step
  mine = tiles.rows * (4 if tiles.resident else own)  # with those of results
  wide = sum(size for _, size in hm.split(plan.H))
  size = 2 * wide * (mine + 2 * others) + 8 * max(tiles.rows, others) + 4096
  if size > _SMEM:
    return f"{tiles} of width {plan.H}; {size} bytes of shared memory"
  return None


def d_q(
  plan: Plan,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  d_out: jax.Array,
  lse: jax.Array,
  out: jax.Array,
  tiles: BackwardTiles,
) -> tuple[jax.Array, jax.Array]:
  """Computes the gradient of q, scale (p * (d_out v' - delta)) k, and delta.

  Args:
    plan: without bias, soft-cap, dropout and data leaves of the mask; H and
      width are alike, a multiple of 8 up to `MAX_WIDTH`.
    q, d_out, out: [B T N H], bfloat16 or float16.
    k, v: [B S K H].
    lse: log2 of each row's sum of exp2, float32 [B N T'] with T' = up(T, 128);
      +inf past T and of rows without keys.
    tiles: how to cut it.

  Returns:
    [B T N H] in the dtype of q, and delta, the row sums of out * d_out, float32
    [B N T'], 0 past T.

  Raises:
    ValueError: what `refuses` says.
  """
  _check(plan, tiles, own=3)
  step, dtype, parts = tiles.step, q.dtype, len(hm.split(plan.H))
  block = gt.Tiles(q=tiles.rows, k=step)
  kinds = plan.kinds((), block)
  walk = gt.walk(kinds, tail=plan.S % step > 0)
  rows = pl.cdiv(plan.T, tiles.rows)
  grid = Grid(plan.B, plan.N, rows, walk.last_first, tiles.resident)

  def kernel(q_ref, k_ref, v_ref, d_out_ref, lse_ref, out_ref, *refs):
    tables = refs[: len(walk.tables)]
    d_q_ref, delta_ref, own, slots, ready, signals, *more = refs[
      len(walk.tables) :
    ]
    q_own, d_out_own, out_own, lse_own, delta_own = own
    k_slots, v_slots = slots
    own_free, results = more if grid.resident else (None, q_own)
    wg = lax.axis_index(hm.WG)

    def at(item):
      b, n, row = grid.place(item)
      q0 = row * tiles.rows
      head = lax.div(n, jnp.int32(plan.group)) if plan.group > 1 else n

      def load_own(w):
        mine = (b, pl.ds(q0 + w * hm.ROWS, hm.ROWS), n)
        hr.fetch(q_ref, mine, q_own, w, ready.at[w])
        hr.fetch(d_out_ref, mine, d_out_own, w, ready.at[w])
        hr.fetch(out_ref, mine, out_own, w, ready.at[w])
        start = q0 + w * hm.ROWS
        hm.load_vector(lse_ref, (b, n), start, lse_own.at[w], ready.at[w])

      def load(slot, _, column, barrier):
        some = (b, pl.ds(column * step, step), head)
        hr.fetch(k_ref, some, k_slots, slot, barrier)
        hr.fetch(v_ref, some, v_slots, slot, barrier)

      done = item.done if grid.resident else None
      ring = hr.Ring(
        tiles, walk, tables, row, 1, load, *signals, late=True, done=done
      )
      return ring, load_own, functools.partial(compute, b, n, row, ring)

    def compute(b, n, row, ring, leave):
      start = row * tiles.rows + wg * hm.ROWS
      plgpu.barrier_wait(ready.at[wg])
      q = hr.mine(q_own, wg, tiles.held > 0)
      d_out = hr.mine(d_out_own, wg, tiles.held > 1)
      lse = hr.vector(lse_own.at[wg], 0, step)
      sums = hr.row_sums(hr.tiled(out_own, wg), hr.tiled(d_out_own, wg))
      delta = hr.vector(sums, 0, step)
      if grid.resident:  # what the item before stored
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
      delta_own.at[wg][...] = sums
      plgpu.commit_smem()
      hm.store_vector(
        delta_own.at[wg], delta_ref, (b, n), start, rows * tiles.rows
      )

      def accumulate(*acc):
        def body(column, count, partial):
          slot = ring.take(count)
          k, v = hr.tiled(k_slots, slot), hr.tiled(v_slots, slot)

          def slopes(scores, d_weights):
            hr.multiply(scores, q, k)
            hr.multiply(d_weights, d_out, v)
            # The products of the step before are done, those of this one not.
            plgpu.wgmma_wait(2 * parts)
            ring.release_before(count)
            logits = plgpu.wgmma_accumulator_load(scores, wait_n=parts)
            weights = jnp.exp2(logits * (plan.scale * gt.LOG2E) - lse())
            if partial:
              seen = hr.seen(plan, start, column * step, step)
              weights = jnp.where(seen, weights, 0.0)
            slope = plgpu.wgmma_accumulator_load(d_weights, wait_n=0)
            return (weights * (slope - delta())).astype(dtype)

          d_logits = pl.run_scoped(slopes, hr.acc(step), hr.acc(step))
          hr.add(acc, d_logits, k)
          return count + 1

        hr.run(walk, tables, row, body, jnp.int32(0))
        return tuple(x[...] for x in acc)

      acc = pl.run_scoped(accumulate, *hr.accs(plan.H))
      leave()
      mine = (b, pl.ds(start, hm.ROWS), n)
      hr.store([x * plan.scale for x in acc], results, wg, d_q_ref, mine)

    hr.share(grid, tiles, at, own_free)

  own = hr.shared(tiles.wgs, hm.ROWS, plan.H, dtype)
  slot = hr.shared(tiles.stages, step, plan.H, dtype)
  vectors = plgpu.SMEM((tiles.wgs, hm.ROWS), jnp.float32)
  arrays = (q, k, v, d_out, lse, out)
  length = gt.up(plan.T, gt.LSE_ROWS)
  more = (hr.own_free(tiles), own) if grid.resident else ()
  found, delta = hr.call(
    grid,
    tiles,
    kernel,
    "attention_dq",
    plan.cost(6 * plan.H, kinds, *arrays, q, lse),
    [
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      jax.ShapeDtypeStruct((plan.B, plan.N, length), jnp.float32),
    ],
    [
      (own, own, own, vectors, vectors),
      (slot, slot),
      plgpu.Barrier(num_arrivals=3 * parts + 1, num_barriers=tiles.wgs),
      hr.signals(tiles, 2 * parts),
      *more,
    ],
  )(*arrays, *walk.tables)
  if rows * tiles.rows < length:  # rows of no CTA
    delta = jnp.where(jnp.arange(length) < plan.T, delta, 0.0)
  return found, delta


def d_kv(
  plan: Plan,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  d_out: jax.Array,
  lse: jax.Array,
  delta: jax.Array,
  tiles: BackwardTiles,
) -> tuple[jax.Array, jax.Array]:
  """Computes the gradients of k and of v.

  They are scale (p * (d_out v' - delta))' q and p' d_out.

  With grouped heads a CTA takes the queries of all heads of its group, one
  head after the other.

  Args:
    plan, q, k, v, d_out, lse, tiles: as in `d_q`.
    delta: as `d_q` returns it.

  Returns:
    [B S K H] in the dtype of k, and the same of v.

  Raises:
    ValueError: what `refuses` says.
  """
  _check(plan, tiles, own=2)
  step, dtype, parts = tiles.step, k.dtype, len(hm.split(plan.H))
  # dk, dv and two tiles of scores are 192 registers at width 128.
  widest = 96 if plan.mask is None else 80  # that ptxas does not serialize
  overlap = plan.H <= (64 if tiles.held else widest)
  early = overlap or plan.mask is None
  block = gt.Tiles(q=step, k=tiles.rows)
  # Queries past T weigh nothing (their lse is +inf), and what keys past S get
  # is not stored: no tail needs the predicate.
  kinds = plan.kinds((), block)
  walk = gt.walk(kinds.swapaxes(-1, -2), tail=False)
  rows = pl.cdiv(plan.S, tiles.rows)
  grid = Grid(plan.B, plan.K, rows, walk.last_first, tiles.resident)

  def kernel(q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, *refs):
    tables = refs[: len(walk.tables)]
    d_k_ref, d_v_ref, own, slots, ready, signals, *more = refs[
      len(walk.tables) :
    ]
    k_own, v_own = own
    q_slots, d_out_slots, lse_slots, delta_slots = slots
    own_free, d_k_own, d_v_own = more if grid.resident else (None, *own)
    wg = lax.axis_index(hm.WG)

    def at(item):
      b, head, row = grid.place(item)
      k0 = row * tiles.rows

      def load_own(w):
        mine = (b, pl.ds(k0 + w * hm.ROWS, hm.ROWS), head)
        hr.fetch(k_ref, mine, k_own, w, ready.at[w])
        hr.fetch(v_ref, mine, v_own, w, ready.at[w])

      def load(slot, g, column, barrier):
        n, some = head * plan.group + g, pl.ds(column * step, step)
        hr.fetch(q_ref, (b, some, n), q_slots, slot, barrier)
        hr.fetch(d_out_ref, (b, some, n), d_out_slots, slot, barrier)
        for ref, to in ((lse_ref, lse_slots), (delta_ref, delta_slots)):
          plgpu.copy_gmem_to_smem(ref.at[b, n, some], to.at[slot], barrier)

      done = item.done if grid.resident else None
      ring = hr.Ring(
        *(tiles, walk, tables, row, plan.group, load, *signals),
        late=overlap,
        done=done,
      )
      return ring, load_own, functools.partial(compute, b, head, row, ring)

    def compute(b, head, row, ring, leave):
      start = row * tiles.rows + wg * hm.ROWS
      plgpu.barrier_wait(ready.at[wg])
      k = hr.mine(k_own, wg, tiles.held > 0)
      v = hr.mine(v_own, wg, tiles.held > 1)

      def accumulate(*acc):
        d_k, d_v = acc[:parts], acc[parts:]

        def body(column, count, partial):
          slot = ring.take(count)
          q, d_out = hr.tiled(q_slots, slot), hr.tiled(d_out_slots, slot)

          def products(scores, d_weights):
            hr.multiply(scores, k, q)
            hr.multiply(d_weights, v, d_out)
            read = functools.partial(hr.vector, lse_slots.at[slot], 1, step)
            if overlap:
              # The products of the step before are done, those of this not.
              plgpu.wgmma_wait(2 * parts)
              ring.release_before(count)
              logits = plgpu.wgmma_accumulator_load(scores, wait_n=parts)
              lse = read()
            else:
              # These products leave room for it: 0.52 ms for 0.54 at 2048.
              lse = read()
              logits = plgpu.wgmma_accumulator_load(scores, wait_n=parts)
            weights = jnp.exp2(logits * (plan.scale * gt.LOG2E) - lse())
            if partial:
              seen = hr.seen(plan, column * step, start, step, q_axis=1)
              weights = jnp.where(seen, weights, 0.0)
            weights_16 = weights.astype(dtype)
            if early:
              hr.add(d_v, weights_16, d_out)
            delta = hr.vector(delta_slots.at[slot], 1, step)
            slope = plgpu.wgmma_accumulator_load(
              d_weights, wait_n=parts if early else 0
            )
            d_logits = (weights * (slope - delta())).astype(dtype)
            if not early:
              hr.add(d_v, weights_16, d_out)
            hr.add(d_k, d_logits, q)

          pl.run_scoped(products, hr.acc(step), hr.acc(step))
          if not overlap:
            plgpu.wgmma_wait(0)
            ring.release(slot)
          return count + 1

        def one(_, count):
          return hr.run(walk, tables, row, body, count)

        if plan.group == 1:
          one(0, jnp.int32(0))
        else:
          lax.fori_loop(0, plan.group, one, jnp.int32(0))
        return tuple(x[...] for x in acc)

      acc = pl.run_scoped(accumulate, *hr.accs(plan.H), *hr.accs(plan.H))
      leave()
      if grid.resident:  # what the item before stored
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
      mine = (b, pl.ds(start, hm.ROWS), head)
      d_k = [x * plan.scale for x in acc[:parts]]
      hr.store(d_k, d_k_own, wg, d_k_ref, mine)
      hr.store(acc[parts:], d_v_own, wg, d_v_ref, mine)

    hr.share(grid, tiles, at, own_free)

  own = hr.shared(tiles.wgs, hm.ROWS, plan.H, dtype)
  slot = hr.shared(tiles.stages, step, plan.H, dtype)
  vectors = plgpu.SMEM((tiles.stages, step), jnp.float32)
  more = (hr.own_free(tiles), own, own) if grid.resident else ()
  return hr.call(
    grid,
    tiles,
    kernel,
    "attention_dkv",
    plan.cost(8 * plan.H, kinds, q, k, v, d_out, lse, delta, k, v),
    [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
    [
      (own, own),
      (slot, slot, vectors, vectors),
      plgpu.Barrier(num_arrivals=2 * parts, num_barriers=tiles.wgs),
      hr.signals(tiles, 2 * parts + 2),
      *more,
    ],
  )(q, k, v, d_out, lse, delta, *walk.tables)


def _check(plan: Plan, tiles: BackwardTiles, own: int) -> None:
  why = refuses(plan, tiles, own)
  if why is not None:
    raise ValueError(f"the Hopper kernel refuses {why}.")
