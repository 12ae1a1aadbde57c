import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops import choice, product
from mmjax.parallel import mesh

LAST = (((2,), (0,)), ((), ()))
LAST_TWO = (((2, 3), (0, 1)), ((), ()))


def draw(*shape):
  return np.random.default_rng(len(shape)).normal(size=shape)


@pytest.mark.parametrize(
  "x, weights, numbers, rule",
  [
    ((2, 3, 4), (4, 5), LAST, "btd,df->btf"),
    ((2, 3, 4), (4, 5, 6), LAST, "btd,dnh->btnh"),
    ((2, 3, 5, 6), (5, 6, 4), LAST_TWO, "btnh,nhd->btd"),
    ((2, 0, 4), (4, 5), LAST, "btd,df->btf"),
    # No product of tokens with weights: left to JAX.
    ((2, 3, 4), (5, 4), (((2,), (1,)), ((), ())), "btd,fd->btf"),
    ((2, 3, 4), (3, 5), (((1,), (0,)), ((), ())), "btd,tf->bdf"),
    ((2, 3, 4), (2, 4, 5), (((2,), (1,)), ((0,), (0,))), "btd,bdf->btf"),
    ((3, 4), (3, 4), (((0, 1), (0, 1)), ((), ())), "td,td->"),
  ],
)
def test_is_what_numpy_says(x, weights, numbers, rule):
  x, weights = draw(*x), draw(*weights)
  got = product.dot_general(jnp.float32(x), jnp.float32(weights), numbers)
  want = np.einsum(rule, x, weights)
  assert got.shape == want.shape
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_values_and_gradients_are_what_numpy_says(platform, monkeypatch):
  monkeypatch.setattr(choice, "platform", lambda: platform)
  x, weights, d_out = draw(2, 3, 4), draw(4, 5, 6), draw(2, 3, 5, 6)
  bias = draw(5, 6)
  out, pull = jax.vjp(
    lambda x, w, b: product.dot_general(x, w, LAST, bias=b),
    jnp.float32(x),
    jnp.float32(weights),
    jnp.float32(bias),
  )
  want = np.einsum("btd,dnh->btnh", x, weights) + bias
  np.testing.assert_allclose(out, want, atol=1e-5)
  d_x, d_weights, d_bias = pull(jnp.float32(d_out))
  np.testing.assert_allclose(d_bias, d_out.sum((0, 1)), atol=1e-5)
  want_x = np.einsum("btnh,dnh->btd", d_out, weights)
  want_weights = np.einsum("btnh,btd->dnh", d_out, x)
  np.testing.assert_allclose(d_x, want_x, atol=1e-5)
  np.testing.assert_allclose(d_weights, want_weights, atol=1e-5)


def ranks():
  """Returns the number of axes of what is multiplied, in a gradient too."""

  def loss(x, w):
    return product.dot_general(x, w, LAST).sum()

  traced = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(
    jnp.ones((8, 3, 4)), jnp.ones((4, 5))
  )
  products = [e for e in traced.eqns if e.primitive.name == "dot_general"]
  return {v.aval.ndim for e in products for v in e.invars}


def test_only_one_cpu_merges_axes(monkeypatch):
  assert ranks() == {2}
  with jax.set_mesh(mesh.make_mesh({"data": 8})):
    assert 3 in ranks()
  monkeypatch.setattr(choice, "platform", lambda: "tpu")
  assert 3 in ranks()
