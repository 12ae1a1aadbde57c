import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.layers.attention import KV, Attention
from mmjax.ops import masks
from mmjax.ops.attention import attention
from mmjax.ops.kernels import reference
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


@pytest.mark.parametrize(
  "queries, biases", [(1, "qkvo"), (3, "qv"), (3, "")], ids=["1", "3", "none"]
)
def test_few_queries_attend_to_tokens_that_are_not_projected(
  key, queries, biases
):
  """The same as of projected ones, with gradients; where that is cheaper."""
  S, D, N, H = 40, 24, 4, 8
  keys = iter(jax.random.split(key, 20))
  x, y = (
    jax.random.normal(next(keys), (2, length, width))
    for length, width in ((queries, N * H), (S, D))
  )
  layer = Attention(N, biases=biases)
  variables = jax.tree.map(
    lambda p: 0.3 * jax.random.normal(next(keys), p.shape),
    nn.unbox(layer.init(key, x, y)),
  )

  def ours(variables, x, y, mask=None):
    return layer.apply(variables, x, y, mask)

  def plain(variables, x, y):
    def dense(name, x, equation):
      weights = variables["params"][name]
      x = jnp.einsum(equation, x, weights["kernel"])
      bias = weights.get("bias", jnp.zeros(()))
      return x + jnp.broadcast_to(bias, x.shape)

    q, k, v = (
      dense(name, x, "btd,dnh->btnh")
      for name, x in (("query", x), ("key", y), ("value", y))
    )
    out = jax.nn.dot_product_attention(q, k, v)
    return dense("out", out, "btnh,nhd->btd")

  def run(f):
    grads = jax.grad(lambda *args: jnp.sin(f(*args)).sum(), (0, 1, 2))
    return jax.jit(lambda *args: (f(*args), grads(*args)))(variables, x, y)

  got, want = run(ours), run(plain)
  largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest),
    got,
    want,
  )
  projected = f"f32[2,{S},{N},{H}]"
  assert projected not in str(jax.make_jaxpr(ours)(variables, x, y))
  mask = masks.KeyPadding(jnp.array([2, 5]))
  assert projected in str(jax.make_jaxpr(ours)(variables, x, y, mask))
  many = jnp.repeat(x, S, 1)
  assert projected in str(jax.make_jaxpr(ours)(variables, many, y))


def test_it_may_give_out_another_width(key):
  x = jax.random.normal(key, (2, 5, 16))
  layer = Attention(4, out_width=6)
  out, variables = jax.jit(layer.init_with_output)(key, x)
  p = nn.unbox(variables)["params"]
  assert out.shape == (2, 5, 6)
  assert p["query"]["kernel"].shape == (16, 4, 4)
  assert p["out"]["kernel"].shape == (4, 4, 6)


def test_width_and_heads_must_fit(key):
  with pytest.raises(errors.InputError, match=r"width 10 .* heads = 4"):
    Attention(4).init(key, jnp.ones((1, 2, 10)))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_same_on_a_mesh_with_dropout_and_a_mask(key, kv_heads, draw):
  layer = Attention(4, kv_heads=kv_heads, dropout=0.3)
  x = jax.random.normal(key, (8, 5, 16))
  mask = masks.KeyPadding(jnp.arange(8) % 6) | masks.Prefix(1)
  params = nn.unbox(draw(layer, x))

  def f(params, x, mask):
    y = layer.apply(params, x, None, mask, False, rngs={"dropout": key})
    return jnp.square(y).mean(), y

  # One jitted function a layout: the layout is no part of the cache's key.
  def make():
    return jax.jit(lambda *a: jax.grad(f, has_aux=True)(*a))

  want = make()(params, x, mask)
  with rules.Layout(mesh.make_mesh(dict(data=2, fsdp=2, tensor=2))).use():
    got = make()(params, x, mask)
  for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
    np.testing.assert_allclose(a, np.asarray(b), atol=1e-6)
  still = jax.jit(layer.apply)(params, x, None, mask)
  assert np.abs(still - want[1]).max() > 1e-3


