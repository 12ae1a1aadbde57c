import jax
import jax.numpy as jnp
import numpy as np

from mmjax.layers import pool
from mmjax.ops.masks import Keys


def test_mean_counts_only_its_tokens(key):
  x = jax.random.normal(key, (3, 4, 2))
  np.testing.assert_allclose(pool.mean(x), x.mean(1), atol=1e-6)
  got = pool.mean(x, jnp.array([2, 4, 0]))
  np.testing.assert_allclose(got[0], x[0, :2].mean(0), atol=1e-6)
  np.testing.assert_allclose(got[1], x[1].mean(0), atol=1e-6)
  np.testing.assert_array_equal(got[2], 0)


def test_mean_where_takes_tokens_anywhere(key):
  x = jax.random.normal(key, (3, 4, 2))
  keep = jnp.array([[0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
  for kind in (jnp.int32, bool):
    got = pool.mean_where(x, keep.astype(kind))
    np.testing.assert_allclose(got[0], (x[0, 1] + x[0, 3]) / 2, atol=1e-6)
    np.testing.assert_allclose(got[1], x[1].mean(0), atol=1e-6)
    np.testing.assert_array_equal(got[2], 0)


def test_unit_is_of_length_1_unless_it_is_0(key):
  x = jax.random.normal(key, (3, 4)).at[1].set(0.0)
  got = pool.unit(x)
  np.testing.assert_allclose(jnp.linalg.norm(got, axis=-1), [1, 0, 1], 1e-6)
  np.testing.assert_allclose(got[0], x[0] / jnp.linalg.norm(x[0]), atol=1e-6)
  assert np.isfinite(jax.grad(lambda x: pool.unit(x).sum())(x)).all()


def test_at_takes_one_token(key):
  x = jax.random.normal(key, (2, 4, 3))
  got = pool.at(x, jnp.array([3, 1]))
  np.testing.assert_array_equal(got, jnp.stack([x[0, 3], x[1, 1]]))


def test_map_head_is_blind_to_order_and_padding(key):
  x = jax.random.normal(key, (2, 5, 8))
  head = pool.MAPHead(2, 16)
  y, variables = jax.jit(head.init_with_output)(key, x)
  assert y.shape == (2, 8)
  apply = jax.jit(head.apply)
  np.testing.assert_allclose(apply(variables, x[:, ::-1]), y, atol=1e-5)
  lengths = jnp.array([3, 5])
  masked = apply(variables, x, lengths)
  moved = apply(variables, x.at[0, 3:].add(9.0), lengths)
  np.testing.assert_allclose(masked, moved, atol=1e-6)
  np.testing.assert_allclose(masked[1], y[1], atol=1e-6)
  assert np.abs(masked[0] - y[0]).max() > 1e-3


def test_a_head_starts_at_zero(key):
  x = jax.random.normal(key, (2, 4))
  y, variables = pool.head(3, jnp.float32, "head").init_with_output(key, x)
  np.testing.assert_array_equal(y, np.zeros((2, 3)))
  assert variables["params"]["kernel"].names == ("embed", "classes")


def test_map_head_reads_where_its_mask_says(key):
  x = jax.random.normal(key, (2, 5, 8))
  head = pool.MAPHead(2, 16)
  variables = jax.jit(head.init)(key, x)
  apply = jax.jit(lambda x: head.apply(variables, x))
  masked = jax.jit(
    lambda lengths: head.apply(variables, x, lengths, mask=Keys(read))
  )
  read = jnp.array([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1]])
  got = masked(None)
  for row in range(2):
    kept = x[row][np.asarray(read[row]) == 1][None]
    want = apply(kept)
    np.testing.assert_allclose(got[row], want[0], atol=1e-5)
  both = masked(jnp.array([3, 2]))
  want = apply(x[:1, jnp.array([0, 2])])
  np.testing.assert_allclose(both[0], want[0], atol=1e-5)
