"""Biases by distance on TPU: a vector a head, in place of T x S numbers.

Where the bias of a query and a key depends on key minus query alone (T5), the
blocks along a diagonal have one bias: 2 * block numbers, the window of the
distances in them. A kernel loads that window and spreads it to a tile, row by
row one place further; backward it folds a tile's gradient to a window. Both by
halves: the window comes in 8 shifted copies, the rows of a register, and 16,
32, 64 and 128 rows are the rows so far beside the same shifted on.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu

from mmjax.ops.bias import Bias

_ROWS = 8  # of a register
_MOST = 8 * 2**20  # bytes of the gradient of a head's windows in vector memory


def fits(T: int, S: int, block_q: int, block_k: int) -> bool:
  """Returns whether windows can stand for the bias of blocks of these sizes."""
  block, group = block_k, _group(block_k)
  count = -(-T // block) + -(-S // block) - 1
  return (
    block_q == block_k <= min(T, S)
    and block % group == 0
    and group >= _ROWS
    and group & (group - 1) == 0
    and count * _ROWS * 2 * block * 4 <= _MOST
  )


def _group(block: int) -> int:
  """Returns how many rows of a tile are spread; the others are its slices."""
  return min(128, block)


def windows(bias: Bias, T: int, S: int, block: int) -> jax.Array:
  """Returns the windows of a bias, float32 [N D 8 2*block].

  D diagonals of blocks, from the last queries against the first keys on.
  Differentiable in the table, by XLA.

  Args:
    bias: whose index depends on key minus query alone.
    T, S, block: lengths, of the sequences and of a block of either.
  """
  n_q, n_k = -(-T // block), -(-S // block)
  distance = np.arange((n_q + n_k) * block, dtype=np.int32) - n_q * block
  at = bias.index(np.int32(0), np.clip(distance, 1 - T, S - 1))
  band = jnp.take(bias.table, jnp.asarray(at), axis=1).astype(jnp.float32)
  band = band.reshape(len(band), n_q + n_k, block)
  return _copies(jnp.concatenate([band[:, :-1], band[:, 1:]], axis=-1))


def turned(eight: jax.Array) -> jax.Array:
  """Returns the windows of tiles whose rows are keys."""
  return _copies(jnp.roll(jnp.flip(eight[:, :, 0], -1), 1, -1))


def _copies(window: jax.Array) -> jax.Array:
  """Adds an axis before the last: copies, each shifted one place further."""
  return jnp.stack([jnp.roll(window, s, -1) for s in range(_ROWS)], axis=-2)


def spread(eight: jax.Array) -> jax.Array:
  """Spreads a window [8 2*block] to a tile [block block], within a kernel."""
  block = eight.shape[1] // 2
  group, x = _group(block), eight
  while len(x) < group:
    x = jnp.concatenate([x, pltpu.roll(x, len(x), 1)], axis=0)
  # The rows of another group are these, read from further left.
  return jnp.concatenate(
    [x[:, block - i : 2 * block - i] for i in range(0, block, group)], axis=0
  )


def fold(ds: jax.Array) -> jax.Array:
  """Sums a tile [block block] to a window [8 2*block]: `spread` transposed."""
  block = len(ds)
  group = _group(block)
  x = jnp.zeros((group, 2 * block), jnp.float32)
  for i in range(0, block, group):
    parts = [
      jnp.zeros((group, block - i), jnp.float32),
      ds[i : i + group],
      jnp.zeros((group, i), jnp.float32),
    ]
    x = x + jnp.concatenate([part for part in parts if part.shape[1]], axis=1)
  while len(x) > _ROWS:
    half = len(x) // 2
    x = x[:half] + pltpu.roll(x[half:], 2 * block - half, 1)
  return x
