"""Gradients of `tpu_flash`, and the whole with its derivative.

One kernel goes along the keys, computes the weights again from q, k and the log
of their sums, and keeps the gradients of all queries of a key head in vector
memory until the last block: nothing of T x S, and no partial sums, go to HBM.
Where they are too many (above 32k of a head of 128 in bfloat16), the queries
have a kernel of their own. A bias that is trained has one more: its gradient
is summed over the rows and heads that share it, before it is written.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mmjax.ops.kernels import tpu_band, tpu_flash
from mmjax.ops.kernels import tpu_scores as tile
from mmjax.ops.kernels.tpu_flash import Call, Plan, Tile

# Bytes of the queries' gradients that are kept in vector memory, at most, and
# what the rest of a program is left: in all less than the 64 MiB of v5p.
_MOST = 32 * 2**20
_TILES = 28 * 2**20


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
  """Computes attention; arguments as of `tpu_flash.Call`.

  Returns:
    [B N T H'].
  """
  return tpu_flash.forward(plan, (q, k, v, bias, leaves, seeds))[0]


def _keep(plan, *args):
  out, lse = tpu_flash.forward(plan, args)
  return out, (args, out, lse)


def _pull(plan, kept, d_out):
  args, out, lse = kept
  bias, leaves = args[3:5]
  # What every score's gradient is shifted by: the mean of those of its row.
  shift = jnp.einsum(
    "BNTH,BNTH->BNT", out, d_out, preferred_element_type=jnp.float32
  )[:, :, None]
  rows = (d_out, lse, shift)
  fused = _kept(plan, *args[:2]) <= _MOST
  d_k, d_v, *rest = _of_keys(plan, args, rows, fused)
  d_q = rest[0] if fused else _of_queries(plan, args, rows)
  d_bias: Any = None
  if bias is not None:
    d_bias = (_of_band if plan.rule.band else _of_bias)(plan, args, rows)
  none = tuple(None for _ in leaves)
  return d_q, d_k, d_v, d_bias, none, None


attend.defvjp(_keep, _pull)


def _kept(plan: Plan, q: jax.Array, k: jax.Array) -> int:
  """Returns the bytes of the queries' gradients of a key head.

  Once as sums in float32, and twice as blocks that are written.
  """
  (_, N, T, H), block = q.shape, min(plan.tiles.block_q, q.shape[2])
  length, width = -(-T // block) * block, -(-H // 128) * 128
  return N // k.shape[1] * length * width * (4 + 2 * q.dtype.itemsize)


def _extra(call: Call, rows: Sequence[jax.Array]) -> list[Any]:
  d_out, lse, shift = rows
  return [
    (d_out, call.of_queries(d_out.shape[-1])),
    (lse, call.of_rows()),
    (shift, call.of_rows()),
  ]


def _gradient(
  t: Tile, q: jax.Array, k: jax.Array, v: jax.Array, d_out: jax.Array, partial
):
  """Computes (weights, gradient of the scores after the soft-cap, slope)."""
  _, lse_ref, shift_ref = t.rest[:3]
  lse = tile.vector(lse_ref[...], 1 - t.keys)
  shift = tile.vector(shift_ref[...], 1 - t.keys)
  s, slope = t.scores(q, k, partial)
  p = tile.power(t.rule, s - lse)
  a, b = (d_out, v) if t.keys == 1 else (v, d_out)
  ds = p * (t.thin(tile.dot(a, b, 1, 1)) - shift)
  return p, ds, slope


def _scaled(t: Tile, ds: jax.Array, slope: jax.Array | None, dtype: Any):
  """Returns the gradient of the products q k'."""
  ds = ds if slope is None else ds * slope
  return (ds * t.rule.scale).astype(dtype)


def _of_queries(plan, args, rows):
  q = args[0]
  B, N, _, H = q.shape
  call = Call(plan, args, grid=(B, N, None), place=lambda b, n, p: (b, n, p))
  return call.run(
    _queries_kernel,
    "attention_flash_dq",
    _extra(call, rows),
    [(jax.ShapeDtypeStruct(q.shape, q.dtype), call.of_queries(H))],
    [pltpu.VMEM((call.block_q, H), jnp.float32)],
    products=3,
    parallel=2,
  )[0]


def _queries_kernel(call: Call, *refs):
  t = Tile(call, refs, keys=1)
  q_ref, k_ref, v_ref = t.refs[:3]
  d_out_ref = t.rest[0]
  dq_ref, sum_ref = t.rest[3:]

  @pl.when(t.step.first)
  def _():
    sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)

  def body(partial):
    q, k = q_ref[...], t.per_key(k_ref, partial)
    v = t.per_key(v_ref, partial)
    _, ds, slope = _gradient(t, q, k, v, d_out_ref[...], partial)
    sum_ref[...] += tile.dot(_scaled(t, ds, slope, q.dtype), k, 1, 0)

  t.each_kind(body)

  @pl.when(t.step.last)
  def _():
    dq_ref[...] = sum_ref[...].astype(dq_ref.dtype)


