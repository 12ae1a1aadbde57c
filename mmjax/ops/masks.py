"""Attention masks as specs: rules over positions, never T x S arrays.

A mask is a frozen dataclass and a pytree. What is static (an offset, a window)
is part of its type; what depends on the data (lengths, segment ids) is a leaf,
so that a mask travels through jit, scan and shard_map, where the leaves are
split by batch like the tokens they describe. `a & b` allows what both allow,
`a | b` what either allows.

Positions of queries and keys count from 0, each along its own axis.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.ops import algebra, axial
from mmjax.ops.algebra import Bounds, Interval, Mask, register

And, Or = algebra.And, algebra.Or
Row, Column, Conv = axial.Row, axial.Column, axial.Conv
Lines = axial.Lines
check, dense, leaf_axes = algebra.check, algebra.dense, algebra.leaf_axes


@register
@dataclasses.dataclass(frozen=True)
class Full(Mask):
  """Every query sees every key."""

  def seen(self, q, k):
    # Built from the indices, so that the shape is the broadcast one.
    return (q >= 0) & (k >= 0)

  def bounds(self, q, k):
    every = (q.lo >= 0) & (k.lo >= 0)
    return Bounds(every, every)


@register
@dataclasses.dataclass(frozen=True)
class Causal(Mask):
  """Query q sees keys k <= q + offset."""

  offset: int = 0

  def seen(self, q, k):
    return k <= q + self.offset

  def bounds(self, q, k):
    return Bounds(k.lo <= q.hi + self.offset, k.hi <= q.lo + self.offset)


@register
@dataclasses.dataclass(frozen=True)
class Prefix(Mask):
  """Every query sees the first n keys; `Prefix(n) | Causal()` is prefix-LM."""

  n: int

  def seen(self, q, k):
    return (k < self.n) & (q >= 0)

  def bounds(self, q, k):
    return Bounds((k.lo < self.n) & (q.lo >= 0), (k.hi < self.n) & (q.lo >= 0))


@register
@dataclasses.dataclass(frozen=True)
class Local(Mask):
  """Query q sees keys q - left <= k <= q + right."""

  left: int
  right: int

  def seen(self, q, k):
    distance = k - q
    return (distance >= -self.left) & (distance <= self.right)

  def bounds(self, q, k):
    lo, hi = k.lo - q.hi, k.hi - q.lo
    some = (lo <= self.right) & (hi >= -self.left)
    some = some & (-self.left <= self.right)
    return Bounds(some, (lo >= -self.left) & (hi <= self.right))


@register
@dataclasses.dataclass(frozen=True)
class Banded(Mask):
  """A query sees itself and the width - 1 keys before it.

  The local layers of GPT-3 (Brown et al. 2020, section 2.1: "alternating dense
  and locally banded sparse attention patterns ... similar to the Sparse
  Transformer"), and what the two heads of the strided Sparse Transformer
  (Child et al. 2019) have in common: the l previous positions.
  """

  width: int

  def seen(self, q, k):
    return (k <= q) & (q - k < self.width)

  def bounds(self, q, k):
    return Local(self.width - 1, 0).bounds(q, k)


class _Lengths(Mask):
  """Row b sees its first lengths[b] keys."""

  lengths: Any

  def seen(self, q, k):
    return (k < self.lengths) & (q >= 0)

  def bounds(self, q, k):
    if self.lengths is None:
      return _unknown(q, k)
    return Bounds(
      (k.lo < self.lengths.hi) & (q.lo >= 0),
      (k.hi < self.lengths.lo) & (q.lo >= 0),
    )


@register
@dataclasses.dataclass(frozen=True, eq=False)
class KeyPadding(_Lengths):
  """Row b sees its first lengths[b] keys; the rest is padding.

  lengths: int32 [B].
  """

  AXES: ClassVar = {"lengths": "b"}
  lengths: Any


@register
@dataclasses.dataclass(frozen=True, eq=False)
class PrefixLengths(_Lengths):
  """Every query of row b sees the first lengths[b] keys.

  `Prefix` with a number for each example; `PrefixLengths(n) | Causal()` is
  prefix-LM over prompts of different lengths.

  lengths: int32 [B].
  """

  AXES: ClassVar = {"lengths": "b"}
  lengths: Any


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Segments(Mask):
  """Query and key see each other when their segment ids agree.

  q_ids: int32 [B T]; kv_ids: int32 [B S]. The id `pad_id` matches nothing,
  itself included: queries that are padding see no key at all.

  Blocks are skipped by the least and greatest id they hold. Number segments as
  they come, and padding at the end after the last one: a 0 among 7s makes a
  block of 0 to 7, which may meet all.
  """

  AXES: ClassVar = {"q_ids": "q", "kv_ids": "k"}
  q_ids: Any
  kv_ids: Any
  pad_id: int = 0

  def seen(self, q, k):
    # The indices count for the shape alone.
    seen = (self.q_ids == self.kv_ids) & (self.q_ids != self.pad_id)
    return seen & (q >= 0) & (k >= 0)

  def bounds(self, q, k):
    a, b = self.q_ids, self.kv_ids
    if a is None or b is None:
      return _unknown(q, k)
    # Ids that both blocks may hold, apart from padding.
    lo, hi = _highest(a.lo, b.lo), _lowest(a.hi, b.hi)
    some = (lo < hi) | ((lo == hi) & (lo != self.pad_id))
    one = (a.lo == a.hi) & (b.lo == b.hi) & (a.lo == b.lo)
    shape = (q.lo >= 0) & (k.lo >= 0)
    return Bounds(some & shape, one & (a.lo != self.pad_id) & shape)


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Keys(Mask):
  """Row b sees its keys where valid[b] is true, wherever they stand.

  valid: bool [B S]; integers count as true unless they are 0.
  """

  AXES: ClassVar = {"valid": "k"}
  valid: Any

  def seen(self, q, k):
    return (self.valid != 0) & (q >= 0) & (k >= 0)

  def bounds(self, q, k):
    if self.valid is None:
      return _unknown(q, k)
    lo, hi = self.valid
    shape = (q.lo >= 0) & (k.lo >= 0)
    return Bounds(
      ((lo != 0) | (hi != 0)) & shape, ((lo > 0) | (hi < 0)) & shape
    )


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Positions(Mask):
  """Causal by given positions: a query sees keys 0 <= kv <= q of its row.

  For sequences that are padded on the left and for caches: a key at position
  -1 (padding, or a slot not yet written) is never seen, and a query at -1 sees
  no key.

  q_positions: int32 [B T]; kv_positions: int32 [B S]. left: None, or how far
  back a query sees: q - left <= kv, as in `Local`.
  """

  AXES: ClassVar = {"q_positions": "q", "kv_positions": "k"}
  q_positions: Any
  kv_positions: Any
  left: int | None = None

  def seen(self, q, k):
    at, key = self.q_positions, self.kv_positions
    seen = (key >= 0) & (key <= at) & (q >= 0) & (k >= 0)
    return seen if self.left is None else seen & (key >= at - self.left)

  def bounds(self, q, k):
    a, b = self.q_positions, self.kv_positions
    if a is None or b is None:
      return _unknown(q, k)
    shape = (q.lo >= 0) & (k.lo >= 0)
    some = (b.hi >= 0) & (a.hi >= _highest(b.lo, 0)) & shape
    every = (b.lo >= 0) & (b.hi <= a.lo) & shape
    if self.left is not None:
      some = some & (self.left >= 0) & (a.lo - b.hi <= self.left)
      every = every & (a.hi - b.lo <= self.left)
    return Bounds(some, every)


def cached(batch: int, slots: int, first: Any, length: int) -> Positions:
  """Returns what tokens see of a cache without padding: all up to themselves.

  Args:
    batch: B.
    slots: S of the cache.
    first: int32 scalar, the slot of the first token.
    length: T, how many tokens.
  """
  queries = first + jnp.arange(length, dtype=jnp.int32)[None]
  keys = jnp.arange(slots, dtype=jnp.int32)[None]
  return Positions(
    jnp.broadcast_to(queries, (batch, length)),
    jnp.broadcast_to(keys, (batch, slots)),
  )


def _unknown(q: Interval, k: Interval) -> Bounds:
  """Of data that is not known: pairs may be seen, none must be."""
  true = (q.lo <= q.hi) & (k.lo <= k.hi)
  return Bounds(true, true & False)


def _is_jax(*values: Any) -> bool:
  return any(isinstance(x, jax.Array) for x in values)


def _highest(a: Any, b: Any) -> Any:
  return jnp.maximum(a, b) if _is_jax(a, b) else np.maximum(a, b)


def _lowest(a: Any, b: Any) -> Any:
  return jnp.minimum(a, b) if _is_jax(a, b) else np.minimum(a, b)
