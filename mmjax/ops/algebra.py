"""What holds for every attention mask: predicates, bounds, `&` and `|`.

A mask answers two questions. `seen`: may this query see this key? `bounds`:
may some, or all, queries of an interval see keys of an interval? A kernel asks
the second once a block, to skip it or to leave the first out.

What a mask knows about the data is in leaves: one value a row of the batch
("b", shape [B]), a query ("q", [B T]) or a key ("k", [B S]). Both questions
are put to a mask whose leaves were replaced by what is known of the tile:
slices that broadcast against q and k, or intervals.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import errors

Index = Any  # an integer or an integer array


class Interval(NamedTuple):
  """All integers lo <= i <= hi; integers or arrays that broadcast."""

  lo: Any
  hi: Any


class Bounds(NamedTuple):
  """What is known of all pairs of a block; booleans or arrays of them.

  some: False only where no query sees any key.
  every: True only where all queries see all keys.
  """

  some: Any
  every: Any


@dataclasses.dataclass(frozen=True)
class Mask:
  """A rule saying which query may see which key.

  `AXES` names the data leaves and says what each has a value for: "b", "q" or
  "k". The other fields are static, part of the type of the pytree.
  """

  AXES: ClassVar[Mapping[str, str]] = {}

  def seen(self, q: Index, k: Index) -> Any:
    """Returns where query q sees key k, index arrays that broadcast.

    The data leaves of self have been replaced by integers that broadcast
    against q and k. Comparisons, sums, `&` and `|` only, and `//` and `%` by
    static numbers of q and k alone: it is part of kernels for TPU and GPU.
    """
    raise NotImplementedError

  def bounds(self, q: Interval, k: Interval) -> Bounds:
    """Returns what is known of the block q x k, intervals that broadcast.

    The data leaves of self have been replaced by intervals of what they hold
    in the block, or by None where that is not known. Exact for single specs
    (of what intervals can tell), and for `&` and `|` on the safe side. NumPy
    in, NumPy out, also under jit.
    """
    raise NotImplementedError

  def misfit(self, length_q: int, length_k: int) -> str | None:
    """Says why the static fields do not fit T and S; None if they do."""
    del length_q, length_k
    return None

  def allowed(self, q_index: Index, k_index: Index, batch_index: Index) -> Any:
    """Returns where query may see key, for index arrays that broadcast.

    Args:
      q_index: positions of queries, in [0, T).
      k_index: positions of keys, in [0, S).
      batch_index: rows of the batch, in [0, B); read only by masks that have
        data leaves.
    """
    at = {
      "b": (batch_index,),
      "q": (batch_index, q_index),
      "k": (batch_index, k_index),
    }
    leaves = [
      jnp.asarray(leaf)[at[axis]]
      for leaf, axis in zip(jax.tree.leaves(self), leaf_axes(self), strict=True)
    ]
    return self.holding(leaves).seen(q_index, k_index)

  def holding(self, leaves: list[Any]) -> Self:
    """Returns this mask with other data leaves, in `jax.tree.leaves` order."""
    return jax.tree.unflatten(jax.tree.structure(self), leaves)

  def batch_size(self) -> int | None:
    """Returns B of the data leaves, or None where all rows are alike."""
    leaves = jax.tree.leaves(self)
    return leaves[0].shape[0] if leaves else None

  def __and__(self, other: "Mask") -> "Mask":
    return And(self, other)

  def __or__(self, other: "Mask") -> "Mask":
    return Or(self, other)


def register(cls):
  """Makes a pytree of a mask class: AXES are leaves, the rest is static."""
  static = [f.name for f in dataclasses.fields(cls) if f.name not in cls.AXES]
  return jax.tree_util.register_dataclass(
    cls, data_fields=list(cls.AXES), meta_fields=static
  )


@dataclasses.dataclass(frozen=True)
class Pair(Mask):
  """Two masks made one; a mask is data, whose own leaves are the leaves."""

  a: Mask
  b: Mask


@dataclasses.dataclass(frozen=True)
class And(Pair):
  """What both masks allow."""

  def seen(self, q, k):
    return self.a.seen(q, k) & self.b.seen(q, k)

  def bounds(self, q, k):
    a, b = self.a.bounds(q, k), self.b.bounds(q, k)
    return Bounds(a.some & b.some, a.every & b.every)


@dataclasses.dataclass(frozen=True)
class Or(Pair):
  """What either mask allows."""

  def seen(self, q, k):
    return self.a.seen(q, k) | self.b.seen(q, k)

  def bounds(self, q, k):
    a, b = self.a.bounds(q, k), self.b.bounds(q, k)
    return Bounds(a.some | b.some, a.every | b.every)


for _pair in (And, Or):
  jax.tree_util.register_dataclass(_pair, ["a", "b"], [])


def leaf_axes(mask: Mask) -> tuple[str, ...]:
  """Returns "b", "q" or "k" for each leaf, in `jax.tree.leaves` order."""
  if isinstance(mask, Pair):
    return leaf_axes(mask.a) + leaf_axes(mask.b)
  return tuple(mask.AXES.values())


def check(
  mask: Mask, batch: int, length_q: int, length_k: int, parts: int = 1
) -> None:
  """Raises InputError if the mask does not fit [B T] and [B S].

  Args:
    mask: the spec.
    batch, length_q, length_k: B, T and S.
    parts: the leaves are one of so many parts of the lengths.
  """
  if isinstance(mask, Pair):
    check(mask.a, batch, length_q, length_k, parts)
    check(mask.b, batch, length_q, length_k, parts)
    return
  why = mask.misfit(length_q * parts, length_k * parts)
  if why is not None:
    raise errors.InputError(f"{type(mask).__name__}: {why}")
  shapes = {"b": (batch,), "q": (batch, length_q), "k": (batch, length_k)}
  for field, axis in mask.AXES.items():
    got, want = tuple(getattr(mask, field).shape), shapes[axis]
    if got != want:
      raise errors.InputError(
        f"{type(mask).__name__}.{field} has shape {got}, but the queries and "
        f"keys are of batch {batch} and lengths {length_q} and {length_k}; "
        f"give it shape {want}."
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
