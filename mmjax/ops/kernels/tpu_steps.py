"""The order in which a flash kernel visits the blocks of its mask.

A step is a block of queries against a block of keys. Blocks that the mask
rules out are no steps at all: a table of those that are left goes ahead of the
kernel as scalars. What depends on the data (segments, lengths) is sorted out
on the device, row by row, and the longest row says how many steps are run.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.ops import blocks, masks

MOST = 2**17  # words of a table: half of the scalar memory of a core
_BITS = 12  # of the number of a block


class Step(NamedTuple):
  """A step, within a kernel: scalars.

  q, k: which blocks.
  kind: EMPTY, PARTIAL or FULL.
  first, last: whether it is the first or the last step of its queries' block
    (of its keys', if these are the major ones).
  """

  q: Any
  k: Any
  kind: Any
  first: Any
  last: Any


@dataclasses.dataclass(frozen=True)
class Steps:
  """Steps of a call.

  shape: blocks of queries and of keys.
  count: steps of a row of the batch, a number or a traced scalar.
  table: int32 [count] for all rows alike or [B most], or None: all blocks in
    order.
  kinds: with no table, (kind of most blocks, whether the last ones of queries
    and keys are PARTIAL).
  keys_major: whether all queries of a block of keys come together.
  static: number of steps before the data is looked at.
  """

  shape: tuple[int, int]
  count: Any
  table: Any
  kinds: tuple[int, bool, bool]
  keys_major: bool
  static: int

  def read(self, table: Any, b: Any, p: Any) -> Step:
    """Returns step p of row b."""
    n_q, n_k = self.shape
    if self.table is None:
      inner = n_q if self.keys_major else n_k
      major, minor = p // inner, p % inner
      q, k = (minor, major) if self.keys_major else (major, minor)
      kind, tail_q, tail_k = self.kinds
      partial = jnp.bool_(False)
      if tail_q:
        partial = partial | (q == n_q - 1)
      if tail_k:
        partial = partial | (k == n_k - 1)
      kind = jnp.where(partial, blocks.PARTIAL, kind)
      return Step(q, k, kind, minor == 0, minor == inner - 1)
    word = table[p if self.table.ndim == 1 else b * self.table.shape[1] + p]
    low = (1 << _BITS) - 1
    return Step(
      word & low,
      (word >> _BITS) & low,
      (word >> (2 * _BITS)) & 3,
      (word >> (2 * _BITS + 2)) & 1 == 1,
      (word >> (2 * _BITS + 3)) & 1 == 1,
    )


def too_many(T: int, S: int, block_q: int, block_k: int) -> bool:
  """Returns whether the blocks are too many for a table."""
  n_q, n_k = -(-T // block_q), -(-S // block_k)
  return max(n_q, n_k) >= 1 << _BITS or n_q * n_k > MOST


def steps(
  mask: masks.Mask | None,
  T: int,
  S: int,
  block_q: int,
  block_k: int,
  *,
  keys_major: bool,
  every: bool = False,
) -> Steps:
  """Lists the steps of a mask.

  Args:
    mask: with its data, or None.
    T, S, block_q, block_k: lengths of sequences and blocks.
    keys_major: whether the queries of a block of keys come together, or the
      keys of a block of queries.
    every: list empty blocks too, and do not look at the data.
  """
  kinds = blocks.static_map(mask, T, S, block_q, block_k)
  shape = kinds.shape
  tail_q, tail_k = T % block_q > 0, S % block_k > 0
  data = mask is not None and bool(jax.tree.leaves(mask)) and not every
  if not data and (kinds == kinds.flat[0]).all():
    return Steps(
      shape,
      kinds.size,
      None,
      (int(kinds.flat[0]), tail_q, tail_k),
      keys_major,
      kinds.size,
    )
  kinds = _tails(kinds, tail_q, tail_k, np)
  q, k = (i.reshape(-1) for i in np.indices(shape))
  if keys_major:
    order = np.argsort(k, kind="stable")
    q, k = q[order], k[order]
  major = k if keys_major else q
  kept = np.ones(len(q), bool) if every else _kept(kinds[q, k], major)
  q, k, major = q[kept], k[kept], major[kept]
  kind = kinds[q, k]
  rows = None if mask is None else mask.batch_size()
  if data and rows is not None and rows * len(q) <= MOST:
    table, count = _by_data(
      mask, (T, S, block_q, block_k), (tail_q, tail_k), q, k, major
    )
    return Steps(shape, count, table, (0, False, False), keys_major, len(q))
  change = major[1:] != major[:-1]
  first, last = np.r_[True, change], np.r_[change, True]
  table = _words(q, k, kind, first, last)
  return Steps(
    shape, len(q), jnp.asarray(table), (0, False, False), keys_major, len(q)
  )


def _tails(kinds: Any, tail_q: bool, tail_k: bool, xp: Any) -> Any:
  """Makes PARTIAL of FULL where a block is longer than what is left."""
  n_q, n_k = kinds.shape[-2:]
  tail = np.zeros((n_q, n_k), bool)
  tail[-1] |= tail_q
  tail[:, -1] |= tail_k
  tail = tail.reshape((1,) * (kinds.ndim - 2) + tail.shape)
  return xp.where(tail & (kinds == blocks.FULL), blocks.PARTIAL, kinds)


def _kept(kind: np.ndarray, major: np.ndarray) -> np.ndarray:
  """Returns which steps to keep: one at least of each major block.

  That one writes the zeros of a block that sees nothing.
  """
  some = np.zeros(major.max() + 1, bool)
  some[major[kind != blocks.EMPTY]] = True
  first = np.r_[True, major[1:] != major[:-1]]
  return (kind != blocks.EMPTY) | (first & ~some[major])


def _by_data(mask, sizes, tails, q, k, major):
  """Sorts out the steps of each row by its data: int32 [B most] and count."""
  kinds = _tails(blocks.dynamic_map(mask, *sizes), tails[0], tails[1], jnp)
  kind = kinds[:, q, k].astype(jnp.int32)
  some = jnp.zeros((kind.shape[0], int(major.max()) + 1), jnp.int32)
  some = some.at[:, major].max((kind != blocks.EMPTY).astype(jnp.int32))
  first = np.r_[True, major[1:] != major[:-1]][None]
  kept = (kind != blocks.EMPTY) | (first & (some[:, major] == 0))
  order = jnp.argsort(~kept, axis=1, stable=True)
  count = kept.sum(1, keepdims=True)
  at = jnp.arange(len(q))[None]
  # Beyond the last step of a row nothing is loaded and nothing done.
  order = jnp.take_along_axis(order, jnp.minimum(at, count - 1), axis=1)
  change = jnp.asarray(major)[order]
  change = change[:, 1:] != change[:, :-1]
  edge = jnp.ones((kind.shape[0], 1), bool)
  words = _words(
    jnp.asarray(q)[order],
    jnp.asarray(k)[order],
    jnp.where(at < count, jnp.take_along_axis(kind, order, 1), blocks.EMPTY),
    jnp.concatenate([edge, change], 1) & (at < count),
    (jnp.concatenate([change, edge], 1) | (at == count - 1)) & (at < count),
  )
  return words, count.max()


def _words(q: Any, k: Any, kind: Any, first: Any, last: Any) -> Any:
  word = q.astype(np.int32) | (k.astype(np.int32) << _BITS)
  word = word | (kind.astype(np.int32) << (2 * _BITS))
  word = word | (first.astype(np.int32) << (2 * _BITS + 2))
  return word | (last.astype(np.int32) << (2 * _BITS + 3))
