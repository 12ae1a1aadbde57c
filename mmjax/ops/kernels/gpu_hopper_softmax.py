"""The running softmax of `gpu_hopper`, one tile of scores after the other.

Scores are logits before the scale; c is the scale in units of log 2. A weight is
2^(c (score - top)) with a reference of its row, and what was added up before is
faded when the reference changes.

`eager` refers to the row's highest logit. Its weights wait for that logit, by
way of two shuffles among the lanes that share a row. The lazy functions go by
the reference of the tile before, as long as no logit exceeds it by much, and so
need no highest logit before they begin; that is the conditional rescaling of
"FlashAttention-4" (2025), here with a guess that is corrected where it fails.
The highest weight of a row is then no 1, but is rounded to 16 bits like others:
what a row that sees one key returns may be its value's neighbour.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from mmjax.ops.kernels.gpu_hopper_memory import ROWS

# Of each 8 columns a lane has two: what is added up by columns alike needs no
# other lane.
_LANES = 8
# How far logits may exceed the reference, in units of log 2: weights are at most
# 256, which float16 holds. Nor may the first that a lane sees be lower by more.
_FAR = 8.0


class Running(NamedTuple):
  """The reference of each row [64], and the sum of its weights.

  That is [64], if lazy [64 8] to be added up.
  """

  top: Any
  total: Any

  @classmethod
  def begin(cls, lazy: bool) -> "Running":
    wide = plgpu.Layout.WGMMA
    thin = wide.reduce(1)
    top = jnp.full((ROWS,), 0.0 if lazy else -jnp.inf, jnp.float32)
    total = jnp.zeros((ROWS, _LANES) if lazy else (ROWS,), jnp.float32)
    return cls(
      plgpu.layout_cast(top, thin),
      plgpu.layout_cast(total, wide if lazy else thin),
    )

  def sums(self) -> jax.Array:
    """Returns the sum of each row's weights [64]."""
    return self.total if self.total.ndim == 1 else self.total.sum(axis=1)


def eager(
  scores: jax.Array, old: Running, c: float, masked: bool
) -> tuple[Running, jax.Array, jax.Array]:
  """Returns what runs on, what older sums fade by [64], and the weights."""
  top = jnp.maximum(old.top, scores.max(axis=1))
  # Of a row that has seen nothing yet: -inf - -inf would be NaN.
  shift = (jnp.where(top == -jnp.inf, 0.0, top) if masked else top) * c
  fade = jnp.exp2(old.top * c - shift)
  weights = jnp.exp2(scores * c - rows(shift, scores.shape))
  total = old.total * fade + weights.sum(axis=1)
  return Running(top, total), fade, weights


def guess(
  scores: jax.Array, old: Running, c: float
) -> tuple[jax.Array, Running, jax.Array]:
  """Returns weights by the old reference, what runs on, and what is too far."""
  shift = old.top * c
  weights = jnp.exp2(scores * c - rows(shift, scores.shape))
  total = old.total + _fold(jnp.add, weights)
  gap = _fold(jnp.maximum, scores) * c - rows(shift, total.shape)
  # Weights of which nothing is left would be missed if there are no others.
  low = (gap < -_FAR) & (gap > -jnp.inf) & (old.total == 0.0)
  return weights, Running(old.top, total), low | (gap > _FAR)


def again(
  scores: jax.Array, old: Running, c: float
) -> tuple[Running, jax.Array, jax.Array]:
  """As `eager`, where a guess was too far."""
  high, new = scores.max(axis=1), old.sums() == 0.0
  top = jnp.where(new, high, jnp.maximum(old.top, high))
  top = jnp.where(high == -jnp.inf, old.top, top)
  # Of a new row there is nothing to fade, and no bound on by how much.
  fade = jnp.where(new, 1.0, jnp.exp2((old.top - top) * c))
  weights = jnp.exp2(scores * c - rows(top * c, scores.shape))
  total = old.total * rows(fade, old.total.shape) + _fold(jnp.add, weights)
  return Running(top, total), fade, weights


def rows(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns a number of each row in all of its columns."""
  return lax.broadcast_in_dim(x, shape, [0])


def _fold(op: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
  """Returns [64 8] of [64 n], columns of one lane together."""
  found = x[:, :_LANES]
  for start in range(_LANES, x.shape[1], _LANES):
    found = op(found, x[:, start : start + _LANES])
  return found
