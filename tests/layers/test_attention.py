import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.layers.attention import Attention
from mmjax.ops import masks
from mmjax.ops.attention import attention
from mmjax.parallel import mesh, rules


def test_is_projections_around_the_op(key):
  x, y = jax.random.normal(key, (2, 2, 5, 16))
  layer = Attention(4, kv_heads=2, head_dim=6)
  mask = masks.KeyPadding(jnp.array([2, 5]))
  out, variables = jax.jit(layer.init_with_output)(key, x, y, mask)
  p = nn.unbox(variables)["params"]
  assert p["key"]["kernel"].shape == (16, 2, 6)
  q, k, v = (
    jnp.einsum("btd,dnh->btnh", a, p[name]["kernel"])
    for a, name in ((x, "query"), (y, "key"), (y, "value"))
  )
  want = jnp.einsum(
    "btnh,nhd->btd", attention(q, k, v, mask=mask), p["out"]["kernel"]
  )
  np.testing.assert_allclose(out, want, atol=1e-5)


def test_width_and_heads_must_fit(key):
  with pytest.raises(errors.InputError, match=r"width 10 .* heads = 4"):
    Attention(4).init(key, jnp.ones((1, 2, 10)))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_same_on_a_mesh_with_dropout_and_a_mask(key, kv_heads):
  layer = Attention(4, kv_heads=kv_heads, dropout=0.3)
  x = jax.random.normal(key, (8, 5, 16))
  mask = masks.KeyPadding(jnp.arange(8) % 6) | masks.Prefix(1)
  params = nn.unbox(jax.jit(layer.init)(key, x))

  def f(params, x, mask):
    y = layer.apply(params, x, None, mask, False, rngs={"dropout": key})
    return jnp.square(y).mean(), y

  # One jitted function a layout: the layout is no part of the cache's key.
  make = lambda: jax.jit(lambda *a: jax.grad(f, has_aux=True)(*a))  # noqa: E731
  want = make()(params, x, mask)
  with rules.Layout(mesh.make_mesh(dict(data=2, fsdp=2, tensor=2))).use():
    got = make()(params, x, mask)
  for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
    np.testing.assert_allclose(a, np.asarray(b), atol=1e-6)
  still = layer.apply(params, x, None, mask)
  assert np.abs(still - want[1]).max() > 1e-3
