"""Attention in plain XLA: the truth that every kernel must match."""

import jax
import jax.numpy as jnp

from mmjax.ops import masks


def attend(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  *,
  mask: masks.Mask | None,
  bias: jax.Array | None,
  scale: float,
  softcap: float | None,
  dropout_rate: float,
  dropout_keys: jax.Array | None,
) -> jax.Array:
  """Computes softmax(cap(scale q k') + bias, where mask) v.

  Scores and softmax are float32 whatever the inputs; the two products take
  the inputs' dtype and accumulate in float32. Arguments as in
  `ops.attention.attention`, already checked; dropout_keys is [B N].
  """
  B, T, N, H = q_BTNH.shape
  S, K = k_BSKH.shape[1:3]
  q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
  # Scaling q costs T x H products, scaling the scores T x S. The scale is
  # exact in bfloat16 only for powers of two, so others wait for float32.
  late = 1.0
  if q_BTNH.dtype == jnp.float32:
    q_BTKGH = q_BTKGH * scale
  else:
    late = scale
  scores = jnp.einsum(
    "BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
  ).reshape(B, N, T, S)
  if late != 1.0:
    scores = scores * late
  if softcap is not None:
    scores = softcap * jnp.tanh(scores / softcap)
  if bias is not None:
    scores = scores + bias.astype(jnp.float32)
  allowed = None
  if mask is not None:
    allowed = masks.dense(mask, T, S)
    scores = jnp.where(allowed, scores, -jnp.inf)
  top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
  if allowed is not None or bias is not None:
    # A row that sees nothing has the maximum -inf, and -inf - -inf is NaN.
    top = jnp.where(jnp.isfinite(top), top, 0.0)
  weights = jnp.exp(scores - top)
  total = weights.sum(-1, keepdims=True)
  if allowed is not None or bias is not None:
    # Nothing seen: 0 / 1 = 0, with zero gradients.
    total = jnp.where(total == 0.0, 1.0, total)
  if dropout_rate > 0.0:
    keep = jax.vmap(
      jax.vmap(lambda key: jax.random.bernoulli(key, 1 - dropout_rate, (T, S)))
    )(dropout_keys)
    weights = jnp.where(keep, weights / (1.0 - dropout_rate), 0.0)
  weights = (weights / total).astype(v_BSKH.dtype)
  out = jnp.einsum(
    "BKGTS,BSKH->BTKGH",
    weights.reshape(B, K, N // K, T, S),
    v_BSKH,
    preferred_element_type=jnp.float32,
  )
  return out.reshape(B, T, N, v_BSKH.shape[-1]).astype(q_BTNH.dtype)
