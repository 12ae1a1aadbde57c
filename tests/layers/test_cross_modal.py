import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.layers.attention import Attention
from mmjax.layers.block import Spec
from mmjax.layers.cross_modal import CrossBlock, CrossStack

SPEC = Spec(2, 12, act="relu", epsilon=1e-12, order="post")


@pytest.fixture
def streams(key):
  a, b = jax.random.split(key)
  return jax.random.normal(a, (2, 3, 8)), jax.random.normal(b, (2, 5, 8))


def normal(x):
  x = x - x.mean(-1, keepdims=True)
  return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)


def test_a_block_step_by_step(streams, draw):
  block = CrossBlock(SPEC)
  variables = nn.unbox(draw(block, streams, (None, None)))
  apply = jax.jit(block.apply)
  (text, regions), _ = apply(variables, streams, (None, None))
  p = variables["params"]

  attention = jax.jit(Attention(2).apply)

  def attend(name, x, y):
    return attention({"params": p[name]}, x, y)

  def mlp(name, x):
    hidden = jax.nn.relu(x @ p[name]["up"]["kernel"])
    return hidden @ p[name]["down"]["kernel"]

  # Both directions by one set of parameters, from the streams as they were.
  a = normal(streams[0] + attend("cross", streams[0], streams[1]))
  b = normal(streams[1] + attend("cross", streams[1], streams[0]))
  for name, x, got in (("text", a, text), ("regions", b, regions)):
    x = normal(x + attend(f"{name}_attention", x, x))
    x = normal(x + mlp(f"{name}_mlp", x))
    np.testing.assert_allclose(got, x, atol=1e-4)


@pytest.mark.slow  # LXMERT is recorded
def test_a_stack_is_its_blocks_one_by_one(streams, draw):
  stack = CrossStack(SPEC, 2)
  variables = nn.unbox(draw(stack, *streams))
  leaves = variables["params"]["blocks"]
  want, block = streams, jax.jit(CrossBlock(SPEC).apply)
  for i in range(2):
    one = {"params": jax.tree.map(lambda x, i=i: x[i], leaves)}
    want, _ = block(one, want, (None, None))

  def loss(variables, **kw):
    text, regions = CrossStack(SPEC, 2, **kw).apply(variables, *streams)
    return (text[..., :3] ** 2).sum() + regions[..., 0].sum(), (text, regions)

  grads = []
  for kw in (dict(), dict(scan=False, remat="full")):
    grad, got = jax.jit(jax.grad(lambda v, kw=kw: loss(v, **kw), has_aux=True))(
      variables
    )
    for a, b in zip(got, want, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-4)
    grads.append(jax.tree.leaves(grad))
  for other in grads[1:]:
    for a, b in zip(grads[0], other, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-3)


def test_none_is_nothing_and_an_unknown_policy_is_named(key, streams):
  text, regions = CrossStack(SPEC, 0).apply({}, *streams)
  assert text is streams[0] and regions is streams[1]
  with pytest.raises(errors.InputError, match="remat = 'some'"):
    CrossStack(SPEC, 1, remat="some").init(key, *streams)
