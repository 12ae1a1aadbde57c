"""Tiles lie either way with the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.ops import masks
from mmjax.ops.kernels import tpu_scores as tile


def _rule(mask=None, **given):
  found = dict(mask=None, axes=(), scale=0.5, softcap=None, rate=0.0)
  if mask is not None:
    found |= dict(mask=jax.tree.structure(mask), axes=masks.leaf_axes(mask))
  return tile.Rule(**{**found, "biased": False, **given})


def test_scores_either_way(key):
  q, k = jax.random.normal(key, (2, 5, 8))
  bias = jnp.arange(25.0).reshape(5, 5)
  for softcap in (None, 2.0):
    rule = _rule(softcap=softcap, biased=True)
    s, slope = tile.scores(rule, tile.dot(q, k, 1, 1), bias)
    other, other_slope = tile.scores(rule, tile.dot(k, q, 1, 1), bias.T)
    np.testing.assert_allclose(s, other.T, rtol=1e-5)
    if softcap is not None:
      np.testing.assert_allclose(slope, other_slope.T, rtol=1e-5)
  plain, _ = tile.scores(_rule(), tile.dot(q, k, 1, 1), None)
  want = np.exp(np.asarray(q @ k.T) * 0.5)
  np.testing.assert_allclose(tile.power(_rule(), plain), want, rtol=1e-5)
  back = tile.logarithm(_rule(), tile.power(_rule(), plain))
  np.testing.assert_allclose(back, plain, atol=1e-5)


def test_positions_and_vectors_lie_along_their_axis():
  mask = masks.Segments(jnp.zeros((1, 3)), jnp.zeros((1, 4)), pad_id=9)
  ids_q, ids_k = jnp.array([[1, 2, 9]]), jnp.array([[1, 9, 2, 2]])
  rule = _rule(mask)
  want = np.array([[1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], bool)
  for keys in (0, 1):
    q, k = tile.positions(7, 3, 2, 4, keys)
    assert q.shape[1 - keys] == 3 and q.min() == 7 and q.max() == 9
    assert k.shape[keys] == 4 and k.min() == 2 and k.max() == 5
    leaves = tile.vector(ids_q, 1 - keys), tile.vector(ids_k, keys)
    got = tile.seen(rule, leaves, q, k)
    np.testing.assert_array_equal(got if keys == 1 else got.T, want)


def test_nothing_seen_has_no_weight():
  total = jnp.array([[2.0], [0.0]])
  np.testing.assert_array_equal(tile.inverse(total), [[0.5], [0.0]])
  rule = _rule()
  hidden = tile.hide(jnp.zeros((1, 2)), jnp.array([[False, False]]))
  top = jnp.maximum(hidden.max(1, keepdims=True), tile.LOWEST)
  np.testing.assert_array_equal(tile.power(rule, hidden - top), 0.0)