def test_same_on_a_mesh_where_scores_are_large(key, draw, monkeypatch):
  """So that each device computes its heads in turn."""
  monkeypatch.setattr(reference, "_LARGE", 0)
  monkeypatch.setattr(reference, "_HEAD", 0)
  layer = Attention(4, kv_heads=2)
  x = jax.random.normal(key, (4, 5, 16))
  mask = masks.KeyPadding(jnp.array([5, 3, 0, 1]))
  params = nn.unbox(draw(layer, x))

  def make():
    return jax.jit(lambda *args: layer.apply(*args))

  want = make()(params, x, None, mask)
  with rules.Layout(mesh.make_mesh(dict(data=2, fsdp=2, tensor=2))).use():
    got = make()(params, x, None, mask)
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_same_where_devices_share_a_sequence(key, draw):
  layer = Attention(4, kv_heads=2, dropout=0.3)
  x = jax.random.normal(key, (4, 8, 16))
  mask = masks.KeyPadding(jnp.array([8, 3, 0, 5])) & masks.Causal()
  params = nn.unbox(draw(layer, x))

  def f(params, x, mask):
    y = layer.apply(params, x, None, mask, False, rngs={"dropout": key})
    return jnp.square(y).mean(), y

  def make():
    return jax.jit(lambda *a: jax.grad(f, has_aux=True)(*a))

  want = make()(params, x, mask)
  with rules.Layout(mesh.make_mesh(dict(data=2, tensor=2, context=2))).use():
    lowered = make().lower(params, x, mask)
    got = lowered.compile()(params, x, mask)
  assert "collective_permute" in lowered.as_text()  # the ring
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want
  )


def test_a_cache_gives_what_the_whole_gives(key, draw):
  """Token by token with a cache, padded on the left, as all at once."""
  layer = Attention(4, kv_heads=2, rotary=100.0, softcap=3.0, biases="qv")
  x = jax.random.normal(key, (2, 5, 16))
  positions = jnp.array([[0, 1, 2, 3, 4], [-1, -1, 0, 1, 2]])
  bias = jax.random.normal(key, (1, 4, 5, 5))
  mask = masks.Positions(positions, positions, left=2)
  params = nn.unbox(draw(layer, x))
  assert "bias" not in params["params"]["key"]
  assert "bias" not in params["params"]["out"]
  apply = jax.jit(layer.apply)
  want = apply(params, x, None, mask, bias=bias, positions=positions)
  cache = KV(*jnp.zeros((2, 2, 5, 2, 4)))

  @jax.jit
  def step(cache, x, slot):
    at = jax.lax.dynamic_slice_in_dim(positions, slot, x.shape[1], 1)
    seen = jnp.where(jnp.arange(5)[None] < slot + x.shape[1], positions, -1)
    return layer.apply(
      params,
      x,
      None,
      masks.Positions(at, seen, left=2),
      bias=jax.lax.dynamic_slice_in_dim(bias, slot, x.shape[1], 2),
      positions=at,
      cache=cache,
      slot=slot,
    )

  for start, stop in ((0, 2), (2, 3), (3, 4), (4, 5)):
    got, cache = step(cache, x[:, start:stop], start)
    np.testing.assert_allclose(got, want[:, start:stop], atol=1e-5)
  assert (np.asarray(want)[1, :2] == 0).all()


def test_memory_is_kept_in_the_cache(key, draw):
  layer = Attention(4)
  x, memory = jax.random.normal(key, (2, 2, 3, 16))
  mask = masks.Keys(jnp.array([[0, 1, 1], [1, 1, 0]]))
  empty = KV(*jnp.zeros((2, 2, 3, 4, 4)))
  params = nn.unbox(draw(layer, x, memory))
  apply = jax.jit(layer.apply)
  want = apply(params, x, memory, mask)
  first, cache = apply(params, x, memory, mask, cache=empty)
  second, same = apply(params, x, None, mask, cache=cache)
  np.testing.assert_allclose(first, want, atol=1e-6)
  np.testing.assert_allclose(second, want, atol=1e-6)
  np.testing.assert_array_equal(same.k, cache.k)
