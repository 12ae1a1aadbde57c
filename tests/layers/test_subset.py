import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.layers import subset


def test_kept_is_cut_and_never_none():
  assert [subset.kept(r, 196) for r in (0.0, 0.75, 0.999)] == [196, 49, 1]
  assert subset.kept(0.5, 9) == 4
  assert subset.kept(0.8, 512) == 102


def test_shuffled_goes_there_and_back(key):
  x = jax.random.normal(key, (3, 7, 2))
  order, places = subset.shuffled(jax.random.uniform(key, (3, 7)))
  mixed = subset.take(x, order)
  assert np.abs(mixed - x).max() > 0.1
  np.testing.assert_array_equal(subset.take(mixed, places), x)


def test_order_is_that_of_the_noise():
  order, places = subset.shuffled(jnp.array([[0.5, 0.1, 0.9]]))
  np.testing.assert_array_equal(order, [[1, 0, 2]])
  np.testing.assert_array_equal(places, [[1, 0, 2]])


def test_drop_keeps_each_patch_equally_often_and_in_order(key):
  count = 2000
  x = jnp.arange(6.0).reshape(1, 6, 1).repeat(count, 0)
  y = np.asarray(subset.drop(x, 0.5, key))[:, :, 0]
  assert y.shape == (count, 3)
  assert (np.diff(y, axis=1) > 0).all()
  shares = [(y == i).any(1).mean() for i in range(6)]
  np.testing.assert_allclose(shares, 0.5, atol=0.05)


def test_the_mask_token_stands_where_it_is_asked_for(key):
  x = jax.random.normal(key, (2, 2, 3, 4))
  hidden = jnp.array([[0, 1, 0, 0, 0, 1], [0] * 6])
  y, variables = subset.MaskToken().init_with_output(key, x, hidden)
  token = nn.unbox(variables)["params"]["token"]
  got, x = np.asarray(y).reshape(2, 6, 4), np.asarray(x).reshape(2, 6, 4)
  np.testing.assert_array_equal(got[0, [1, 5]], np.stack([token] * 2))
  np.testing.assert_array_equal(got[0, [0, 2, 3, 4]], x[0, [0, 2, 3, 4]])
  np.testing.assert_array_equal(got[1], x[1])


def test_a_mask_of_another_shape_is_refused(key):
  with pytest.raises(errors.InputError, match=r"\(2, 5\): .* give \(2, 6\)"):
    subset.MaskToken().init(key, jnp.zeros((2, 2, 3, 4)), jnp.zeros((2, 5)))
