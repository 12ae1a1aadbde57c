import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors, tree
from mmjax.models import vilt

TOKENS = jnp.array([[5, 6, 7, 0, 0], [8, 3, 9, 2, 1]])


@pytest.fixture(scope="module")
def encode():
  """Returns a function of the call's arguments, always the same weights."""
  model = vilt.build(**vilt.TINY | dict(depth=1))
  image = jax.random.normal(jax.random.key(1), (2, 16, 12, 3))
  variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), TOKENS, image))
  apply = jax.jit(model.apply)

  def call(tokens=TOKENS, image=image, **masks):
    return apply(variables, tokens, image, **masks)

  call.image = image
  return call


def test_published_parameter_count():
  model = vilt.build("B/32", vocab_size=30522)
  shapes = jax.eval_shape(
    model.init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 40), jnp.int32),
    jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32),
  )
  assert tree.count(nn.unbox(shapes)) == 111_595_008


@pytest.mark.slow
def test_a_padded_image_is_the_image(encode):
  pixel_mask = jnp.zeros((2, 16, 12), jnp.int32).at[:, :8, :4].set(1)
  small = encode.image[:, :8, :4]
  _, want = encode(image=small)
  _, got = encode(pixel_mask=pixel_mask)
  for name in ("tokens", "logits", "answers", "matched"):
    np.testing.assert_allclose(got[name], want[name], atol=1e-5)
  # Negative control: without the mask all is seen.
  assert np.abs(encode()[1]["tokens"] - want["tokens"]).max() > 1e-3
  # Class token, then the patches row by row; the grid is 4 x 3 here.
  np.testing.assert_allclose(
    got["patches"][:, [0, 1, 4]], want["patches"], atol=1e-5
  )


def test_pixels_that_fill_no_patch_are_not_read(encode):
  wide = jnp.pad(encode.image, ((0, 0), (0, 3), (0, 2), (0, 0)))
  a, _ = encode(image=wide)
  b, _ = encode(image=wide.at[:, 16:].set(9.0).at[:, :, 12:].set(9.0))
  np.testing.assert_allclose(a, b, atol=1e-6)


def test_masked_words_are_not_seen(encode):
  mask = jnp.array([[1, 0, 1, 1, 0], [1] * 5])
  a, _ = encode(mask=mask)
  b, _ = encode(tokens=TOKENS.at[0, 1].set(33).at[0, 4].set(44), mask=mask)
  np.testing.assert_allclose(a, b, atol=1e-6)
  c, _ = encode(tokens=TOKENS.at[0, 2].set(33), mask=mask)
  assert np.abs(a[0] - c[0]).max() > 1e-4
  # Padding is, unless the caller says.
  np.testing.assert_array_equal(encode()[0], encode(mask=TOKENS != 0)[0])


def test_errors_name_the_field(key):
  for change, message in (
    (dict(variant="L/32"), "variant = 'L/32'"),
    (dict(grid=None), "grid not given"),
    (dict(remat="some"), "remat = 'some'"),
    (dict(act="xielu"), "activation = 'xielu'"),
  ):
    with pytest.raises(errors.InputError, match=message):
      vilt.build(**vilt.TINY | change)
  model = vilt.build(**vilt.TINY, max_patches=11)
  with pytest.raises(errors.InputError, match="max_patches = 11"):
    model.init(key, TOKENS, jnp.zeros((2, 16, 12, 3)))
