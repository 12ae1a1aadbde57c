"""Attention masks as specs: rules over positions, never T x S arrays.

A mask is a frozen dataclass and a pytree. What is static (an offset, a window)
is part of its type; what depends on the data (lengths, segment ids) is a leaf,
so that a mask travels through jit, scan and shard_map, where the leaves are
split by batch like the tokens they describe. `a & b` allows what both allow,
`a | b` what either allows.

Positions of queries and keys count from 0, each along its own axis.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import errors

Index = Any  # an integer or an integer array


@dataclasses.dataclass(frozen=True)
class Mask:
  """A rule saying which query may see which key."""

  def allowed(self, q_index: Index, k_index: Index, batch_index: Index) -> Any:
    """Returns where query may see key, for index arrays that broadcast.

    Args:
      q_index: positions of queries, in [0, T).
      k_index: positions of keys, in [0, S).
      batch_index: rows of the batch, in [0, B); read only by masks that have
        data leaves.
    """
    raise NotImplementedError

  def batch_size(self) -> int | None:
    """Returns B of the data leaves, or None where all rows are alike."""
    leaves = jax.tree.leaves(self)
    return leaves[0].shape[0] if leaves else None

  def __and__(self, other: "Mask") -> "Mask":
    return And(self, other)

  def __or__(self, other: "Mask") -> "Mask":
    return Or(self, other)


def _spec(data: tuple[str, ...] = (), meta: tuple[str, ...] = ()):
  """Registers a mask class with its data leaves and static fields."""

  def register(cls):
    return jax.tree_util.register_dataclass(
      cls, data_fields=list(data), meta_fields=list(meta)
    )

  return register


@_spec()
@dataclasses.dataclass(frozen=True)
class Full(Mask):
  """Every query sees every key."""

  def allowed(self, q_index, k_index, batch_index):
    # Built from the indices, so that the shape is the broadcast one.
    return (q_index >= 0) & (k_index >= 0)


@_spec(meta=("offset",))
@dataclasses.dataclass(frozen=True)
class Causal(Mask):
  """Query q sees keys k <= q + offset."""

  offset: int = 0

  def allowed(self, q_index, k_index, batch_index):
    return k_index <= q_index + self.offset


@_spec(meta=("n",))
@dataclasses.dataclass(frozen=True)
class Prefix(Mask):
  """Every query sees the first n keys; `Prefix(n) | Causal()` is prefix-LM."""

  n: int

  def allowed(self, q_index, k_index, batch_index):
    return (k_index < self.n) & (q_index >= 0)


@_spec(meta=("left", "right"))
@dataclasses.dataclass(frozen=True)
class Local(Mask):
  """Query q sees keys q - left <= k <= q + right."""

  left: int
  right: int

  def allowed(self, q_index, k_index, batch_index):
    distance = k_index - q_index
    return (distance >= -self.left) & (distance <= self.right)


@_spec(data=("lengths",))
@dataclasses.dataclass(frozen=True, eq=False)
class KeyPadding(Mask):
  """Row b sees its first lengths[b] keys; the rest is padding.

  lengths: int32 [B].
  """

  lengths: Any

  def allowed(self, q_index, k_index, batch_index):
    lengths = jnp.asarray(self.lengths)
    return (k_index < lengths[batch_index]) & (q_index >= 0)


@_spec(data=("q_ids", "kv_ids"), meta=("pad_id",))
@dataclasses.dataclass(frozen=True, eq=False)
class Segments(Mask):
  """Query and key see each other when their segment ids agree.

  q_ids: int32 [B T]; kv_ids: int32 [B S]. The id `pad_id` matches nothing,
  itself included: queries that are padding see no key at all.
  """

  q_ids: Any
  kv_ids: Any
  pad_id: int = 0

  def allowed(self, q_index, k_index, batch_index):
    q = jnp.asarray(self.q_ids)[batch_index, q_index]
    k = jnp.asarray(self.kv_ids)[batch_index, k_index]
    return (q == k) & (q != self.pad_id)


@_spec(data=("valid",))
@dataclasses.dataclass(frozen=True, eq=False)
class Keys(Mask):
  """Row b sees its keys where valid[b] is true, wherever they stand.

  valid: bool [B S]; integers count as true unless they are 0.
  """

  valid: Any

  def allowed(self, q_index, k_index, batch_index):
    valid = jnp.asarray(self.valid)[batch_index, k_index]
    return (valid != 0) & (q_index >= 0)


@_spec(data=("q_positions", "kv_positions"), meta=("left",))
@dataclasses.dataclass(frozen=True, eq=False)
class Positions(Mask):
  """Causal by given positions: a query sees keys 0 <= kv <= q of its row.

  For sequences that are padded on the left and for caches: a key at position
  -1 (padding, or a slot not yet written) is never seen, and a query at -1 sees
  no key.

  q_positions: int32 [B T]; kv_positions: int32 [B S]. left: None, or how far
  back a query sees: q - left <= kv, as in `Local`.
  """

  q_positions: Any
  kv_positions: Any
  left: int | None = None

  def allowed(self, q_index, k_index, batch_index):
    q = jnp.asarray(self.q_positions)[batch_index, q_index]
    k = jnp.asarray(self.kv_positions)[batch_index, k_index]
    seen = (k >= 0) & (k <= q)
    return seen if self.left is None else seen & (k >= q - self.left)


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


@dataclasses.dataclass(frozen=True)
class _Pair(Mask):
  a: Mask
  b: Mask


@_spec(data=("a", "b"))
@dataclasses.dataclass(frozen=True)
class And(_Pair):
  """What both masks allow."""

  def allowed(self, q_index, k_index, batch_index):
    a = self.a.allowed(q_index, k_index, batch_index)
    return a & self.b.allowed(q_index, k_index, batch_index)


@_spec(data=("a", "b"))
@dataclasses.dataclass(frozen=True)
class Or(_Pair):
  """What either mask allows."""

  def allowed(self, q_index, k_index, batch_index):
    a = self.a.allowed(q_index, k_index, batch_index)
    return a | self.b.allowed(q_index, k_index, batch_index)


def check(mask: Mask, batch: int, length_q: int, length_k: int) -> None:
  """Raises InputError if the data leaves do not fit [B T] and [B S]."""
  if isinstance(mask, _Pair):
    check(mask.a, batch, length_q, length_k)
    check(mask.b, batch, length_q, length_k)
    return
  wanted = {}
  if isinstance(mask, KeyPadding):
    wanted = {"lengths": (batch,)}
  elif isinstance(mask, Segments):
    wanted = {"q_ids": (batch, length_q), "kv_ids": (batch, length_k)}
  elif isinstance(mask, Keys):
    wanted = {"valid": (batch, length_k)}
  elif isinstance(mask, Positions):
    wanted = {
      "q_positions": (batch, length_q),
      "kv_positions": (batch, length_k),
    }
  for field, shape in wanted.items():
    got = tuple(getattr(mask, field).shape)
    if got != shape:
      raise errors.InputError(
        f"{type(mask).__name__}.{field} has shape {got}, but the queries and "
        f"keys are of batch {batch} and lengths {length_q} and {length_k}; "
        f"give it shape {shape}."
      )


def dense(mask: Mask, length_q: int, length_k: int) -> jax.Array:
  """Returns the mask as an array: the reference, of T x S elements.

  Only `ops/` may materialise a mask; layers and models pass the spec on.

  Args:
    mask: the spec.
    length_q: T.
    length_k: S.

  Returns:
    bool [B 1 T S], or [1 1 T S] for a mask without data leaves.
  """
  q = np.arange(length_q).reshape(1, 1, -1, 1)
  k = np.arange(length_k).reshape(1, 1, 1, -1)
  b = np.arange(mask.batch_size() or 1).reshape(-1, 1, 1, 1)
  return jnp.asarray(mask.allowed(q, k, b))
