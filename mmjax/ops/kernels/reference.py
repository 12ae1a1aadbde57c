"""Attention in plain XLA: the truth that every kernel must match."""

import functools
import os

import jax
import jax.numpy as jnp

from mmjax.ops import dropout, masks

# Scores pass through memory six times. A CPU computes a few heads at a time
# where all heads have more than _LARGE bytes of them and one has _HEAD (of
# less, the loop costs more than it saves): _CACHE bytes at a time.
_LARGE, _HEAD, _CACHE = 2**25, 2**20, 2**23
# Between _MEDIUM and that, parts of the batch are trained on side by side, one
# for each core: XLA gives a product of stacks of matrices one core.
_MEDIUM = 2**22


def refuses() -> None:
  """Says that it can compute every call."""


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
  dropout_seeds: jax.Array | None,
) -> jax.Array:
  """Computes softmax(cap(scale q k') + bias, where mask) v.

  Scores and softmax are float32 whatever the inputs; the two products take
  the inputs' dtype and accumulate in float32. Arguments as in
  `ops.attention.attention`, already checked; dropout_seeds is [B N].
  """
  B, T, N, _ = q_BTNH.shape
  S, K = k_BSKH.shape[1:3]
  seen = None if mask is None else masks.dense(mask, T, S)
  keep = None
  if dropout_seeds is not None and dropout_rate > 0.0:
    kept = dropout.keep(
      jnp.reshape(dropout_seeds, (B, N, 1, 1)),
      jnp.arange(T).reshape(1, 1, T, 1),
      jnp.arange(S).reshape(1, 1, 1, S),
      dropout_rate,
    )
    keep = jnp.where(kept, 1.0 / (1.0 - dropout_rate), 0.0)
  some = functools.partial(_some, scale, softcap)
  arrays = q_BTNH, k_BSKH, v_BSKH, seen, bias, keep
  head = 4 * N // K * T * S
  if B * K * head > _LARGE and head >= _HEAD and bias is None and keep is None:
    return _in_turn(some, *arrays[:4])
  if B * K * head > _MEDIUM and (parts := _parts(B)) > 1:
    return _in_parts(some, parts, *arrays)
  return some(*arrays)


def _some(scale, softcap, q_BTNH, k_BSKH, v_BSKH, seen, bias=None, keep=None):
  """Attends at once; bias and keep are [B|1 N|1 T S]."""
  B, T, N, H = q_BTNH.shape
  S, K = k_BSKH.shape[1:3]
  G = N // K
  # Heads beside the batch, queries of one key head in rows: products of plain
  # stacks of matrices, which a CPU does three times as fast as others.
  q_BKRH = q_BTNH.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4)
  q_BKRH = q_BKRH.reshape(B, K, G * T, H)
  k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
  # Scaling q costs T x H products, scaling the scores T x S. The scale is
  # exact in bfloat16 only for powers of two, so others wait for float32.
  late = 1.0
  if q_BTNH.dtype == jnp.float32:
    q_BKRH = q_BKRH * scale
  else:
    late = scale
  scores = jnp.einsum(
    "BKRH,BKSH->BKRS", q_BKRH, k_BKSH, preferred_element_type=jnp.float32
  )
  shape = scores.shape
  scores = scores.reshape(B, N, T, S)
  if late != 1.0:
    scores = scores * late
  if softcap is not None:
    scores = softcap * jnp.tanh(scores / softcap)
  if bias is not None:
    scores = scores + bias.astype(jnp.float32)
  if seen is not None:
    # A sum, since XLA's CPU backend does not fuse a choice with products.
    scores = scores + jnp.where(seen, 0.0, -jnp.inf)
  if keep is not None:
    keep = keep.reshape(shape)
  out = _mix(scores.reshape(shape), v_BKSH, keep)
  out = out.reshape(B, K, G, T, -1).transpose(0, 3, 1, 2, 4)
  return out.reshape(B, T, N, -1).astype(q_BTNH.dtype)


