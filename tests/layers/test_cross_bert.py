"""BERT's blocks over a memory, against their own equations in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmjax.layers.block import Spec
from mmjax.layers.cross_bert import CrossBert
from mmjax.ops import masks

SPEC = Spec(2, 12, act="relu", order="post", cross=True, epsilon=1e-5)


@functools.cache
def make():
  model = CrossBert(11, 7, SPEC, 8, 1)
  tokens = jnp.array([[1, 4, 9], [10, 2, 0]])
  memory = jax.random.normal(jax.random.key(0), (2, 5, 6))

  def both(model, tokens, memory):
    return model.logits(model(tokens, masks.Causal(), memory=memory))

  init = jax.jit(functools.partial(model.init, method=both))
  params = nn.unbox(init(jax.random.key(1), tokens, memory))["params"]
  params = jax.tree.map(
    lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), params
  )
  apply = jax.jit(functools.partial(model.apply, method=both))
  got = apply({"params": params}, tokens, memory)
  return model, params, tokens, memory, got


def dense(x, p):
  return x @ p["kernel"] + p["bias"]


def norm(x, p):
  x = x - x.mean(-1, keepdims=True)
  return (
    x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]
  )


def attention(x, memory, p, causal):
  q, k, v = (
    np.einsum("btd,dnh->btnh", y, p[name]["kernel"]) + p[name]["bias"]
    for name, y in (("query", x), ("key", memory), ("value", memory))
  )
  scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
  if causal:
    scores = np.where(np.tri(x.shape[1]) > 0, scores, -1e30)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights = weights / weights.sum(-1, keepdims=True)
  out = np.einsum("bnts,bsnh->btnh", weights, v)
  return np.einsum("btnh,nhd->btd", out, p["out"]["kernel"]) + p["out"]["bias"]


def test_equations():
  _, params, tokens, memory, got = make()
  p = jax.tree.map(np.asarray, params)
  x = p["embedding"]["table"][tokens] + p["posemb"]["table"][:3]
  x = norm(x, p["embed_norm"])
  b = jax.tree.map(lambda a: a[0], p["blocks"]["blocks"])
  x = norm(x + attention(x, x, b["attention"], True), b["norm1"])
  x = norm(x + attention(x, memory, b["cross"], False), b["norm_cross"])
  hidden = np.maximum(dense(x, b["mlp"]["up"]), 0)
  x = norm(x + dense(hidden, b["mlp"]["down"]), b["norm2"])
  x = norm(np.maximum(dense(x, p["transform"]), 0), p["head_norm"])
  want = x @ p["embedding"]["table"].T + p["bias"]
  np.testing.assert_allclose(got, want, atol=2e-5)


def test_without_a_memory_there_is_no_cross_attention():
  model, params, tokens, memory, _ = make()
  apply = jax.jit(model.apply)
  want = apply({"params": params}, tokens, None)
  with_memory = apply({"params": params}, tokens, None, memory=memory)
  assert np.abs(want - with_memory).max() > 1e-2
  blocks = dict(params["blocks"]["blocks"])
  del blocks["cross"], blocks["norm_cross"]
  bare = {**params, "blocks": {"blocks": blocks}}
  np.testing.assert_array_equal(apply({"params": bare}, tokens, None), want)
