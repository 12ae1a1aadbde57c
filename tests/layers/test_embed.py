import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.layers.embed import (
  ConvStem,
  Patches,
  TokenEmbed,
  add_rows,
  normalised,
  word_logits,
)


def test_patches_equal_a_strided_convolution(key):
  image = jax.random.normal(key, (2, 8, 12, 3))
  x, variables = jax.jit(Patches(5, 4).init_with_output)(key, image)
  kernel = variables["params"]["kernel"].unbox()
  want = jax.lax.conv_general_dilated(
    image, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  assert x.shape == (2, 2, 3, 5)
  np.testing.assert_allclose(x, want, atol=1e-5)
  # Fan-in scale, as of the matrix it is.
  assert 0.7 < float(kernel.std()) * 48**0.5 < 1.3
  bare = Patches(5, 4, use_bias=False)
  assert bare.init(key, image)["params"].keys() == {"kernel"}


def test_overlapping_patches_leave_out_what_fills_none(key):
  image = jax.random.normal(key, (2, 9, 14, 3))
  module = Patches(5, 4, stride=(3, 2))
  x, variables = jax.jit(module.init_with_output)(key, image)
  assert x.shape == (2, 2, 6, 5)
  kernel = variables["params"]["kernel"].unbox()
  for y, c in ((0, 0), (1, 5), (1, 2)):
    square = image[:, 3 * y : 3 * y + 4, 2 * c : 2 * c + 4]
    want = jnp.einsum("bijc,ijcd->bd", square, kernel)
    np.testing.assert_allclose(x[:, y, c], want, atol=1e-5)
  with pytest.raises(errors.InputError, match="patch = 4 is larger"):
    module.init(key, image[:, :3])
  # Side by side it is the matrix product.
  a = Patches(5, 4).apply(variables, image[:, :8, :12])
  b = Patches(5, 4, stride=(4, 4)).apply(variables, image)
  np.testing.assert_allclose(a, b, atol=1e-5)


def test_floats_and_bytes_are_brought_to_one_range():
  floats = jnp.array([-1.0, 0.5])
  assert normalised(floats) is floats
  found = normalised(jnp.array([0, 255], jnp.uint8))
  np.testing.assert_allclose(found, [-1.0, 1.0])
  with pytest.raises(errors.InputError, match="image is int32"):
    normalised(jnp.array([1, 2]))


@pytest.mark.parametrize("stem", [Patches, ConvStem])
def test_image_must_be_whole_patches(key, stem):
  with pytest.raises(errors.InputError, match=r"patch = 4 .* 8 x 10"):
    stem(8, 4).init(key, jnp.ones((1, 8, 10, 3)))


def test_conv_stem_halves_and_sees_beyond_its_patch(key):
  stem = ConvStem(32, 4)
  image = jax.random.normal(key, (1, 16, 8, 3))
  x, variables = jax.jit(stem.init_with_output)(key, image)
  assert x.shape == (1, 4, 2, 32)
  channels = [
    variables["params"][f"conv{i}"]["kernel"].unbox().shape for i in (0, 1)
  ]
  assert channels == [(3, 3, 3, 16), (3, 3, 16, 32)]
  # Pixel row 7 ends patch row 1; overlap lets patch row 2 see it, not row 3.
  moved = jax.jit(stem.apply)(variables, image.at[:, 7].add(1.0))
  seen = np.abs(moved - x).max((0, 2, 3)) > 1e-6
  np.testing.assert_array_equal(seen, [False, True, True, False])


def test_conv_stem_wants_a_power_of_two(key):
  with pytest.raises(errors.InputError, match="patch = 6"):
    ConvStem(8, 6).init(key, jnp.ones((1, 12, 12, 3)))


def test_token_embed_looks_up_and_shows_ids_out_of_range(key):
  tokens = jnp.array([[0, 3, 4]])
  x, variables = jax.jit(TokenEmbed(4, 8).init_with_output)(key, tokens)
  table = variables["params"]["table"].unbox()
  np.testing.assert_array_equal(x[0, :2], table[jnp.array([0, 3])])
  assert np.isnan(x[0, 2]).all()


def test_token_embed_attends_by_its_own_table(key):
  class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
      embed = TokenEmbed(5, 8, name="embed")
      x = embed(tokens)
      return x, embed.attend(2 * x)

  tokens = jnp.array([[0, 3, 4]])
  (x, logits), variables = jax.jit(Tied().init_with_output)(key, tokens)
  table = variables["params"]["embed"]["table"].unbox()
  assert jax.tree.structure(variables).num_leaves == 1
  np.testing.assert_allclose(logits, 2 * x @ table.T, atol=1e-6)


def test_words_are_capped_and_rows_that_are_none_never_chosen():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 8)).astype(np.float32)
  table = rng.normal(size=(6, 8)).astype(np.float32)
  want = x @ table.T
  np.testing.assert_allclose(word_logits(x, table, True, 6), want, atol=1e-5)
  np.testing.assert_allclose(word_logits(x, table.T, False, 6), want, atol=1e-5)
  got = np.asarray(word_logits(x, table, True, 4, cap=2.0))
  np.testing.assert_allclose(got[..., :4], 2 * np.tanh(want / 2)[..., :4], 1e-5)
  assert (got[..., 4:] == -1e30).all()


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_added_rows_and_their_gradient(dtype):
  rng = np.random.default_rng(0)
  x, d_out = (jnp.asarray(rng.normal(size=(5, 3, 4)), dtype) for _ in range(2))
  table = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
  out, transpose = jax.vjp(add_rows, x, table)
  np.testing.assert_array_equal(out, x + table.astype(dtype)[None])
  d_x, d_table = transpose(d_out)
  np.testing.assert_array_equal(d_x, d_out)
  want = np.asarray(d_out, float).sum(0)
  assert d_table.dtype == jnp.float32
  within = 1e-6 if dtype == "float32" else 2e-2
  np.testing.assert_allclose(d_table, want, rtol=within, atol=within)
  _, tangent = jax.jvp(add_rows, (x, table), (d_out, table))
  np.testing.assert_allclose(
    np.asarray(tangent, float), d_out + table.astype(dtype)[None], rtol=1e-2
  )