def _of_keys(plan, args, rows, fused: bool):
  q, k, v, bias = args[:4]
  if plan.rule.band:
    args = (q, k, v, tpu_band.turned(bias), *args[4:])
  B, K = k.shape[:2]
  _, N, T, H = q.shape
  G = N // K
  # Heads that share keys come innermost: their sum stays in place.
  call = Call(
    plan,
    args,
    grid=(B, K, None, G),
    place=lambda b, n, p, g: (b, n * G + g, p),
    keys_major=True,
  )
  outs = [
    (jax.ShapeDtypeStruct(x.shape, x.dtype), call.of_keys(x.shape[-1]))
    for x in (k, v)
  ]
  scratch = [
    pltpu.VMEM((call.block_k, x.shape[-1]), jnp.float32) for x in (k, v)
  ]
  if fused:
    spec = call.spec((G, T, H), lambda b, n, s: (b, n // G, 0, 0), lead=1)
    outs.append((jax.ShapeDtypeStruct(q.shape, q.dtype), spec))
    size = (G, call.steps.shape[0], call.block_q, H)
    scratch.append(pltpu.VMEM(size, jnp.float32))
  return call.run(
    functools.partial(_keys_kernel, fused),
    "attention_flash_backward" if fused else "attention_flash_dkv",
    _extra(call, rows),
    outs,
    scratch,
    products=5 if fused else 4,
    parallel=2,
    memory=max(tpu_flash.VMEM, _kept(plan, q, k) + _TILES) if fused else None,
  )


def _keys_kernel(fused: bool, call: Call, *refs):
  t = Tile(call, refs, keys=0)
  q_ref, k_ref, v_ref = t.refs[:3]
  d_out_ref = t.rest[0]
  outs, sums = t.rest[3 : 5 + fused], t.rest[5 + fused :]
  p, g = t.programs[2:]

  @pl.when(t.step.first & (g == 0))
  def _():
    for ref in sums[:2]:
      ref[...] = jnp.zeros(ref.shape, jnp.float32)

  if fused:
    pl.when((p == 0) & (g == 0))(lambda: _clear(sums[2]))

  def body(partial):
    q, d_out = t.queries(q_ref, partial), t.queries(d_out_ref, partial)
    k, v = k_ref[...], v_ref[...]
    if fused:
      k, v = t.per_key(k_ref, partial), t.per_key(v_ref, partial)
    p, ds, slope = _gradient(t, q, k, v, d_out, partial)
    if partial and call.T % call.block_q:
      # Past the end there may be anything, NaN too.
      inside = t.q < call.T
      p, ds = jnp.where(inside, p, 0.0), jnp.where(inside, ds, 0.0)
    ds = _scaled(t, ds, slope, q.dtype)
    sums[0][...] += tile.dot(ds, q, 1, 0)
    sums[1][...] += tile.dot(t.thin(p).astype(q.dtype), d_out, 1, 0)
    if fused:
      sums[2][g, t.step.q] += tile.dot(ds, k, 0, 0)

  t.each_kind(body)

  @pl.when(t.step.last & (g == call.group - 1))
  def _():
    for out, total in zip(outs[:2], sums[:2], strict=True):
      out[...] = total[...].astype(out.dtype)

  if fused:
    last = (p == pl.num_programs(2) - 1) & (g == call.group - 1)
    pl.when(last)(lambda: _write(sums[2], outs[2]))


def _clear(sums):
  """Fills sums [G blocks q H] with zeros, block by block."""
  G, count = sums.shape[:2]

  def one(i, _):
    sums[i // count, i % count] = jnp.zeros(sums.shape[2:], jnp.float32)

  jax.lax.fori_loop(0, G * count, one, None)


def _write(sums, out):
  """Writes sums [G blocks q H] to [G T H]; T need not fill the blocks."""
  (G, _, size, _), T = sums.shape, out.shape[1]
  whole = T // size

  def one(i, _):
    g, block = i // whole, i % whole
    rows = pl.ds(pl.multiple_of(block * size, size), size)
    out[g, rows] = sums[g, block].astype(out.dtype)

  jax.lax.fori_loop(0, G * whole, one, None)
  if T % size:
    for g in range(G):
      rest = sums[g, whole, : T % size]
      out[g, whole * size :] = rest.astype(out.dtype)


def _of_bias(plan: Plan, args: Any, rows: Sequence[jax.Array]) -> jax.Array:
  q, bias = args[0], args[3]
  B, N = q.shape[:2]
  rows_full, heads_full = bias.shape[0] > 1, bias.shape[1] > 1
  heads = 1 if heads_full else N  # that share a bias

  def place(b, n, p, r):
    return (
      b if rows_full else r // heads,
      n if heads_full else r % heads,
      p,
    )

  call = Call(
    plan,
    args,
    grid=(*bias.shape[:2], None, (1 if rows_full else B) * heads),
    place=place,
    keys_major=bias.shape[2] == 1 and bias.shape[3] > 1,
    every=True,
  )
  found = call.run(
    _bias_kernel,
    "attention_flash_dbias",
    _extra(call, rows),
    [(jax.ShapeDtypeStruct(bias.shape, jnp.float32), call.of_bias(bias.shape))],
    [],
    products=2,
    parallel=2,
  )[0]
  return found.astype(bias.dtype)


def _of_band(plan: Plan, args: Any, rows: Sequence[jax.Array]) -> jax.Array:
  q, eight = args[0], args[3]
  B, N = q.shape[:2]
  # All windows of a head stay in place, while its rows and steps go by.
  call = Call(plan, args, grid=(N, None, B), place=lambda n, p, b: (b, n, p))
  spec = call.spec(eight.shape[1:], lambda b, n, s: (n, 0, 0, 0), lead=1)
  return call.run(
    _band_kernel,
    "attention_flash_dband",
    _extra(call, rows),
    [(jax.ShapeDtypeStruct(eight.shape, jnp.float32), spec)],
    [],
    products=2,
    parallel=1,
  )[0]


def _band_kernel(call: Call, *refs):
  t = Tile(call, refs, keys=1)
  out_ref = t.rest[3]

  @pl.when((t.programs[1] == 0) & (t.programs[2] == 0))
  def _():
    out_ref[...] = jnp.zeros(out_ref.shape, jnp.float32)

  def body(partial):
    out_ref[call.diagonal(t.step)] += tpu_band.fold(_of_scores(t, partial))

  t.each_kind(body)


def _of_scores(t: Tile, partial: bool) -> jax.Array:
  """Computes the gradient of a tile's bias [q k]."""
  q, k, v = (ref[...] for ref in t.refs[:3])
  _, ds, _ = _gradient(t, q, k, v, t.rest[0][...], partial)
  allowed = t.allowed() if partial else None
  return ds if allowed is None else jnp.where(allowed, ds, 0.0)


def _bias_kernel(call: Call, *refs):
  t = Tile(call, refs, keys=1)
  out_ref = t.rest[3]
  p, r = t.programs[2:]
  shape = call.inputs[3].shape[2:]
  summed = [axis for axis, size in enumerate(shape) if size == 1]
  new = r == 0
  if len(summed) == 2:
    new = new & (p == 0)
  elif summed:
    new = new & t.step.first

  @pl.when(new)
  def _():
    out_ref[...] = jnp.zeros(out_ref.shape, jnp.float32)

  def body(partial):
    ds = _of_scores(t, partial)
    for axis in summed:
      ds = ds.sum(axis, keepdims=True)
    out_ref[...] += ds

  t.each_kind(body)
