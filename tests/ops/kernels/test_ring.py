"""The ring against the whole: the same numbers, and gradients, on 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops import dropout, masks
from mmjax.ops.attention import attention
from mmjax.parallel import mesh, rules

B, T, S, N, K, H = 2, 8, 12, 4, 2, 6
PARTS = 4


def ids(rng, length):
  return jnp.asarray(rng.integers(0, 3, (B, length)), jnp.int32)


def case(name, rng):
  """Returns the mask and what else `attention` is given."""

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  if name == "causal, softcap":
    return masks.Causal(2), dict(softcap=2.0)
  if name == "segments, bias":
    mask = masks.Segments(ids(rng, T), ids(rng, S)) & masks.Local(5, 3)
    return mask, dict(bias=normal(1, N, T, S))
  if name == "lengths, narrow bias":
    mask = masks.KeyPadding(jnp.array([7, 0])) | masks.Prefix(1)
    return mask, dict(bias=normal(B, 1, 1, S), scale=0.3)
  if name == "nothing seen, query bias":
    return masks.KeyPadding(jnp.array([7, 0])), dict(bias=normal(B, N, T, 1))
  return None, dict(dropout_rate=0.4)


NAMES = (
  "causal, softcap",
  "segments, bias",
  "lengths, narrow bias",
  "nothing seen, query bias",
  "full, dropout",
)


@pytest.mark.parametrize("name", NAMES)
def test_same_as_the_whole(name):
  rng = np.random.default_rng(0)
  q, k, v, g = (
    jnp.asarray(rng.normal(size=(B, n, heads, H)), jnp.float32)
    for n, heads in ((T, N), (S, K), (S, K), (T, N))
  )
  mask, keywords = case(name, rng)
  bias = keywords.pop("bias", None)
  seeds = None
  if "dropout_rate" in keywords:
    seeds = dropout.seeds(jax.random.key(0), B, N)

  def whole(q, k, v, bias):
    return attention(
      q, k, v, mask=mask, bias=bias, dropout_rng=seeds, **keywords
    )

  def ring(q, k, v, bias):
    names = ("batch", "length", "heads", None)
    biased = None
    if bias is not None:
      biased = tuple(
        n if size > 1 else None
        for n, size in zip(
          ("batch", "heads", "length"), bias.shape, strict=False
        )
      )
    return rules.per_shard(
      lambda q, k, v, mask, bias, seeds: attention(
        q,
        k,
        v,
        mask=mask,
        bias=bias,
        dropout_rng=seeds,
        axis="context",
        **keywords,
      ),
      [names, names, names, ("batch", "length"), biased, ("batch", "heads")],
      names,
      check=False,
    )(q, k, v, mask, bias, seeds)

  def with_gradients(f):
    def run(q, k, v, bias):
      out, back = jax.vjp(f, q, k, v, bias)
      return out, back(g)

    return jax.jit(run)

  want = with_gradients(whole)(q, k, v, bias)
  with rules.Layout(mesh.make_mesh(dict(tensor=2, context=PARTS))).use():
    got = with_gradients(ring)(q, k, v, bias)
  # (What is added to all scores of a query changes nothing.)
  assert all(np.abs(x).max() > 0.01 for x in (want[0], *want[1][:3]))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want
  )


def test_no_device_holds_more_than_its_part():
  names = ("batch", "length", "heads", None)
  x = jax.ShapeDtypeStruct((1, 512, 2, 8), jnp.float32)

  def loss(q):
    out = rules.per_shard(
      lambda q: attention(q, q, q, mask=masks.Causal(), axis="context"),
      [names],
      names,
      check=False,
    )(q)
    return jnp.square(out).sum()

  layout = rules.Layout(mesh.make_mesh(dict(context=8)))
  with layout.use():
    sharding = layout.sharding(names, x.shape)
    program = jax.jit(jax.grad(loss), in_shardings=sharding).lower(x).compile()
  scores = 2 * 512 * 512 * 4
  assert program.memory_analysis().temp_size_in_bytes < scores / 8
  assert "all-gather" not in program.as_text()
