import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.layers import bert

TOKENS = jnp.array([[5, 6, 1, 7], [1, 1, 3, 2]])


def test_offset_positions_count_what_is_no_padding():
  got = bert.offset_positions(TOKENS, 1)
  np.testing.assert_array_equal(got, [[2, 3, 1, 4], [1, 1, 2, 3]])
  got = bert.offset_positions(TOKENS, 7)
  np.testing.assert_array_equal(got, [[8, 9, 10, 7], [8, 9, 10, 11]])


@pytest.mark.parametrize("offset", [None, 1])
def test_the_embedding_is_the_norm_of_three_rows(offset, draw):
  embed = bert.TextEmbed(9, 6, 8, types=3, offset=offset)
  types = jnp.array([[0, 1, 2, 0], [2, 2, 0, 1]])
  variables = nn.unbox(draw(embed, TOKENS))
  apply = jax.jit(embed.apply)
  x, words = apply(variables, TOKENS, types)
  p = {
    k: np.asarray(v["table"])
    for k, v in variables["params"].items()
    if "table" in v
  }
  places = np.arange(4)[None].repeat(2, 0)
  if offset is not None:
    places = np.asarray(bert.offset_positions(TOKENS, offset))
  want = p["words"][TOKENS] + p["positions"][places] + p["types"][types]
  want = want - want.mean(-1, keepdims=True)
  want = want / np.sqrt((want**2).mean(-1, keepdims=True) + 1e-12)
  np.testing.assert_allclose(x, want, atol=2e-4)
  np.testing.assert_array_equal(words, p["words"])
  # No types are types 0.
  np.testing.assert_array_equal(
    apply(variables, TOKENS)[0],
    apply(variables, TOKENS, 0 * types)[0],
  )


def test_positions_may_run_out(key):
  with pytest.raises(errors.InputError, match="length = 3"):
    bert.TextEmbed(9, 6, 3).init(key, TOKENS)
  # Rows 0 and 1 are no token's.
  jax.eval_shape(bert.TextEmbed(9, 6, 6, offset=1).init, key, TOKENS)
  with pytest.raises(errors.InputError, match="4 tokens, but of the 5"):
    bert.TextEmbed(9, 6, 5, offset=1).init(key, TOKENS)


def test_the_pooler_reads_the_first_token(key):
  x = jax.random.normal(key, (2, 3, 4))
  y, variables = jax.jit(bert.Pooler().init_with_output)(key, x)
  p = nn.unbox(variables)["params"]["dense"]
  np.testing.assert_allclose(
    y, np.tanh(x[:, 0] @ p["kernel"] + p["bias"][None]), atol=1e-6
  )
  moved = jax.jit(bert.Pooler().apply)(variables, x.at[:, 1:].set(9.0))
  np.testing.assert_array_equal(moved, y)


def test_the_pooler_may_have_another_width_and_activation(key):
  x = jax.random.normal(key, (2, 3, 8))
  y, variables = bert.Pooler(act="relu", width=5).init_with_output(key, x)
  dense = nn.unbox(variables)["params"]["dense"]
  want = np.asarray(x)[:, 0] @ np.asarray(dense["kernel"])
  np.testing.assert_allclose(y, np.maximum(want, 0), atol=1e-5)


def test_words_are_predicted_by_their_table(key, draw):
  x = jax.random.normal(key, (2, 3, 4))
  words = jax.random.normal(jax.random.key(1), (7, 4))
  head = bert.MaskedWords(act="relu")
  variables = nn.unbox(draw(head, x, words))
  p = variables["params"]
  p["bias"] = jnp.arange(7.0)
  got = jax.jit(head.apply)(variables, x, words)
  h = jax.nn.relu(x @ p["transform"]["dense"]["kernel"])
  h = h - h.mean(-1, keepdims=True)
  h = h / jnp.sqrt((h**2).mean(-1, keepdims=True) + 1e-12)
  want = jnp.einsum("btd,vd->btv", h, words) + jnp.arange(7.0)[None, None]
  np.testing.assert_allclose(got, want, atol=1e-4)
