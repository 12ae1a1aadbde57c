"""What the TPU kernels do to a tile of scores, forward and backward.

A tile lies either way: `keys` is the axis of the keys, 1 (a query's scores
along the lanes) or 0 (along the sublanes, where sums are cheap and `p' dO`
needs no transpose).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mmjax.ops import dropout, masks

_LOG2E = math.log2(math.e)
# What a row's maximum is at least: a row that sees nothing has only -inf, and
# -inf - -inf would be NaN where exp(-inf - LOWEST) is 0.
LOWEST = float(jnp.finfo(jnp.float32).min)


@dataclasses.dataclass(frozen=True)
class Rule:
  """What is static of a call to attention; hashable.

  mask: structure of the mask's pytree, or None for all.
  axes: "b", "q" or "k" of each data leaf of the mask.
  scale, softcap: of the scores.
  rate: of dropout.
  biased: whether a bias is added.
  band: whether the bias comes as windows of `tpu_band`.
  laid: whether tokens come by `masks.Lines`, the mask, and not in their order.
  """

  mask: Any
  axes: tuple[str, ...]
  scale: float
  softcap: float | None
  rate: float
  biased: bool
  band: bool = False
  laid: bool = False

  @property
  def plain(self) -> bool:
    """Whether scores are scaled products and nothing else."""
    return self.softcap is None and not self.biased

  def spec(self) -> masks.Mask | None:
    """Returns the mask with unknown data, for `blocks.static_map`."""
    if self.mask is None:
      return None
    return jax.tree.unflatten(self.mask, [None] * len(self.axes))


def positions(
  first_q: Any, count_q: int, first_k: Any, count_k: int, keys: int
) -> tuple[jax.Array, jax.Array]:
  """Returns absolute positions of a tile's queries and keys, as vectors."""
  q = lax.broadcasted_iota(jnp.int32, _along(count_q, 1 - keys), 1 - keys)
  k = lax.broadcasted_iota(jnp.int32, _along(count_k, keys), keys)
  return q + first_q, k + first_k


def _along(count: int, axis: int) -> tuple[int, int]:
  return (count, 1) if axis == 0 else (1, count)


def vector(row: jax.Array, axis: int) -> jax.Array:
  """Lays a row [1 n] along an axis of a tile."""
  return row if axis == 1 else row.reshape(row.shape[1], 1)


def seen(
  rule: Rule, leaves: Sequence[Any], q: jax.Array, k: jax.Array
) -> jax.Array:
  """Returns the mask's predicate on a tile; leaves are scalars or vectors."""
  return jax.tree.unflatten(rule.mask, list(leaves)).seen(q, k)


def dot(
  a: jax.Array, b: jax.Array, contract_a: int, contract_b: int
) -> jax.Array:
  """Multiplies matrices with a float32 sum; float32 inputs count in full."""
  if 1 in (a.shape[1 - contract_a], b.shape[1 - contract_b]):
    # A vector: Mosaic multiplies it without the MXU, and not in bfloat16.
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  full = a.dtype == jnp.float32
  return lax.dot_general(
    a,
    b,
    (((contract_a,), (contract_b,)), ((), ())),
    precision=lax.Precision.HIGHEST if full else lax.Precision.DEFAULT,
    preferred_element_type=jnp.float32,
  )


def scores(
  rule: Rule, raw: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
  """Computes a tile of scores, in units of `power`.

  Args:
    rule: of the call.
    raw: products of queries and keys, float32 [q k] or [k q].
    bias: broadcasts to the tile, or None.

  Returns:
    (scores, slope): float32, and the derivative of the soft-cap there, None
    without one.
  """
  if rule.plain:
    return raw * (rule.scale * _LOG2E), None
  s, slope = raw * rule.scale, None
  if rule.softcap is not None:
    bent = jnp.tanh(s * (1.0 / rule.softcap))
    s, slope = rule.softcap * bent, 1.0 - bent * bent
  if bias is not None:
    s = s + bias.astype(jnp.float32)
  return s, slope


def power(rule: Rule, s: jax.Array) -> jax.Array:
  """Computes what the softmax takes of scores, exp in their units."""
  return jnp.exp2(s) if rule.plain else jnp.exp(s)


def logarithm(rule: Rule, x: jax.Array) -> jax.Array:
  """Computes the inverse of `power`."""
  return jnp.log2(x) if rule.plain else jnp.log(x)


def hide(s: jax.Array, allowed: jax.Array) -> jax.Array:
  """Puts -inf where a query may not look."""
  return jnp.where(allowed, s, -jnp.inf)


def inverse(total: jax.Array) -> jax.Array:
  """Returns 1 / total, and 0 for rows that see nothing."""
  empty = total == 0.0
  return jnp.where(empty, 0.0, 1.0 / jnp.where(empty, 1.0, total))


def thin(
  rule: Rule, x: jax.Array, seed: Any, q: jax.Array, k: jax.Array
) -> jax.Array:
  """Applies dropout to a tile: 0, or x / (1 - rate)."""
  if rule.laid:
    lines: Any = rule.spec()
    q, k = lines.raster(q), lines.raster(k)
  kept = dropout.keep(seed, q, k, rule.rate)
  return jnp.where(kept, x * (1.0 / (1.0 - rule.rate)), 0.0)