def _parts(batch: int) -> int:
  """Returns how many equal parts of a batch the cores of this machine take."""
  try:
    cores = len(os.sched_getaffinity(0))
  except AttributeError:  # not on Linux
    cores = os.cpu_count() or 1
  return max(n for n in range(1, cores + 1) if batch % n == 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _in_parts(some, parts, *arrays):
  """Does `some`, on a CPU by parts where it is differentiated.

  Where it is not, XLA fuses all of it, and the parts would cost more.
  """
  return some(*arrays)


@_in_parts.defjvp
def _in_parts_jvp(some, parts, primals, tangents):
  def either(*arrays):
    return jax.lax.platform_dependent(
      *arrays, cpu=_side_by_side(some, parts), default=some
    )

  return jax.jvp(either, primals, tangents)


def _side_by_side(some, parts):
  """Does `some` for parts of the batch, which do not wait for each other."""

  def all_of(*arrays):
    split = [
      [x] * parts if x is None or len(x) == 1 else jnp.split(x, parts)
      for x in arrays
    ]
    return jnp.concatenate([some(*part) for part in zip(*split, strict=True)])

  return all_of


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _in_turn(some, q_BTNH, k_BSKH, v_BSKH, seen):
  """Does `some`, on a CPU a few heads after the other: what its cache holds.

  They are cut out of the arrays where they lie, and their outputs put in place.
  """

  def heads_of(q, k, v, seen):
    B, T, N, _ = q.shape
    S, K = k.shape[1:3]
    n = _heads(q, k)
    cut = jax.lax.dynamic_slice

    def step(i, out):
      row, head = i // (K // n), i % (K // n) * n
      first = row, 0, head * (N // K), 0
      part = cut(q, first, (1, T, n * N // K, q.shape[3]))
      k_part, v_part = (
        cut(x, (row, 0, head, 0), (1, S, n, x.shape[3])) for x in (k, v)
      )
      part = some(part, k_part, v_part, _of_row(seen, row))
      return jax.lax.dynamic_update_slice(out, part, first)

    # All of it is put in place; what varies over devices as q does, may be it.
    out = jnp.broadcast_to(q[..., :1], (B, T, N, v.shape[3]))
    return jax.lax.fori_loop(0, B * K // n, step, out)

  return jax.lax.platform_dependent(
    q_BTNH, k_BSKH, v_BSKH, seen, cpu=heads_of, default=some
  )


@_in_turn.defjvp
def _in_turn_jvp(some, primals, tangents):
  # Cut out of the whole, each part's gradient would be a whole array to add.
  def heads_of(q, k, v, seen):
    B, _, K = k.shape[:3]
    n = _heads(q, k)

    def split(x):
      x = x.reshape(B, x.shape[1], K // n, -1, x.shape[3]).swapaxes(1, 2)
      return x.reshape(B * K // n, 1, *x.shape[2:])

    def step(args):
      q, k, v, row = args
      return some(q, k, v, _of_row(seen, row))

    rows = jnp.arange(B * K // n) // (K // n)
    out = jax.lax.map(step, (*map(split, (q, k, v)), rows))
    out = out.reshape(B, K // n, *out.shape[2:]).swapaxes(1, 2)
    return out.reshape(*q.shape[:3], -1)

  def either(*arrays):
    return jax.lax.platform_dependent(*arrays, cpu=heads_of, default=some)

  return jax.jvp(either, primals, tangents)


def _of_row(seen, row):
  if seen is None:
    return None
  return jax.lax.dynamic_index_in_dim(seen, row % len(seen))


def _heads(q_BTNH, k_BSKH) -> int:
  """Returns how many key heads have scores that fit into the cache."""
  T, N = q_BTNH.shape[1:3]
  S, K = k_BSKH.shape[1:3]
  fit = max(1, _CACHE // (4 * N // K * T * S))
  return max(n for n in range(1, K + 1) if K % n == 0 and n <= fit)


@jax.custom_jvp
def _mix(
  scores: jax.Array, v_BKSH: jax.Array, keep: jax.Array | None
) -> jax.Array:
  """Computes (keep softmax(scores)) v, in float32 [B K R H].

  Its derivative is written by hand, so that the backward pass sums over H
  numbers a query, output times gradient, where autodiff sums over S weights
  ("FlashAttention", Dao et al. 2022, appendix B), and keeps one array of
  T x S. It is a rule for tangents, which JAX transposes: both modes work.

  Args:
    scores: float32 [B K R S], R queries of all heads that read a key head;
      -inf where a query may not look.
    v_BKSH: values.
    keep: None, or what weights are multiplied by, [B K R S].
  """
  # In this form XLA's CPU backend makes one loop of it, with the product that
  # the scores are: none is written to memory. A row that sees nothing has the
  # maximum -inf, and -inf - -inf is NaN; its total is 0.
  limits = jnp.finfo(jnp.float32)
  powers = jnp.exp(scores - jnp.maximum(_top(scores), limits.min))
  total = jnp.maximum(powers.sum(-1, keepdims=True), limits.tiny)
  # Divided at last: that is H numbers a query, not S.
  return _weighted(powers if keep is None else powers * keep, v_BKSH) / total


@_mix.defjvp
def _mix_jvp(primals, tangents):
  scores, v_BKSH, keep = primals
  d_scores, d_v, _ = tangents
  powers, inverse = _powers(scores)
  weights = powers * inverse
  kept = weights if keep is None else weights * keep
  out = _weighted(kept, v_BKSH)
  # Transposed, its last step is weights (d_weights - shift): the product and
  # all of that are one loop on a CPU, which two products with weights are not.
  change = weights * d_scores
  shift = change.sum(-1, keepdims=True)
  mixed = change if keep is None else change * keep
  d_out = _weighted(mixed, v_BKSH) - shift * out
  return out, d_out + _weighted(kept, d_v)


def _powers(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns weights that are not divided yet, and the inverse of their sum."""
  top = _top(scores)
  # A row that sees nothing has the maximum -inf, and -inf - -inf is NaN.
  top = jnp.where(jnp.isfinite(top), top, 0.0)
  powers = jnp.exp(scores - top)
  total = powers.sum(-1, keepdims=True)
  # Nothing seen: 0 x 1 = 0, with zero gradients.
  return powers, 1.0 / jnp.where(total == 0.0, 1.0, total)


def _top(scores: jax.Array) -> jax.Array:
  return scores.max(-1, keepdims=True)


def _weighted(weights: jax.Array, v_BKSH: jax.Array) -> jax.Array:
  return jnp.einsum(
    "BKRS,BKSH->BKRH",
    weights.astype(v_BKSH.dtype),
    v_BKSH,
    preferred_element_type=jnp.float32,
  )
