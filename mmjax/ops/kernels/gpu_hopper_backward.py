"""Gradients of attention on Hopper: dq, and dk with dv, by wgmma and TMA.

After "FlashAttention-3", Shah et al. 2024: one warpgroup of a CTA issues the
loads (TMA) into a ring of buffers in shared memory, the others compute, each on
its own 64 rows, with the tensor cores' asynchronous products (wgmma). As in
`gpu_backward`, dq and dk, dv are kernels of their own that compute the weights
anew: nothing is added up by atomics, so results are deterministic.

All warpgroups of a CTA walk over the same tiles, so that barriers match.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mmjax.ops.kernels import gpu_hopper_memory as hm
from mmjax.ops.kernels import gpu_hopper_ring as hr
from mmjax.ops.kernels import gpu_tiles as gt
from mmjax.ops.kernels.gpu_hopper_ring import BackwardTiles
from mmjax.ops.kernels.gpu_tiles import Plan

MAX_WIDTH = 128
_SMEM = 227 * 1024  # bytes of shared memory that a CTA may take


def refuses(plan: Plan, tiles: BackwardTiles) -> str | None:
  """Says why the kernels cannot compute a plan with these tiles, or None.

  Nothing of bias, soft-cap, dropout and masks with data, which they do not
  know of.
  """
  if plan.H != plan.width or plan.H % 8 or not 8 <= plan.H <= MAX_WIDTH:
    return (
      f"head_dim {plan.H} and value width {plan.width}; it takes equal ones, a "
      f"multiple of 8 up to {MAX_WIDTH}"
    )
  if tiles.step not in (64, 128) or tiles.stages < 2:
    return f"{tiles}; step is 64 or 128, stages at least 2"
  if tiles.wgs not in (1, 2, 3):
    return f"{tiles}; wgs are 1 to 3"
  rows = 2 * (tiles.rows + tiles.stages * tiles.step)
  wide = sum(size for _, size in hm.split(plan.H))
  size = rows * (2 * wide + 4) + 4096
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
  delta: jax.Array,
  tiles: BackwardTiles,
) -> jax.Array:
  """Computes the gradient of q: scale (p * (d_out v' - delta)) k.

  Args:
    plan: without bias, soft-cap, dropout and data leaves of the mask; H and
      width are alike, a multiple of 8 up to `MAX_WIDTH`.
    q, d_out: [B T N H], bfloat16 or float16.
    k, v: [B S K H].
    lse: log2 of each row's sum of exp2, float32 [B N T'] with T' a multiple of
      4 (TMA asks for rows of 16 bytes); +inf past T and of rows without keys.
    delta: row sums of out * d_out, of the same shape; 0 past T.
    tiles: how to cut it.

  Returns:
    [B T N H] in the dtype of q.

  Raises:
    ValueError: what `refuses` says.
  """
  _check(plan, tiles)
  step, dtype, parts = tiles.step, q.dtype, len(hm.split(plan.H))
  block = gt.Tiles(q=tiles.rows, k=step)
  kinds = plan.kinds((), block)
  walk = gt.walk(kinds, tail=plan.S % step > 0)
  grid = hr.Grid(plan.B, plan.N, pl.cdiv(plan.T, tiles.rows), tiles, walk)

  def kernel(q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, *refs):
    tables = refs[: len(walk.tables)]
    out_ref, own, slots, ready, signals = refs[len(walk.tables) :]
    q_own, d_out_own, lse_own, delta_own = own
    k_slots, v_slots = slots
    b, n, row, wg = grid.place()
    q0 = row * tiles.rows
    head = lax.div(n, jnp.int32(plan.group)) if plan.group > 1 else n

    def load_own(w):
      mine = pl.ds(q0 + w * hm.ROWS, hm.ROWS)
      hr.fetch(q_ref, (b, mine, n), q_own, w, ready.at[w])
      hr.fetch(d_out_ref, (b, mine, n), d_out_own, w, ready.at[w])
      for ref, to in ((lse_ref, lse_own), (delta_ref, delta_own)):
        plgpu.copy_gmem_to_smem(ref.at[b, n, mine], to.at[w], ready.at[w])

    def load(slot, _, column, barrier):
      at = (b, pl.ds(column * step, step), head)
      hr.fetch(k_ref, at, k_slots, slot, barrier)
      hr.fetch(v_ref, at, v_slots, slot, barrier)

    ring = hr.Ring(tiles, walk, tables, row, 1, load, *signals)

    def compute():
      plgpu.barrier_wait(ready.at[wg])
      q, d_out = hr.mine(q_own, wg, tiles), hr.mine(d_out_own, wg, tiles)
      lse = hr.vector(lse_own.at[wg], 0, step)
      delta = hr.vector(delta_own.at[wg], 0, step)

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
              seen = hr.seen(plan, q0 + wg * hm.ROWS, column * step, step)
              weights = jnp.where(seen, weights, 0.0)
            slope = plgpu.wgmma_accumulator_load(d_weights, wait_n=0)
            return (weights * (slope - delta())).astype(dtype)

          d_logits = pl.run_scoped(slopes, hr.acc(step), hr.acc(step))
          hr.add(acc, d_logits, k)
          return count + 1

        hr.run(walk, tables, row, body, jnp.int32(0))
        return tuple(x[...] for x in acc)

      acc = pl.run_scoped(accumulate, *hr.accs(plan.H))
      at = (b, pl.ds(q0 + wg * hm.ROWS, hm.ROWS), n)
      hr.store([x * plan.scale for x in acc], q_own, wg, out_ref, at)
      plgpu.wait_smem_to_gmem(0)

    grid.run(wg, load_own, ring, compute)

  own = hr.shared(tiles.wgs, hm.ROWS, plan.H, dtype)
  slot = hr.shared(tiles.stages, step, plan.H, dtype)
  vectors = plgpu.SMEM((tiles.wgs, hm.ROWS), jnp.float32)
  return grid.call(
    kernel,
    "attention_dq",
    plan.cost(6 * plan.H, kinds, q, k, v, d_out, lse, delta, q),
    jax.ShapeDtypeStruct(q.shape, q.dtype),
    [
      (own, own, vectors, vectors),
      (slot, slot),
      plgpu.Barrier(num_arrivals=2 * parts + 2, num_barriers=tiles.wgs),
      hr.signals(tiles, 2 * parts),
    ],
  )(q, k, v, d_out, lse, delta, *walk.tables)


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
    plan, q, k, v, d_out, lse, delta, tiles: as in `d_q`.

  Returns:
    [B S K H] in the dtype of k, and the same of v.

  Raises:
    ValueError: what `refuses` says.
  """
  _check(plan, tiles)
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
  grid = hr.Grid(plan.B, plan.K, pl.cdiv(plan.S, tiles.rows), tiles, walk)

  def kernel(q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, *refs):
    tables = refs[: len(walk.tables)]
    d_k_ref, d_v_ref, own, slots, ready, signals = refs[len(walk.tables) :]
    k_own, v_own = own
    q_slots, d_out_slots, lse_slots, delta_slots = slots
    b, head, row, wg = grid.place()
    k0 = row * tiles.rows

    def load_own(w):
      at = (b, pl.ds(k0 + w * hm.ROWS, hm.ROWS), head)
      hr.fetch(k_ref, at, k_own, w, ready.at[w])
      hr.fetch(v_ref, at, v_own, w, ready.at[w])

    def load(slot, g, column, barrier):
      n, some = head * plan.group + g, pl.ds(column * step, step)
      hr.fetch(q_ref, (b, some, n), q_slots, slot, barrier)
      hr.fetch(d_out_ref, (b, some, n), d_out_slots, slot, barrier)
      for ref, to in ((lse_ref, lse_slots), (delta_ref, delta_slots)):
        plgpu.copy_gmem_to_smem(ref.at[b, n, some], to.at[slot], barrier)

    ring = hr.Ring(tiles, walk, tables, row, plan.group, load, *signals)

    def compute():
      plgpu.barrier_wait(ready.at[wg])
      k, v = hr.mine(k_own, wg, tiles), hr.mine(v_own, wg, tiles)

      def accumulate(*acc):
        d_k, d_v = acc[:parts], acc[parts:]

        def body(column, count, partial):
          slot = ring.take(count)
          q, d_out = hr.tiled(q_slots, slot), hr.tiled(d_out_slots, slot)

          def products(scores, d_weights):
            hr.multiply(scores, k, q)
            hr.multiply(d_weights, v, d_out)
            if overlap:
              # The products of the step before are done, those of this not.
              plgpu.wgmma_wait(2 * parts)
              ring.release_before(count)
            logits = plgpu.wgmma_accumulator_load(scores, wait_n=parts)
            lse = hr.vector(lse_slots.at[slot], 1, step)
            weights = jnp.exp2(logits * (plan.scale * gt.LOG2E) - lse())
            if partial:
              seen = hr.seen(
                plan, column * step, k0 + wg * hm.ROWS, step, q_axis=1
              )
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
      at = (b, pl.ds(k0 + wg * hm.ROWS, hm.ROWS), head)
      hr.store([x * plan.scale for x in acc[:parts]], k_own, wg, d_k_ref, at)
      hr.store(acc[parts:], v_own, wg, d_v_ref, at)
      plgpu.wait_smem_to_gmem(0)

    grid.run(wg, load_own, ring, compute)

  own = hr.shared(tiles.wgs, hm.ROWS, plan.H, dtype)
  slot = hr.shared(tiles.stages, step, plan.H, dtype)
  vectors = plgpu.SMEM((tiles.stages, step), jnp.float32)
  return grid.call(
    kernel,
    "attention_dkv",
    plan.cost(8 * plan.H, kinds, q, k, v, d_out, lse, delta, k, v),
    [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
    [
      (own, own),
      (slot, slot, vectors, vectors),
      plgpu.Barrier(num_arrivals=2 * parts, num_barriers=tiles.wgs),
      hr.signals(tiles, 2 * parts + 2),
    ],
  )(q, k, v, d_out, lse, delta, *walk.tables)


def _check(plan: Plan, tiles: BackwardTiles) -> None:
  why = refuses(plan, tiles)
  if why is not None:
    raise ValueError(f"the Hopper kernel refuses {why}.")
