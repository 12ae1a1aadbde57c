"""Gradients of attention on a GPU: dq, dk and dv, and the bias' gradient.

Each is a kernel of its own that computes the weights anew, so that none has to
add what another wrote, results do not depend on the order of programs, and
gradients of keys, values or bias that nobody asks for are not computed: XLA
drops the call. That of dq comes first: beside it, it makes what the others
need of the output.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from mmjax.ops import blocks
from mmjax.ops.kernels import gpu_hopper_backward, gpu_hopper_whole
from mmjax.ops.kernels import gpu_tiles as gt
from mmjax.ops.kernels.gpu_hopper_backward import BackwardTiles
from mmjax.ops.kernels.gpu_hopper_whole import Whole
from mmjax.ops.kernels.gpu_tiles import Extra, Plan, Tile


def gradients(
  plan: Plan,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  extra: Extra,
  out: jax.Array,
  lse: jax.Array,
  d_out: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
  """Returns the gradients of q, k, v and the bias (None without one).

  Args:
    plan, extra: as in the forward pass.
    q, k, v: as in the forward pass.
    out: its output [B T N H'].
    lse: log2 of each row's sum, float32 [B N T] or longer, +inf of an empty
      row and past T.
    d_out: the gradient of `out`.
  """
  given = (q, k, v, d_out.astype(q.dtype), lse)
  if isinstance(plan.tiles.d_q, Whole):
    lse = gt.fit(lse, gt.up(plan.T, gt.LSE_ROWS), jnp.inf)
    whole = gpu_hopper_whole.gradients(plan, *given[:4], lse, out)
    return whole[0], whole[1], whole[2], None
  found, delta = d_q(plan, *given, out, extra)
  given = (*given, delta, extra)
  d_bias = None if plan.bias is None else _d_bias(plan, *given)
  d_k, d_v = d_kv(plan, *given)
  return found, d_k, d_v, d_bias


def _d_logits(tile, q, k, v, d_out, lse, delta, partial, **tails):
  """Returns the weights that were kept, and the gradients of logits and qk'.

  By q_axis of the tile, [q k] or [k q]; without the factor `scale`.
  """
  plan, axis = tile.plan, tile.q_axis
  pair = (lambda a, b: (a, b)) if axis == 0 else (lambda a, b: (b, a))
  logits, slope = tile.logits(gt.products(*pair(q, k)))
  weights = jnp.exp2(logits - gt.stand(lse, axis))
  seen = tile.seen(**tails) if partial else None
  if seen is not None:
    weights = jnp.where(seen, weights, 0.0)
  grown = 1.0 / (1.0 - plan.rate)
  d_weights = tile.kept(gt.products(*pair(d_out, v)))
  if plan.rate:
    d_weights = d_weights * grown
  d_logits = weights * (d_weights - gt.stand(delta, axis))
  if seen is not None:
    # Keys past S have garbage for d_weights, and 0 * NaN is NaN.
    d_logits = jnp.where(seen, d_logits, 0.0)
  kept = tile.kept(weights)
  if plan.rate:
    kept = kept * grown
  d_scores = d_logits if slope is None else d_logits * slope
  return kept, d_logits, d_scores


def d_q(plan, q, k, v, d_out, lse, out, extra):
  """Returns the gradient of q, and delta: the row sums of out * d_out.

  That is what the softmax takes off: rowsum(p dp) = rowsum(out d_out); float32
  [B N T], or longer with zeros past T.
  """
  tiles = plan.tiles.d_q
  if isinstance(tiles, BackwardTiles):
    lse = gt.fit(lse, gt.up(plan.T, gt.LSE_ROWS), jnp.inf)
    return gpu_hopper_backward.d_q(plan, q, k, v, d_out, lse, out, tiles)
  lse = gt.fit(lse, plan.T, jnp.inf)
  kinds = plan.kinds(extra.leaves, tiles)
  walk = gt.walk(kinds, tail=plan.S % tiles.k > 0)
  rows = pl.cdiv(plan.T, tiles.q)

  def row(i):
    return rows - 1 - i if walk.last_first else i

  def at(i, n, b):
    return b, n

  def at_kv(i, n, b):
    return b, jax.lax.div(n, plan.group)

  def kernel(
    q_ref,
    k_ref,
    v_ref,
    d_out_ref,
    lse_ref,
    out_ref,
    extra,
    tables,
    d_q_ref,
    delta_ref,
  ):
    q0 = row(pl.program_id(0)) * tiles.q
    size = (q0, tiles.q, plan.T)
    q = gt.load(q_ref, 0, *size, 0, plan.H)
    d_out = gt.load(d_out_ref, 0, *size, 0, plan.width)
    out = gt.load(out_ref, 0, *size, 0, plan.width)
    lse = gt.load_vector(lse_ref, (0, 0), *size, jnp.inf)
    delta = gt.row_sums(out, d_out)
    gt.store_vector(delta_ref, delta, q0, plan.T)

    def body(j, acc, partial):
      k0 = j * tiles.k
      size = (k0, tiles.k, plan.S)
      k = gt.load(k_ref, 0, *size, 0, plan.H, tail=partial)
      v = gt.load(v_ref, 0, *size, 0, plan.width, tail=partial)
      tile = Tile(plan, tiles, extra, 0, 0, q0, k0)
      d_scores = _d_logits(tile, q, k, v, d_out, lse, delta, partial)[2]
      return gt.add_mixed(acc, d_scores, k)

    acc = walk.run(tables, body, gt.zeros(tiles.q, plan.H))
    acc = tuple(x * plan.scale for x in acc)
    gt.store(d_q_ref, acc, q0, plan.T, plan.H)

  results = [
    jax.ShapeDtypeStruct(q.shape, q.dtype),
    jax.ShapeDtypeStruct((plan.B, plan.N, plan.T), jnp.float32),
  ]
  arrays = (q, k, v, d_out, lse, out, extra)
  found, delta = pl.pallas_call(
    kernel,
    grid=(rows, plan.N, plan.B),
    in_specs=[
      gt.array_spec(plan.T, tiles.q, plan.H, at),
      gt.array_spec(plan.S, tiles.k, plan.H, at_kv),
      gt.array_spec(plan.S, tiles.k, plan.width, at_kv),
      gt.array_spec(plan.T, tiles.q, plan.width, at),
      gt.vector_spec(plan.T, tiles.q, at),
      gt.array_spec(plan.T, tiles.q, plan.width, at),
      gt.extra_specs(plan, tiles, extra, at),
      walk.specs(lambda i, n, b: (b, row(i))),
    ],
    out_specs=[
      pl.BlockSpec(
        (None, tiles.q, None, gt.padded(plan.H)),
        lambda i, n, b: (b, row(i), n, 0),
      ),
      pl.BlockSpec((None, None, tiles.q), lambda i, n, b: (b, n, row(i))),
    ],
    out_shape=results,
    cost_estimate=plan.cost(
      2 * (2 * plan.H + plan.width), kinds, arrays, results
    ),
    compiler_params=tiles.params(),
    interpret=plan.interpret,
    name="attention_dq",
  )(*arrays, walk.tables)
  return found, delta


def d_kv(plan, q, k, v, d_out, lse, delta, extra):
  """Returns the gradients of k and v."""
  tiles = plan.tiles.d_kv
  if isinstance(tiles, BackwardTiles):
    length = gt.up(plan.T, gt.LSE_ROWS)
    lse, delta = gt.fit(lse, length, jnp.inf), gt.fit(delta, length, 0.0)
    return gpu_hopper_backward.d_kv(plan, q, k, v, d_out, lse, delta, tiles)
  lse, delta = gt.fit(lse, plan.T, jnp.inf), gt.fit(delta, plan.T, 0.0)
  kinds = plan.kinds(extra.leaves, tiles)
  # Queries past T weigh nothing (their lse is +inf), and what keys past S get
  # is not stored: no tail needs the predicate.
  walk = gt.walk(kinds.swapaxes(-1, -2), tail=False)
  rows = pl.cdiv(plan.S, tiles.k)

  def row(i):
    return rows - 1 - i if walk.last_first else i

  def at(i, h, b):
    return b, h

  def kernel(
    q_ref,
    k_ref,
    v_ref,
    d_out_ref,
    lse_ref,
    delta_ref,
    extra,
    tables,
    d_k_ref,
    d_v_ref,
  ):
    k0 = row(pl.program_id(0)) * tiles.k
    size = (k0, tiles.k, plan.S)
    k = gt.load(k_ref, 0, *size, 0, plan.H)
    v = gt.load(v_ref, 0, *size, 0, plan.width)

    def head(g, acc):
      def body(i, acc, partial):
        d_k, d_v = acc
        q0 = i * tiles.q
        size = (q0, tiles.q, plan.T)
        q = gt.load(q_ref, 0, *size, g, plan.H)
        d_out = gt.load(d_out_ref, 0, *size, g, plan.width)
        lse = gt.load_vector(lse_ref, (0, g), *size, jnp.inf)
        delta = gt.load_vector(delta_ref, (0, g), *size, 0.0)
        tile = Tile(plan, tiles, extra, 0, g, q0, k0, q_axis=1)
        weights, _, d_scores = _d_logits(
          tile, q, k, v, d_out, lse, delta, partial, k_tail=False
        )
        d_v = gt.add_mixed(d_v, weights, d_out)
        return gt.add_mixed(d_k, d_scores, q), d_v

      return walk.run(tables, body, acc)

    acc = gt.zeros(tiles.k, plan.H), gt.zeros(tiles.k, plan.width)
    if plan.group == 1:
      d_k, d_v = head(0, acc)
    else:
      d_k, d_v = jax.lax.fori_loop(0, plan.group, head, acc)
    d_k = tuple(x * plan.scale for x in d_k)
    gt.store(d_k_ref, d_k, k0, plan.S, plan.H)
    gt.store(d_v_ref, d_v, k0, plan.S, plan.width)

  out = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)]
  group = plan.group
  return pl.pallas_call(
    kernel,
    grid=(rows, plan.K, plan.B),
    in_specs=[
      gt.array_spec(plan.T, tiles.q, plan.H, at, heads=group),
      gt.array_spec(plan.S, tiles.k, plan.H, at),
      gt.array_spec(plan.S, tiles.k, plan.width, at),
      gt.array_spec(plan.T, tiles.q, plan.width, at, heads=group),
      gt.vector_spec(plan.T, tiles.q, at, heads=group),
      gt.vector_spec(plan.T, tiles.q, at, heads=group),
      gt.extra_specs(plan, tiles, extra, at, heads=group),
      walk.specs(lambda i, h, b: (b, row(i))),
    ],
    out_specs=[
      pl.BlockSpec(
        (None, tiles.k, None, gt.padded(wide)),
        lambda i, h, b: (b, row(i), h, 0),
      )
      for wide in (plan.H, plan.width)
    ],
    out_shape=out,
    cost_estimate=plan.cost(
      4 * (plan.H + plan.width), kinds, q, k, v, d_out, lse, extra, out
    ),
    compiler_params=tiles.params(),
    interpret=plan.interpret,
    name="attention_dkv",
  )(q, k, v, d_out, lse, delta, extra, walk.tables)


def _d_bias(plan, q, k, v, d_out, lse, delta, extra):
  """Sums the gradients of logits over what the bias is broadcast along.

  A program makes one tile of the result, in a loop over the rows, heads and
  tiles that share it: no array beside the result.
  """
  lse, delta = gt.fit(lse, plan.T, jnp.inf), gt.fit(delta, plan.T, 0.0)
  tiles, shape = plan.tiles.d_bias, plan.bias
  kinds = plan.kinds(extra.leaves, tiles)
  nq, nk = pl.cdiv(plan.T, tiles.q), pl.cdiv(plan.S, tiles.k)
  counts = (plan.B, plan.N, nq, nk)
  many = tuple(n > 1 for n in shape)
  shared = tuple(1 if m else n for m, n in zip(many, counts, strict=True))
  outer = tuple(n if m else 1 for m, n in zip(many, counts, strict=True))
  table = jnp.asarray(kinds, jnp.int32)
  table = table[None] if isinstance(kinds, np.ndarray) else table

  def kernel(
    q_ref,
    k_ref,
    v_ref,
    d_out_ref,
    lse_ref,
    delta_ref,
    extra,
    table_ref,
    out_ref,
  ):
    i, j = pl.program_id(1), pl.program_id(0)
    at_b = jax.lax.div(pl.program_id(2), outer[1])
    at_n = jax.lax.rem(pl.program_id(2), outer[1])

    def add(r, acc):
      # r counts rows, heads and tiles; the last ones run fastest.
      inner = []
      for n in reversed(shared):
        inner.append(jax.lax.rem(r, n) if n > 1 else 0)
        r = jax.lax.div(r, n) if n > 1 else r
      b, n, qi, ki = (
        mine if m else theirs
        for m, mine, theirs in zip(
          many, (at_b, at_n, i, j), reversed(inner), strict=True
        )
      )

      def block(acc):
        q_size = (qi * tiles.q, tiles.q, plan.T)
        k_size = (ki * tiles.k, tiles.k, plan.S)
        h = jax.lax.div(n, plan.group) if plan.group > 1 else n
        q = gt.load(q_ref, b, *q_size, n, plan.H)
        d_out = gt.load(d_out_ref, b, *q_size, n, plan.width)
        k = gt.load(k_ref, b, *k_size, h, plan.H)
        v = gt.load(v_ref, b, *k_size, h, plan.width)
        lse = gt.load_vector(lse_ref, (b, n), *q_size, jnp.inf)
        delta = gt.load_vector(delta_ref, (b, n), *q_size, 0.0)
        tile = Tile(plan, tiles, extra, b, n, q_size[0], k_size[0])
        return (
          acc
          + _d_logits(tile, q, k, v, d_out, lse, delta, True, q_tail=True)[1]
        )

      kind = table_ref[b if table.shape[0] > 1 else 0, qi, ki]
      return jax.lax.cond(kind == blocks.EMPTY, lambda acc: acc, block, acc)

    acc = jnp.zeros((tiles.q, tiles.k), jnp.float32)
    acc = jax.lax.fori_loop(0, int(np.prod(shared)), add, acc)
    mask = None
    for axis, (size, length, at) in enumerate(
      ((tiles.q, plan.T, i), (tiles.k, plan.S, j))
    ):
      if many[2 + axis] and length % size:
        inside = gt.stand((at * size + jnp.arange(size)) < length, axis)
        mask = inside if mask is None else mask & inside
    if not many[2]:
      acc = acc.sum(0)
      acc = acc[None] if many[3] else acc.sum(0)
    elif not many[3]:
      acc = acc.sum(1)[:, None]
    if mask is not None:
      mask = jnp.broadcast_to(mask, acc.shape)
    triton.store(out_ref, acc.astype(out_ref.dtype), mask=mask)

  def whole(*ids):
    return 0, 0

  every = {"rows": plan.B, "heads": plan.N}
  kv = {"rows": plan.B, "heads": plan.K}
  block = (tiles.q if many[2] else 1, tiles.k if many[3] else 1)
  if not (many[2] or many[3]):
    block = (None, None)
  out = jax.ShapeDtypeStruct(shape, extra.bias.dtype)
  return pl.pallas_call(
    kernel,
    grid=(outer[3], outer[2], outer[0] * outer[1]),
    in_specs=[
      gt.array_spec(plan.T, tiles.q, plan.H, whole, **every),
      gt.array_spec(plan.S, tiles.k, plan.H, whole, **kv),
      gt.array_spec(plan.S, tiles.k, plan.width, whole, **kv),
      gt.array_spec(plan.T, tiles.q, plan.width, whole, **every),
      gt.vector_spec(plan.T, tiles.q, whole, **every),
      gt.vector_spec(plan.T, tiles.q, whole, **every),
      gt.extra_specs(plan, tiles, extra, whole, **every),
      pl.BlockSpec(table.shape, lambda *i: (0, 0, 0)),
    ],
    out_specs=pl.BlockSpec(
      (None, None, *block),
      lambda j, i, h: (
        jax.lax.div(h, outer[1]),
        jax.lax.rem(h, outer[1]),
        i,
        j,
      ),
    ),
    out_shape=out,
    cost_estimate=plan.cost(
      2 * (plan.H + plan.width), kinds, q, k, v, d_out, lse, extra, out
    ),
    compiler_params=tiles.params(),
    interpret=plan.interpret,
    name="attention_dbias",
  )(q, k, v, d_out, lse, delta, extra, table)
