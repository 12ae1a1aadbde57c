"""Which blocks of a mask are empty, full or mixed, in O(blocks).

A kernel skips the empty ones and leaves the predicate out of the full ones.
Blocks are intervals of queries and keys; the answer is interval arithmetic
(`Mask.bounds`), so that a mask of 32k x 32k costs what its map costs.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.ops import algebra
from mmjax.ops.algebra import Interval

EMPTY, PARTIAL, FULL = 0, 1, 2


def static_map(
  mask: algebra.Mask | None,
  length_q: int,
  length_k: int,
  block_q: int,
  block_k: int,
) -> np.ndarray:
  """Classifies blocks by what is static of a mask.

  Data leaves count as unknown: where the mask asks them, a block is PARTIAL.
  NumPy only, so that a kernel may call it while it is traced.

  Args:
    mask: the spec; None sees all.
    length_q, length_k: T and S; the last blocks may be shorter.
    block_q, block_k: queries and keys a block.

  Returns:
    int8 [ceil(T / block_q) ceil(S / block_k)]: EMPTY where no pair may be
    seen, FULL where every pair is, else PARTIAL. A tail is classified by the
    queries and keys that exist.
  """
  q = _cut(length_q, block_q)
  k = _cut(length_k, block_k)
  shape = (len(q.lo), len(k.lo))
  if mask is None:
    return np.full(shape, FULL, np.int8)
  unknown = mask.holding([None] * len(jax.tree.leaves(mask)))
  found = unknown.bounds(
    Interval(q.lo[:, None], q.hi[:, None]), Interval(k.lo[None], k.hi[None])
  )
  return np.broadcast_to(_kinds(found, np), shape).astype(np.int8)


def dynamic_map(
  mask: algebra.Mask | None,
  length_q: int,
  length_k: int,
  block_q: int,
  block_k: int,
) -> jax.Array:
  """Classifies blocks by all that a mask knows, its data included.

  Of data leaves it looks at the least and the greatest value in each block: a
  block of segments 3 to 4 cannot meet one of segments 5 to 9.

  Args:
    mask, length_q, length_k, block_q, block_k: as in `static_map`.

  Returns:
    int8 [B nq nk] as of `static_map`; [1 nq nk] for masks without data.
  """
  q = _cut(length_q, block_q)
  k = _cut(length_k, block_k)
  shape = (len(q.lo), len(k.lo))
  if mask is None or not jax.tree.leaves(mask):
    return jnp.asarray(
      static_map(mask, length_q, length_k, block_q, block_k)[None]
    )
  leaves = []
  for leaf, axis in zip(
    jax.tree.leaves(mask), algebra.leaf_axes(mask), strict=True
  ):
    if axis == "b":
      whole = jnp.asarray(leaf)[:, None, None]
      leaves.append(Interval(whole, whole))
    elif axis == "q":
      lo, hi = _range(leaf, block_q, shape[0])
      leaves.append(Interval(lo[:, :, None], hi[:, :, None]))
    else:
      lo, hi = _range(leaf, block_k, shape[1])
      leaves.append(Interval(lo[:, None], hi[:, None]))
  found = mask.holding(leaves).bounds(
    Interval(q.lo[None, :, None], q.hi[None, :, None]),
    Interval(k.lo[None, None], k.hi[None, None]),
  )
  kinds = jnp.asarray(_kinds(found, jnp), jnp.int8)
  return jnp.broadcast_to(kinds, (mask.batch_size(), *shape))


def _cut(length: int, block: int) -> Interval:
  """Returns the first and last index of each block."""
  first = np.arange(0, length, block, dtype=np.int32)
  return Interval(first, np.minimum(first + block, length) - 1)


def _range(leaf: Any, block: int, count: int) -> tuple[jax.Array, jax.Array]:
  """Returns the least and greatest value of each block, int32 [B blocks]."""
  leaf = jnp.asarray(leaf).astype(jnp.int32)
  # Filled up with the last value, which is in the last block already.
  more = count * block - leaf.shape[1]
  leaf = jnp.pad(leaf, ((0, 0), (0, more)), mode="edge")
  leaf = leaf.reshape(leaf.shape[0], count, block)
  return leaf.min(-1), leaf.max(-1)


def _kinds(found: algebra.Bounds, xp: Any) -> Any:
  return xp.where(found.every, FULL, xp.where(found.some, PARTIAL, EMPTY))
