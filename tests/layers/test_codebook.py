import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.layers.codebook import Codebook


def test_ids_are_the_nearest_by_brute_force():
  generator = np.random.default_rng(0)
  table = np.float32(generator.normal(size=(50, 6)))
  z = np.float32(generator.normal(size=(2, 5, 4, 6)))
  book = Codebook(50, 6)
  variables = {"params": {"table": table}}
  ids = jax.jit(lambda z: book.apply(variables, z, method="ids"))(z)
  far = ((np.float64(z)[..., None, :] - np.float64(table)) ** 2).sum(-1)
  np.testing.assert_array_equal(ids, far.argmin(-1))
  assert ids.dtype == jnp.int32 and len(np.unique(ids)) > 10
  np.testing.assert_array_equal(book.apply(variables, ids), table[ids])


def test_of_equal_codes_the_first_is_taken():
  table = jnp.array([[5.0, 5.0], [1.0, 2.0], [1.0, 2.0], [0.0, 9.0]])
  z = jnp.array([[[[1.0, 2.1]]]])
  ids = Codebook(4, 2).apply({"params": {"table": table}}, z, method="ids")
  np.testing.assert_array_equal(ids, [[[1]]])


def test_an_id_that_is_not_there_shows():
  variables = {"params": {"table": jnp.ones((4, 2))}}
  found = Codebook(4, 2).apply(variables, jnp.array([[[3, 4]]]))
  np.testing.assert_array_equal(np.isnan(found[0, 0]).all(-1), [False, True])


def test_starts_within_one_over_the_codes(key):
  ids = jnp.zeros((1, 1, 1), jnp.int32)
  boxed = Codebook(8, 500).init(key, ids)["params"]["table"]
  assert boxed.names == ("vocab", "embed")
  table = nn.unbox(boxed)
  assert table.shape == (8, 500)
  assert 0.12 < np.abs(table).max() <= 1 / 8
