"""Attention over a sequence that devices share: keys go round in a ring.

"Ring attention with blockwise transformers for near-infinite context", Liu et
al. 2023. Each device keeps its own queries and meets the keys and values of
all others in turn, while the next ones are on their way; softmaxes of parts
join as in "FlashAttention" (Dao et al. 2022). No device ever holds the scores
of more than its own queries and one part of the keys. The backward pass goes
round once more, computes the weights again, and brings the gradients of keys
and values home.

Runs inside `shard_map` (`parallel.rules.per_shard`), manual over the axis.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.ops import dropout
from mmjax.ops.algebra import Interval, Mask, leaf_axes


class How(NamedTuple):
  """What is static of a call; hashable.

  Attributes:
    axis: the mesh axis that splits both lengths.
    groups: G, query heads that read one key head.
    treedef, axes: structure of the mask and what its leaves go with; None.
    scale, softcap, rate: see `ops.attention.attention`.
  """

  axis: str
  groups: int
  treedef: Any
  axes: tuple[str, ...]
  scale: float
  softcap: float | None
  rate: float


class Part(NamedTuple):
  """The keys that travel: [B K S H], [B K S H'], and leaves [B S] of masks."""

  k: jax.Array
  v: jax.Array
  leaves: tuple[jax.Array, ...]


def attend(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  *,
  axis: str,
  mask: Mask | None,
  bias: jax.Array | None,
  scale: float,
  softcap: float | None,
  dropout_rate: float,
  dropout_seeds: jax.Array | None,
) -> jax.Array:
  """Computes softmax(cap(scale q k') + bias, where mask) v over the ring.

  Arguments are this device's parts, of the batch, the heads, and the lengths;
  positions count over the whole sequence.

  Args:
    q_BTNH, k_BSKH, v_BSKH: T and S are those of a part.
    axis: the mesh axis of the ring, which splits T and S into equal parts.
    mask: over the whole sequence; leaves are this device's parts.
    bias: [B|1 N|1 T|1 S|1], T this device's part and S the whole.
    scale, softcap, dropout_rate: see `ops.attention.attention`.
    dropout_seeds: uint32 [B N], or None.

  Returns:
    [B T N H'] in the dtype of q.
  """
  leaves: list[Any] = []
  treedef: Any = None
  if mask is not None:
    leaves, treedef = jax.tree.flatten(mask)
  B, T, N, H = q_BTNH.shape
  K = k_BSKH.shape[2]
  how = How(
    axis,
    N // K,
    treedef,
    leaf_axes(mask) if mask is not None else (),
    scale,
    softcap,
    dropout_rate,
  )
  q_BKRH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
  q_BKRH = q_BKRH.reshape(B, K, -1, H)
  part = Part(
    k_BSKH.swapaxes(1, 2),
    v_BSKH.swapaxes(1, 2),
    tuple(x for x, a in zip(leaves, how.axes, strict=True) if a == "k"),
  )
  fixed = tuple(x for x, a in zip(leaves, how.axes, strict=True) if a != "k")
  out: Any = _ring(how, q_BKRH, part, bias, fixed, dropout_seeds)
  out = out.reshape(B, K, N // K, T, -1).transpose(0, 3, 1, 2, 4)
  return out.reshape(B, T, N, -1).astype(q_BTNH.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(how, q_BKRH, part, bias, fixed, seeds):
  return _forward(how, q_BKRH, part, bias, fixed, seeds)[0]


def _forward(how, q_BKRH, part, bias, fixed, seeds):
  """Returns the output, float32 [B K R H'], and what backward needs."""
  shape = q_BKRH.shape[:3]
  start = (
    jnp.full((*shape, 1), -jnp.inf),
    jnp.zeros((*shape, 1)),
    jnp.zeros((*shape, part.v.shape[-1])),
  )

  def meet(state, part, tile):
    top, total, acc = state
    scores = _scores(how, q_BKRH, part.k, _columns(bias, part, tile), tile)
    new = jnp.maximum(top, scores.max(-1, keepdims=True))
    # A row that has seen nothing yet: -inf - -inf is NaN.
    safe = jnp.where(jnp.isfinite(new), new, 0.0)
    weights = jnp.exp(scores - safe)
    old = jnp.exp(top - safe)
    kept = weights if how.rate == 0.0 else weights * _kept(how, tile, scores)
    acc = acc * old + _product(kept, part.v)
    return new, total * old + weights.sum(-1, keepdims=True), acc

  def step(carry, i):
    state, part = carry
    onward = _pass_on(how, part)  # on its way while this one is met
    tile = _tile(how, i, q_BKRH, part, fixed, seeds)
    state = jax.lax.cond(
      tile.some, lambda s: meet(s, part, tile), lambda s: s, state
    )
    return (state, onward), None

  steps = jnp.arange(jax.lax.axis_size(how.axis))
  ((top, total, acc), _), _ = jax.lax.scan(step, (start, part), steps)
  share = 1.0 / jnp.where(total == 0.0, 1.0, total)
  out = acc * share  # nothing seen: 0
  lse = jnp.where(total == 0.0, 0.0, top) - jnp.log(share)
  return out, (q_BKRH, part, bias, fixed, seeds, out, lse)


def _backward(how, kept, d_out):
  q_BKRH, part, bias, fixed, seeds, out, lse = kept
  d_out = d_out.astype(jnp.float32)
  # Sum over keys of weight times its gradient (FlashAttention, appendix B).
  shift = (d_out * out).sum(-1, keepdims=True)

  def meet(state, part, tile):
    d_q, d_bias, d_k, d_v = state
    scores, back = jax.vjp(
      lambda q, k, b: _scores(how, q, k, b, tile),
      q_BKRH,
      part.k,
      _columns(bias, part, tile),
    )
    weights = jnp.exp(scores - lse)
    d_kept = jnp.einsum(
      "BKRH,BKSH->BKRS", d_out, part.v, preferred_element_type=jnp.float32
    )
    kept = weights
    if how.rate > 0.0:
      keep = _kept(how, tile, scores)
      kept, d_kept = weights * keep, d_kept * keep
    more_q, more_k, more_bias = back(weights * (d_kept - shift))
    if bias is not None:
      d_bias = _add_columns(d_bias, more_bias, tile)
    more_v = jnp.einsum(
      "BKRS,BKRH->BKSH", kept, d_out, preferred_element_type=jnp.float32
    )
    return d_q + more_q, d_bias, d_k + more_k, d_v + more_v

  def step(carry, i):
    d_q, d_bias, part, d_k, d_v = carry
    onward = _pass_on(how, part)
    tile = _tile(how, i, q_BKRH, part, fixed, seeds)
    state = (d_q, d_bias, d_k, d_v)
    state = jax.lax.cond(
      tile.some, lambda s: meet(s, part, tile), lambda s: s, state
    )
    d_q, d_bias, d_k, d_v = state
    return (d_q, d_bias, onward, *_pass_on(how, (d_k, d_v))), None

  start = (
    _zeros(q_BKRH),
    None if bias is None else _zeros(bias),
    part,
    _zeros(part.k),
    _zeros(part.v),
  )
  steps = jnp.arange(jax.lax.axis_size(how.axis))
  end: Any = jax.lax.scan(step, start, steps)[0]
  d_q, d_bias, _, d_k, d_v = end
  return (
    d_q.astype(q_BKRH.dtype),
    Part(
      d_k.astype(part.k.dtype),
      d_v.astype(part.v.dtype),
      tuple(_no_gradient(x) for x in part.leaves),
    ),
    None if bias is None else d_bias.astype(bias.dtype),
    tuple(_no_gradient(x) for x in fixed),
    None if seeds is None else _no_gradient(seeds),
  )


_ring.defvjp(_forward, _backward)


class Tile(NamedTuple):
  """Own queries against the keys of one part.

  Attributes:
    q, k: positions over the whole sequence, [1 1 T 1] and [1 1 1 S].
    start: first position of the keys.
    mask: it holds what it knows of the tile; None.
    seeds: of dropout, or None.
    some: may any query see any key?
  """

  q: jax.Array
  k: jax.Array
  start: jax.Array
  mask: Mask | None
  seeds: jax.Array | None
  some: jax.Array


def _tile(how, i, q_BKRH, part, fixed, seeds) -> Tile:
  me, parts = jax.lax.axis_index(how.axis), jax.lax.axis_size(how.axis)
  B, S = part.k.shape[0], part.k.shape[2]
  T = q_BKRH.shape[2] // how.groups
  start, first = (me - i) % parts * S, me * T
  q = first + jnp.arange(T).reshape(1, 1, T, 1)
  k = start + jnp.arange(S).reshape(1, 1, 1, S)
  if how.treedef is None:
    return Tile(q, k, start, None, seeds, jnp.array(True))
  still, moving = iter(fixed), iter(part.leaves)
  shapes = {"b": (B, 1, 1, 1), "q": (B, 1, T, 1), "k": (B, 1, 1, S)}
  held = [next(moving if a == "k" else still) for a in how.axes]
  mask = jax.tree.unflatten(
    how.treedef,
    [x.reshape(shapes[a]) for x, a in zip(held, how.axes, strict=True)],
  )
  known = jax.tree.unflatten(
    how.treedef, [Interval(x.min(), x.max()) for x in held]
  )
  some = known.bounds(
    Interval(first, first + T - 1), Interval(start, start + S - 1)
  ).some
  return Tile(q, k, start, mask, seeds, jnp.asarray(some))


def _scores(how, q_BKRH, k_BKSH, bias, tile) -> jax.Array:
  """Returns the scores of the tile, float32 [B K R S]."""
  scores = jnp.einsum(
    "BKRH,BKSH->BKRS", q_BKRH, k_BKSH, preferred_element_type=jnp.float32
  )
  shape, (T, S) = scores.shape, (tile.q.shape[2], tile.k.shape[3])
  scores = scores.reshape(shape[0], -1, T, S) * how.scale
  if how.softcap is not None:
    scores = how.softcap * jnp.tanh(scores / how.softcap)
  if bias is not None:
    scores = scores + bias.astype(jnp.float32)
  if tile.mask is not None:
    scores = jnp.where(tile.mask.seen(tile.q, tile.k), scores, -jnp.inf)
  return scores.reshape(shape)


def _kept(how, tile, scores) -> jax.Array:
  """Returns what dropout multiplies the weights by, [B K R S]."""
  seeds = tile.seeds[:, :, None, None]
  keep = dropout.keep(seeds, tile.q, tile.k, how.rate)
  return jnp.where(keep, 1.0 / (1.0 - how.rate), 0.0).reshape(scores.shape)


def _product(weights: jax.Array, v_BKSH: jax.Array) -> jax.Array:
  return jnp.einsum(
    "BKRS,BKSH->BKRH",
    weights.astype(v_BKSH.dtype),
    v_BKSH,
    preferred_element_type=jnp.float32,
  )


def _columns(bias, part, tile):
  """Returns the bias of the tile's keys."""
  if bias is None or bias.shape[3] == 1:
    return bias
  return jax.lax.dynamic_slice_in_dim(bias, tile.start, part.k.shape[2], 3)


def _add_columns(total, more, tile):
  if total.shape[3] == 1:
    return total + more
  old = jax.lax.dynamic_slice_in_dim(total, tile.start, more.shape[3], 3)
  return jax.lax.dynamic_update_slice_in_dim(
    total, old + more, tile.start, axis=3
  )


def _pass_on(how, tree):
  """Sends arrays to the next device of the ring."""
  size = jax.lax.axis_size(how.axis)
  pairs = [(i, (i + 1) % size) for i in range(size)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, how.axis, pairs), tree)


def _zeros(x: jax.Array) -> jax.Array:
  return jnp.zeros(x.shape, jnp.float32)


def _no_gradient(x: jax.Array) -> Any:
  return np.zeros(x.shape, jax.dtypes.float0)
