"""Each change of logits against a loop over rows."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops import logits


def draw(seed, batch=4, vocab=9):
  x = np.random.default_rng(seed).normal(size=(batch, vocab)) * 2
  return x.astype(np.float32)


@pytest.mark.parametrize("k", [1, 3, 9, 20])
def test_top_k(k):
  x = draw(0)
  got = np.asarray(logits.top_k(jnp.asarray(x), k))
  for row, found in zip(x, got, strict=True):
    kept = np.argsort(-row)[:k]
    assert set(np.isfinite(found).nonzero()[0]) == set(kept)
    np.testing.assert_array_equal(found[kept], row[kept])


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.999])
def test_top_p(p):
  x = draw(1)
  got = np.asarray(logits.top_p(jnp.asarray(x), p))
  for row, found in zip(x.astype(np.float64), got, strict=True):
    probabilities = np.exp(row) / np.exp(row).sum()
    order = np.argsort(-row)
    # The fewest that add up to p.
    count = (np.cumsum(probabilities[order]) < p).sum() + 1
    assert set(np.isfinite(found).nonzero()[0]) == set(order[:count])


def test_temper():
  x = draw(2)
  np.testing.assert_allclose(logits.temper(x, 0.25), 4 * x)


def test_suppress_and_force_only_when():
  x = jnp.asarray(draw(3))
  off = logits.suppress(x, (2, 5), jnp.asarray(False))
  np.testing.assert_array_equal(off, x)
  np.testing.assert_array_equal(logits.suppress(x, ()), x)
  gone = np.isinf(logits.suppress(x, (2, 5))).nonzero()[1]
  np.testing.assert_array_equal(gone, [2, 5] * 4)
  forced = logits.force(x, 7, jnp.asarray(True))
  np.testing.assert_array_equal(forced.argmax(-1), [7] * 4)
  np.testing.assert_array_equal(np.isinf(forced).sum(-1), [8] * 4)
  np.testing.assert_array_equal(logits.force(x, 7, jnp.asarray(False)), x)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("index", [1, 2, 5, 11])
def test_no_repeat(n, index):
  ids = np.random.default_rng(n).integers(0, 3, (40, 12))
  x = np.zeros((40, 4), np.float32)
  got = np.asarray(
    logits.no_repeat(jnp.asarray(x), jnp.asarray(ids), jnp.asarray(index), n)
  )
  for row, found in zip(ids.tolist(), got, strict=True):
    row = row[:index]
    said = {tuple(row[i : i + n]) for i in range(index - n + 1)}
    for token in range(4):
      tail = tuple(row[index - n + 1 :]) if n > 1 else ()
      banned = index >= n and (*tail, token) in said
      assert np.isinf(found[token]) == banned, (row, token)
