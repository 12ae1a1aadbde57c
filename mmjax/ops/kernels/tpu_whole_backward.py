"""Gradients of `tpu_whole`, and the whole with its derivative.

One kernel computes the weights again from q, k and the log of their sums, and
from them all gradients. What scores are shifted by, the mean of a row's
gradients, is the product of the output with its gradient.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mmjax.ops.kernels import tpu_scores as tile
from mmjax.ops.kernels.tpu_call import Call, Plan, of_lines, side_by_side
from mmjax.ops.kernels.tpu_chunks import aligned, pieces
from mmjax.ops.kernels.tpu_heads import (
  Heads,
  Unit,
  cut,
  each,
  each_tile,
  firsts,
  join,
  pipeline,
  spread,
  units,
)
from mmjax.ops.kernels.tpu_whole import forward, keys_first


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
  plan: Plan,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  bias: jax.Array | None,
  leaves: tuple[jax.Array, ...],
  seeds: jax.Array | None,
) -> jax.Array:
  """Computes attention of short sequences.

  Args:
    plan: what is static.
    q: [B K G T H], G query heads of K key heads; or [B T K*G*H].
    k: [B K S H], or [B S K*H].
    v: [B K S H'], or [B S K*H].
    bias: [B|1 K|1 G|1 T|1 S|1] or None.
    leaves: of the mask, int32; [B], [B 1 T] or [B 1 S].
    seeds: of dropout, int32 [B N] or None.

  Returns:
    [B K G T H'], or [B T K*G*H].
  """
  return forward(plan, (q, k, v, bias, leaves, seeds))[0]


def _keep(plan, *args):
  out, lse = forward(plan, args, keep=True)
  return out, (args, out, lse)


def _pull(plan, kept, d_out):
  args, out, lse = kept
  d_q, d_k, d_v, d_bias = _backward(plan, args, out, lse, d_out)
  return d_q, d_k, d_v, d_bias, tuple(None for _ in args[4]), None


attend.defvjp(_keep, _pull)


def _kernel(call: Call, scalars, inputs, extra, outs, scratch):
  rule, biased = call.plan.rule, call.plan.rule.biased
  d_out_ref, out_ref, lse_ref = extra
  dq_ref, dk_ref, dv_ref = outs[:3]
  d_bias_ref: Any = outs[3] if biased else None
  laid = [*inputs[:3], d_out_ref, out_ref]
  sums, kept = scratch, []
  if call.lines is not None:
    sums, kept = scratch[:-6], scratch[-6:]
  heads = Heads(call, scalars, inputs, [*laid, dq_ref], kept)
  if biased:

    @pl.when(call.first([axis for axis in range(3) if call.summed[axis]]))
    def _():
      d_bias_ref[...] = jnp.zeros(d_bias_ref.shape, d_bias_ref.dtype)

  def of_bias(unit, run, ds):
    for axis, n in enumerate(heads.bias.shape[3:]):
      if n == 1:
        ds = ds.sum(axis, keepdims=True)
    d_bias_ref[heads.bias_at(unit, unit.chunk, run)] += ds

  def scores(unit):
    """Computes (masked scores, slope, gradient of the weights) of each run."""
    if not unit.chunk[2]:
      return ((),)
    d_out = heads.alone(heads.turned(d_out_ref, unit, unit.span), unit)
    found, scored = [], heads.scores(unit)
    if not call.tiles.block_k:
      scored = [*scored]  # with the same queries held, while there are keys
    for run, (s, slope) in zip(unit.chunk[2], scored, strict=True):
      parts = [
        tile.dot(heads.keys(heads.v, unit, keys), cut(d_out, queries), 1, 0)
        for queries, keys in pieces(unit.chunk, run)
      ]
      found.append((s, slope, join(parts, 1)))
      yield
    return (found,)

  def gradients(unit, found):
    """Computes (weights that were kept, gradient of the scores) of each run."""
    if not unit.chunk[2]:
      return ((),)
    d_out = heads.turned(d_out_ref, unit, unit.span)
    out = heads.turned(out_ref, unit, unit.span)
    shift = out.astype(jnp.float32) * d_out.astype(jnp.float32)
    shift = shift.sum(0, keepdims=True)
    lse = lse_ref[unit.b, heads.key_head(unit), unit.g, :, unit.span]
    made = []
    for run, (s, slope, dp) in zip(unit.chunk[2], found, strict=True):
      p = tile.power(rule, s - lse)
      ds = p * (heads.thin(dp, unit, run) - shift)
      if biased:
        of_bias(unit, run, ds)
      if slope is not None:
        ds = ds * slope
      kept = heads.thin(p, unit, run)
      made.append((kept.astype(d_out.dtype), ds.astype(d_out.dtype)))
      yield
    return (made,)

  def products(unit, found):
    q = heads.turned(heads.q, unit, unit.span)
    d_out = heads.turned(d_out_ref, unit, unit.span)
    dq: Any = 0.0
    for run, (p, ds) in zip(unit.chunk[2], found, strict=True):
      parts = []
      for queries, keys in pieces(unit.chunk, run):
        wide = aligned(keys, call.S)
        some, kept = (spread(cut(x, queries), keys, wide) for x in (ds, p))
        add(unit, 0, wide, tile.dot(cut(q, queries), some, 1, 1) * rule.scale)
        add(unit, 1, wide, tile.dot(cut(d_out, queries), kept, 1, 1))
        k = heads.turned(heads.k, unit, wide, of_keys=True)
        parts.append(tile.dot(k, some, 1, 0) * rule.scale)
      dq += join(parts, 1)
      yield
    start, stop, runs = unit.chunk
    if not runs:
      dq = jnp.zeros((call.widths[0], stop - start), dq_ref.dtype)
    heads.write(dq_ref, unit, unit.span, dq)

  def add(unit: Unit, which: int, keys: slice, value: jax.Array) -> None:
    """Adds to the sums over chunks and heads; writes where there is one."""
    if sums:
      H = call.widths[which]
      rows = slice(unit.head * H, (unit.head + 1) * H)
      sums[which][unit.slot, rows, keys] += value
      return
    found = unit.memo.setdefault(("keys", which), [])
    found.append(value)
    if len(found) == call.share:
      heads.write_keys((dk_ref, dv_ref)[which], unit, join(found, 0))

  def clear(slots):
    for total in sums:
      for slot in range(slots):
        total[slot] = jnp.zeros(total.shape[1:], total.dtype)

  def write(tiles):
    for unit in firsts(tiles):
      for ref, total in zip((dk_ref, dv_ref), sums, strict=False):
        heads.write_keys(ref, unit, total[unit.slot])

  def compute(tiles, groups):
    stages = scores, gradients, products
    pipeline(units(call, tiles, groups), *stages, turns=call.tiles.block_k > 0)

  if call.heads[2] == 1:

    def several(tiles):
      clear(len(tiles))
      for unit in firsts(tiles):
        heads.lay(laid, unit)
      compute(tiles, [0])
      for unit in firsts(tiles):
        heads.lay_back(dq_ref, unit)
      write(tiles)

    each_tile(call, several)
    return

  def shared(tiles):
    last = heads.program[2]
    pl.when(last == 0)(lambda: clear(1))
    each(
      call.block[2],
      call.tiles.unroll,
      lambda groups: compute(tiles, groups),
    )
    pl.when(last == call.counts[2] - 1)(lambda: write(tiles))

  each_tile(call, shared)


def _backward(
  plan: Plan,
  args: Sequence[Any],
  out: jax.Array,
  lse: jax.Array,
  d_out: jax.Array,
) -> list[Any]:
  q, k, v, bias = args[:4]
  call = Call(plan, keys_first(args), backward=True)
  outs = [
    (jax.ShapeDtypeStruct(x.shape, x.dtype), call.of_heads(x, blocked))
    for x, blocked in ((q, 3), (k, 2), (v, 2))
  ]
  if bias is not None:
    turned = jax.ShapeDtypeStruct(
      (*bias.shape[:3], bias.shape[4], bias.shape[3]), jnp.float32
    )
    outs.append((turned, call.spec(turned.shape, 3)))
  # A query head that is alone with its key head, in one tile, needs no sums.
  alone = call.heads[2] == 1 and len(call.chunks) == 1
  alone = alone and [run[:2] for run in call.chunks[0][2]] == [(0, call.S)]
  scratch = [
    pltpu.VMEM((side_by_side(call), call.share * H, call.S), jnp.float32)
    for H in call.widths
  ]
  found = call.run(
    _kernel,
    "attention_whole_backward",
    [
      (d_out, call.of_heads(d_out, 3)),
      (out, call.of_heads(out, 3)),
      (lse, call.spec(lse.shape, 3)),
    ],
    outs,
    [*([] if alone else scratch), *of_lines(call, q, 6)],
  )
  if bias is None:
    return [*found, None]
  *found, d_bias = found
  return [*found, d_bias.swapaxes(3, 4).astype(bias.dtype)]
