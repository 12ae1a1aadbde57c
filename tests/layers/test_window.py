"""Shifted windows against attention that is written out pair by pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax.layers import window


def test_windows_are_squares_of_the_grid_and_join_again():
  grid = np.arange(2 * 4 * 6 * 1).reshape(2, 4, 6, 1)
  found = np.asarray(window.partition(jnp.asarray(grid), 2))
  assert found.shape == (2 * 6, 4, 1)
  np.testing.assert_array_equal(
    found[6 + 4, :, 0], grid[1, 2:4, 2:4, 0].reshape(-1)
  )
  np.testing.assert_array_equal(window.join(jnp.asarray(found), 2, 4, 6), grid)


def test_regions_are_what_the_roll_did_not_tear_apart():
  size, shift = 4, 2
  found = window.regions(8, 12, size, shift)
  assert found.shape == (6, 16) and found.min() == 1
  for w, ids in enumerate(found):
    y0, x0 = w // 3 * size, w % 3 * size
    came_round = [
      (y0 + i // size + shift >= 8, x0 + i % size + shift >= 12)
      for i in range(16)
    ]
    for i, a in enumerate(came_round):
      for j, b in enumerate(came_round):
        assert (ids[i] == ids[j]) == (a == b), (w, i, j)


def attend(x, p, size, shift):
  """Attention of x [Y X D], token by token over those of its window."""
  Y, X, _ = x.shape
  rows, columns = Y + -Y % size, X + -X % size
  padded = np.zeros((rows, columns, x.shape[2]))
  padded[:Y, :X] = x
  q, k, v = (
    np.einsum("yxd,dnh->yxnh", padded, p["attention"][name]["kernel"])
    + p["attention"][name]["bias"]
    for name in ("query", "key", "value")
  )
  out = np.zeros_like(x)
  for y in range(Y):
    for c in range(X):
      seen = [
        (i, j)
        for i in range(rows)
        for j in range(columns)
        if (i - shift) // size == (y - shift) // size
        and (j - shift) // size == (c - shift) // size
      ]
      # From the query to the key, rows before columns.
      places = [
        (y - i + size - 1) * (2 * size - 1) + c - j + size - 1 for i, j in seen
      ]
      keys = np.stack([k[i, j] for i, j in seen])
      values = np.stack([v[i, j] for i, j in seen])
      scores = np.einsum("nh,snh->sn", q[y, c], keys) / q.shape[-1] ** 0.5
      scores += p["table"][places]
      weights = np.exp(scores - scores.max(0))
      mixed = np.einsum("sn,snh->nh", weights / weights.sum(0), values)
      out[y, c] = np.einsum("nh,nhd->d", mixed, p["attention"]["out"]["kernel"])
  return out + p["attention"]["out"]["bias"]


def test_attention_is_that_of_each_window(key):
  # 7 rows do not fill windows of 4: the padding is looked at.
  layer = window.WindowAttention(2, 4)
  x = jax.random.normal(key, (1, 7, 8, 4))
  variables = nn.unbox(jax.eval_shape(layer.init, key, x))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda a: rng.normal(size=a.shape).astype(np.float32), variables
  )
  f = jax.jit(layer.apply)
  found = []
  for shifted in (False, True):
    got = f(variables, x, jnp.asarray(shifted))[0]
    want = attend(np.asarray(x[0]), variables["params"], 4, 2 * shifted)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    found.append(got)
  assert np.abs(found[0] - found[1]).max() > 1e-2


@pytest.mark.parametrize("side, table", [(4, 7), (3, 5), (9, 7)])
def test_a_window_is_no_larger_than_the_grid(side, table, key):
  stage = window.WindowStage(3, 4, block=(("heads", 2), ("mlp", 6)))
  x = jax.ShapeDtypeStruct((1, side, side, 8), jnp.float32)
  found = nn.unbox(jax.eval_shape(stage.init, key, x))["params"]["blocks"]
  assert found["window"]["table"].shape == (3, table**2, 2)


def test_stochastic_depth_drops_branches_of_an_example(key):
  stage = window.WindowStage(
    1, 2, drop_path=(0.5,), block=(("heads", 1), ("mlp", 4))
  )
  x = jax.random.normal(key, (8, 2, 2, 4))
  variables = jax.jit(stage.init)(key, x)
  f = jax.jit(lambda k: stage.apply(variables, x, False, rngs={"dropout": k}))
  moved = np.abs(f(jax.random.key(3)) - x).max((1, 2, 3)) > 1e-6
  assert 0 < moved.sum() < 8


def test_merge_goes_down_the_columns(key):
  x = jax.random.normal(key, (1, 4, 2, 3))
  layer = window.Merge()
  y, variables = jax.jit(layer.init_with_output)(key, x)
  kernel = np.asarray(nn.unbox(variables)["params"]["dense"]["kernel"])
  row = np.asarray(x)[0, 2:4]
  four = np.concatenate([row[0, 0], row[1, 0], row[0, 1], row[1, 1]])
  four = (four - four.mean()) / np.sqrt(four.var() + 1e-5)
  assert y.shape == (1, 2, 1, 6)
  np.testing.assert_allclose(y[0, 1, 0], four @ kernel, atol=1e-5)
