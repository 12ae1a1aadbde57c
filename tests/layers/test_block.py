import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.layers.block import Block, Spec, make_cache
from mmjax.layers.transformer import Stack
from mmjax.ops import masks

WIDTH = 8
CROSS = Spec(2, 16, head_dim=6, cross=True, order="post", layer_scale=0.5)


@pytest.mark.parametrize("order", ["pre", "post"])
def test_block_adds_its_branches_in_order(key, order, draw):
  """With silent projections a block is its norms and biases."""
  spec = Spec(2, 16, order=order, norm="rms", layer_scale=0.5)
  x = jax.random.normal(key, (2, 3, WIDTH))
  block = Block(spec)
  p = nn.unbox(draw(block, x))["params"]
  p = jax.tree.map(jnp.zeros_like, p)
  p["attention"]["out"]["bias"] = jnp.arange(8.0)
  p["mlp"]["down"]["bias"] = jnp.ones(8)
  for name in ("1", "2"):
    p[f"norm{name}"]["scale"] = 2 * jnp.ones(8)
    p[f"layer_scale{name}"] = jnp.full(8, 0.25)
  got, cache = jax.jit(block.apply)({"params": p}, x)
  assert cache is None
  want = x
  for branch in (np.arange(8.0), np.ones(8)):
    want = want + 0.25 * branch[None, None]
    if order == "post":
      want = want / np.sqrt(np.square(want).mean(-1, keepdims=True) + 1e-6) * 2
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("after_mlp", [None, "rms"])
def test_a_norm_can_end_each_branch(key, draw, after_mlp):
  x = jax.random.normal(key, (2, 3, WIDTH))
  block = Block(
    Spec(
      2,
      16,
      norm_after="rms",
      norm_mlp="layer_no_scale",
      norm_after_mlp=after_mlp,
    )
  )
  p = nn.unbox(draw(block, x))["params"]
  assert {n for n in p if n.startswith("norm")} == {
    "norm1",
    "norm1_after",
    "norm2",
  } | ({"norm2_after"} if after_mlp else set())
  assert list(p["mlp"]["norm"]) == ["bias"]
  p = jax.tree.map(jnp.zeros_like, p)
  p["attention"]["out"]["bias"] = jnp.arange(8.0)
  p["norm1_after"]["scale"] = 2 * jnp.ones(8)
  p["mlp"]["down"]["bias"] = 3 * jnp.ones(8)
  second = 3.0
  if after_mlp:
    p["norm2_after"]["scale"] = 0.5 * jnp.ones(8)
    second = 0.5
  branch = 2 * np.arange(8.0) / np.sqrt(np.square(np.arange(8.0)).mean() + 1e-6)
  got, _ = jax.jit(block.apply)({"params": p}, x)
  want = np.asarray(x) + branch + second
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
  "depth, cycle", [pytest.param(2, 1, marks=pytest.mark.slow), (4, 2)]
)
def test_a_stack_with_a_cache_gives_what_the_whole_gives(key, depth, cycle):
  stack = Stack(CROSS, depth)
  x = jax.random.normal(key, (2, 4, WIDTH))
  memory = jax.random.normal(jax.random.key(1), (2, 3, 10))
  seen = masks.Keys(jnp.array([[1, 1, 0], [0, 1, 1]]))
  lefts = (None, 1)[:cycle]

  def mask(q, k):
    return tuple(masks.Positions(q, k, left) for left in lefts)

  positions = jnp.tile(jnp.arange(4), (2, 1))
  kw = dict(memory=memory, memory_mask=seen)
  variables = nn.unbox(
    jax.jit(lambda k: stack.init(k, x, mask(positions, positions), **kw))(key)
  )
  assert ("block1" in variables["params"]["blocks"]) == (cycle == 2)
  apply = jax.jit(
    lambda v, x: stack.apply(v, x, mask(positions, positions), **kw)
  )
  want = apply(variables, x)
  cache = make_cache(
    CROSS, depth, width=WIDTH, batch=2, slots=4, memory=3, dtype=jnp.float32
  )

  @jax.jit
  def part(x, q, kv, memory, cache, slot):
    return stack.apply(
      variables,
      x,
      mask(q, kv),
      memory=memory,
      memory_mask=seen,
      cache=cache,
      slot=slot,
    )

  for start, stop in ((0, 2), (2, 3), (3, 4)):
    got, cache = part(
      x[:, start:stop],
      positions[:, start:stop],
      jnp.where(positions < stop, positions, -1),
      memory if start == 0 else None,
      cache,
      start,
    )
    np.testing.assert_allclose(got, want[:, start:stop], atol=1e-5)
  if cycle == 2:  # the band is seen
    alike = (masks.Positions(positions, positions),) * 2
    other = jax.jit(lambda v, x: stack.apply(v, x, alike, **kw))(variables, x)
    assert np.abs(other - want).max() > 1e-3


def test_depth_must_be_a_multiple_of_the_masks(key):
  x = jnp.ones((1, 2, WIDTH))
  with pytest.raises(errors.InputError, match=r"depth = 3 .* 2 masks"):
    Stack(Spec(2, 16), 3).init(key, x, (masks.Causal(), masks.Full()))


def test_unknown_order_names_the_known(key):
  x = jnp.ones((1, 2, WIDTH))
  with pytest.raises(errors.InputError, match=r"order = 'past'.*'post'"):
    Stack(Spec(2, 16, order="past"), 3).init(key, x)
