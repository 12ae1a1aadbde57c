import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors, tree
from mmjax.models import text_encoder

TOKENS = jnp.array([[5, 6, 7, 0, 0, 0], [8, 0, 9, 63, 2, 1]])


@pytest.fixture(scope="module")
def run(draw):
  """Takes a pool and keywords; returns a function from tokens to embeddings."""

  @functools.cache
  def drawn(pool):  # only the pool has parameters of its own
    model = text_encoder.build(**{**text_encoder.TINY, "pool": pool})
    return nn.unbox(draw(model, TOKENS))

  @functools.cache
  def made(pool, **kw):
    model = text_encoder.build(**{**text_encoder.TINY, "pool": pool, **kw})
    apply, variables = jax.jit(model.apply), drawn(pool)
    return lambda tokens: np.asarray(apply(variables, tokens))

  return made


def test_count_of_clip_b_32():
  # The published count of the whole model (151,277,313) less its image tower
  # (87,849,216 with its projection), the text projection and the temperature.
  model = text_encoder.build("M", vocab_size=49408, length=77)
  tokens = jax.ShapeDtypeStruct((1, 77), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
  want = 151_277_313 - 87_849_216 - 512 * 512 - 1
  assert tree.count(nn.unbox(shapes)) == want


def test_lengths_end_at_the_last_token():
  np.testing.assert_array_equal(text_encoder.text_lengths(TOKENS, 0), [3, 6])
  zeros = jnp.zeros((1, 4), jnp.int32)
  np.testing.assert_array_equal(text_encoder.text_lengths(zeros, 0), [0])


@pytest.mark.parametrize("pool", text_encoder.POOLS)
def test_padding_is_not_read(run, pool):
  embed = run(pool)
  y = embed(TOKENS)
  assert y.shape == (2, 32)
  # Fewer padding tokens, same text.
  np.testing.assert_allclose(embed(TOKENS[:1, :4])[0], y[0], atol=1e-5)
  # Negative control: with padding in sight it does matter, but to the pool
  # that reads an early token of a causal model.
  seen = run(pool, mask_pad=False)
  assert np.abs(seen(TOKENS[:1, :4])[0] - seen(TOKENS)[0]).max() > 1e-4


def test_causal_reads_only_what_came_before(run):
  moved = TOKENS.at[1, 4].set(33)
  for causal in (False, True):
    # Read at id 63, the greatest, place 3: before the change.
    embed = run("eot", causal=causal)
    same = np.abs(embed(TOKENS)[1] - embed(moved)[1]).max() < 1e-6
    assert same == causal


def test_eot_at_its_first_place(run):
  embed = run("eot", causal=True, eot_id=9)
  moved = TOKENS.at[1, 3].set(9)  # a second one, later
  np.testing.assert_allclose(embed(TOKENS)[1], embed(moved)[1], atol=1e-6)


def test_last_is_the_very_last_without_mask_pad(run):
  embed = run("last", mask_pad=False, causal=True)
  moved = TOKENS.at[0, 5].set(9)
  assert np.abs(embed(TOKENS)[0] - embed(moved)[0]).max() > 1e-3


@pytest.mark.parametrize("pool", ["last", "map"])
def test_epsilon_reaches_every_norm(run, pool):
  embeddings = [run(pool, epsilon=e)(TOKENS) for e in (1e-6, 1e9)]
  # So large a one leaves nothing but biases, which are 0 at the start, and in
  # the pooling head a norm more.
  assert np.abs(embeddings[0]).max() > 1e-2
  assert np.abs(embeddings[1]).max() < 1e-3


def test_errors_name_the_field(key):
  with pytest.raises(errors.InputError, match="variant = 'Q'"):
    text_encoder.build("Q", vocab_size=8)
  with pytest.raises(errors.InputError, match="depth, heads, mlp not given"):
    text_encoder.build(vocab_size=8, width=8)
  with pytest.raises(errors.InputError, match="pool = 'avg'"):
    text_encoder.build("S", vocab_size=8, pool="avg")
  model = text_encoder.build(**text_encoder.TINY)
  with pytest.raises(errors.InputError, match="length = 8"):
    model.init(key, jnp.ones((1, 9), jnp.int32))


def test_norm_pooled_comes_after_the_pool(key):
  """A token whose embedding is zero then counts for nothing but the mean."""
  model = text_encoder.build(
    **text_encoder.TINY | dict(depth=0, pool="mean", norm_pooled=True)
  )
  tokens = jnp.array([[3, 5, 0, 0]])
  variables = nn.unbox(jax.jit(model.init)(key, tokens))
  p = variables["params"]
  p["posemb"]["table"] = jnp.zeros_like(p["posemb"]["table"])
  p["embedding"]["table"] = p["embedding"]["table"].at[5].set(0.0)
  x = np.asarray(p["embedding"]["table"][3])
  want = (x - x.mean()) / x.std()
  got = jax.jit(model.apply)(variables, tokens)[0]
  np.testing.assert_allclose(got, want, rtol=1e-2)
