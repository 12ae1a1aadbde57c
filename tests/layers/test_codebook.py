import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.layers.codebook import Codebook, GumbelCodebook


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


def gumbel():
  """Returns a codebook with logits of its own, and what it is asked about."""
  generator = np.random.default_rng(3)

  def draw(*shape):
    return np.float32(generator.normal(size=shape))

  params = {
    "table": draw(7, 4),
    "proj": {"kernel": draw(4, 7), "bias": draw(7)},
  }
  return GumbelCodebook(7, 4), {"params": params}, draw(2, 3, 5, 4)


def test_the_likeliest_id_is_taken_and_kl_is_from_equal_chances():
  book, variables, z = gumbel()
  params = variables["params"]
  ids, vectors, losses = book.apply(variables, z, method="quantise")
  logits = np.float64(z) @ params["proj"]["kernel"] + params["proj"]["bias"]
  np.testing.assert_array_equal(ids, logits.argmax(-1))
  np.testing.assert_array_equal(ids, book.apply(variables, z, method="ids"))
  assert len(np.unique(ids)) > 3
  np.testing.assert_allclose(vectors, params["table"][ids], atol=1e-6)
  p = np.exp(logits)
  p /= p.sum(-1, keepdims=True)
  kl = (p * np.log(p * 7)).sum(-1).mean()
  np.testing.assert_allclose(losses["kl"], kl, rtol=1e-5)


def test_draws_follow_the_chances_and_gradients_the_softmax():
  book, variables, z = gumbel()
  one = np.broadcast_to(z[:1, :1, :1], (1, 100, 100, 4))
  ids, _, _ = book.apply(
    variables, one, 1.0, jax.random.key(0), method="quantise"
  )
  params = variables["params"]
  logits = np.float64(z[0, 0, 0]) @ params["proj"]["kernel"]
  p = np.exp(logits + params["proj"]["bias"])
  p /= p.sum()
  found = np.bincount(np.ravel(ids), minlength=7) / 1e4
  np.testing.assert_allclose(found, p, atol=0.02)
  assert found.max() < 0.99  # chances are not all or nothing

  def moved(z, table):
    params = {**variables["params"], "table": table}
    _, y, _ = book.apply({"params": params}, z, 2.0, method="quantise")
    return jnp.square(y).sum()

  def relaxed(z):
    proj = variables["params"]["proj"]
    logits = z @ proj["kernel"] + proj["bias"][None, None, None]
    soft = jax.nn.softmax(logits / 2.0)
    hard = jax.lax.stop_gradient(
      jax.nn.one_hot(soft.argmax(-1), 7) @ variables["params"]["table"]
    )
    return 2 * (hard * (soft @ variables["params"]["table"])).sum()

  to_z, to_table = jax.grad(moved, (0, 1))(z, variables["params"]["table"])
  np.testing.assert_allclose(to_z, jax.grad(relaxed)(z), atol=1e-4)
  used = np.unique(book.apply(variables, z, method="ids"))
  rows = np.abs(np.asarray(to_table)).max(-1) > 1e-5
  np.testing.assert_array_equal(np.nonzero(rows)[0], used)
