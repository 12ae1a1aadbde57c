"""The running softmax, tile after tile, against float64 at once.

As plain functions of arrays; `test_gpu_hopper` has them in a kernel.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops.kernels import gpu_hopper_softmax as softmax
from mmjax.ops.kernels.gpu_hopper_softmax import Running

C = 0.25
TILES, KEYS = 5, 32


def _begin(lazy):
  if lazy:
    return Running(jnp.zeros(64), jnp.zeros((64, 8)))
  return Running(jnp.full(64, -jnp.inf), jnp.zeros(64))


def _lazy(scores, old, corrected=True):
  weights, run, far = softmax.guess(scores, old, C)
  if corrected and far.any():
    return softmax.again(scores, old, C)
  return run, jnp.ones(64), weights


def _eager(scores, old):
  return softmax.eager(scores, old, C, masked=True)


def _run(step, lazy, scores, values):
  """Returns the log2 of each row's sum, and the weighted means."""
  run, acc = _begin(lazy), jnp.zeros((64, values.shape[-1]))
  for tile, v in zip(scores, values, strict=True):
    run, fade, weights = step(jnp.asarray(tile, jnp.float32), run)
    acc = acc * fade[:, None] + weights @ jnp.asarray(v, jnp.float32)
  total = np.asarray(run.sums(), float)
  safe = np.where(total == 0.0, 1.0, total)
  lse = np.where(total == 0.0, -np.inf, run.top * C + np.log2(safe))
  return lse, np.asarray(acc, float) / safe[:, None]


def _truth(scores, values):
  logits = np.concatenate(scores, 1) * C
  top = logits.max(1, keepdims=True)
  top = np.where(np.isinf(top), 0.0, top)
  e = np.exp2(logits - top)
  total = e.sum(1)
  safe = np.where(total == 0.0, 1.0, total)
  lse = np.where(total == 0.0, -np.inf, np.log2(safe) + top[:, 0])
  return lse, e @ np.concatenate(values) / safe[:, None]


def _scores(kind):
  draw = np.random.default_rng(3)
  x = draw.normal(size=(TILES, 64, KEYS))
  if kind == "modest":
    return 8 * x
  if kind == "low":
    return 8 * x - 4_000
  if kind == "rising":  # each tile is beyond what the last one allows
    return 8 * x + 300 * np.arange(TILES)[:, None, None]
  if kind == "falling":
    return 8 * x - 300 * np.arange(TILES)[:, None, None]
  if kind == "jump":  # 2^256 and more by the first tile's reference
    x[3, ::7, 5] += 2_000
    return 8 * x
  # Some rows see nothing, others nothing at first, others a key in one lane.
  seen = draw.random((TILES, 64, KEYS)) < 0.3
  seen[:, :8], seen[:2, 8:20], seen[:, 20:30] = False, False, False
  seen[2, 20:30, 9] = True
  return np.where(seen, 40 * x - (100 if kind == "masked low" else 0), -np.inf)


KINDS = "modest", "low", "rising", "falling", "jump", "masked", "masked low"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step, lazy", ((_eager, False), (_lazy, True)))
def test_sums_and_means(step, lazy, kind):
  scores = _scores(kind).astype(np.float32)
  values = np.random.default_rng(4).normal(size=(TILES, KEYS, 16))
  got, want = _run(step, lazy, scores, values), _truth(scores, values)
  np.testing.assert_array_equal(np.isinf(got[0]), np.isinf(want[0]))
  found = np.isfinite(want[0])
  np.testing.assert_allclose(got[0][found], want[0][found], 1e-6, 2e-5)
  np.testing.assert_allclose(got[1], want[1], atol=1e-4)


def test_a_guess_that_stands_is_wrong_where_logits_are_high():
  scores = _scores("jump").astype(np.float32)
  values = np.random.default_rng(4).normal(size=(TILES, KEYS, 16))

  def step(tile, old):
    return _lazy(tile, old, corrected=False)

  with np.errstate(invalid="ignore"):
    _, got = _run(step, True, scores, values)
  _, want = _truth(scores, values)
  assert not np.abs(got - want).max() < 0.1


def test_modest_logits_are_never_too_far():
  run = _begin(True)
  for tile in _scores("modest"):
    _, run, far = softmax.guess(jnp.asarray(tile / 2, jnp.float32), run, C)
    assert not far.any()
