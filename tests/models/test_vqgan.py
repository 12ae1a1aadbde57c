import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors, tree
from mmjax.models import vqgan


def tiny(**kw):
  return vqgan.build(**{**vqgan.TINY, **kw})


@functools.cache
def run(method="__call__", **kw):
  """Returns a method of the tiny model, compiled."""
  apply = functools.partial(tiny(**kw).apply, method=method)
  return jax.jit(apply, static_argnames="train", static_argnums=2)


@pytest.fixture(scope="module")
def image():
  return jax.random.normal(jax.random.key(1), (2, 8, 6, 3))


@pytest.fixture(scope="module")
def variables(image, draw):
  """Codes of the vectors' size, so that many of them are used."""
  made = nn.unbox(draw(tiny(), image))
  shape = made["params"]["codebook"]["table"].shape
  table = jax.random.normal(jax.random.key(2), shape)
  made["params"]["codebook"]["table"] = table
  return made


@pytest.fixture(scope="module")
def called(image, variables):
  return run()(variables, image)


def conv(size, given, made):
  return size * size * given * made + made


def block(given, made):
  skip = conv(1, given, made) if given != made else 0
  return (
    2 * given + conv(3, given, made) + 2 * made + conv(3, made, made) + skip
  )


def attention(width):
  return 2 * width + 4 * conv(1, width, width)


@pytest.mark.parametrize(
  "variant, codes, published",
  [("f16-1024", 1024, 72_141_699), ("f16-16384", 16384, 76_073_859)],
)
def test_published_parameter_counts(variant, codes, published):
  widths = (128, 128, 256, 256, 512)
  middle = 2 * block(512, 512) + attention(512)
  encoder = conv(3, 3, 128) + middle + 2 * 512 + conv(3, 512, 256)
  decoder = conv(3, 256, 512) + middle + 2 * 128 + conv(3, 128, 3)
  given = 128
  for i, made in enumerate(widths):
    encoder += block(given, made) + block(made, made)
    encoder += 2 * attention(made) if i == 4 else conv(3, made, made)
    given = made
  given = 512
  for i, made in reversed(list(enumerate(widths))):
    decoder += block(given, made) + 2 * block(made, made)
    decoder += 3 * attention(made) if i == 4 else 0
    decoder += conv(3, made, made) if i else 0
    given = made
  want = encoder + decoder + 2 * conv(1, 256, 256) + 256 * codes
  # That of taming-transformers' modules, counted.
  assert want == published
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  model = vqgan.build(variant)
  made = jax.eval_shape(model.init, jax.random.key(0), image)
  assert tree.count(nn.unbox(made)) == published


def test_gumbel_f8_has_the_count_of_tamings_modules():
  """Encoder, decoder, GumbelQuantize(256, 256, 8192), two convolutions."""
  image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  model = vqgan.build("gumbel-f8-8192")
  made = jax.eval_shape(model.init, jax.random.key(0), image)
  assert tree.count(nn.unbox(made)) == 68_995_971
  with pytest.raises(errors.InputError, match="quantiser = 'soft'"):
    tiny(quantiser="soft")


@pytest.mark.slow
def test_gumbel_draws_codes_in_training_only(image):
  model = tiny(quantiser="gumbel")
  variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), image))
  variables["params"]["codebook"]["proj"]["kernel"] *= 0.1  # chances alike

  @jax.jit
  def call(key):
    return model.apply(
      variables, image, train=True, rngs={"dropout": key}, temperature=0.5
    )[1]

  one, other = (call(jax.random.key(i))["ids"] for i in (1, 2))
  assert (np.asarray(one) != np.asarray(other)).any()
  still, out = jax.jit(model.apply)(variables, image)
  ids, vectors = model.apply(variables, image, method="encode")
  np.testing.assert_array_equal(out["ids"], ids)
  np.testing.assert_allclose(out["quantised"], vectors, atol=1e-6)
  assert still.shape == image.shape and set(out) == {"ids", "quantised", "kl"}


def test_ids_are_the_nearest_by_brute_force(image, variables, called):
  z = run("_vectors")(variables, image, False)
  table = np.float64(variables["params"]["codebook"]["table"])
  far = ((np.float64(z)[..., None, :] - table) ** 2).sum(-1)
  _, out = called
  np.testing.assert_array_equal(out["ids"], far.argmin(-1))
  assert len(np.unique(out["ids"])) > 2
  np.testing.assert_allclose(out["quantised"], table[out["ids"]], atol=1e-6)
  mean = far.min(-1).mean() / table.shape[1]
  for name in ("codebook", "commitment"):
    np.testing.assert_allclose(out[name], mean, rtol=1e-5)


def test_encode_then_decode_is_the_call(image, variables, called):
  y, out = called
  assert y.shape == image.shape
  ids, quantised = run("encode")(variables, image)
  assert ids.shape == (2, 4, 3) and ids.dtype == jnp.int32
  np.testing.assert_array_equal(ids, out["ids"])
  for codes in (ids, quantised):
    again = run("decode")(variables, codes)
    np.testing.assert_allclose(again, y, atol=1e-4)
  also, rest = run()(variables, codes=ids)
  np.testing.assert_allclose(also, y, atol=1e-4)
  assert rest == {}
  bad = jnp.full(ids.shape, vqgan.TINY["codes"])
  assert np.isnan(run()(variables, codes=bad)[0]).all()


def test_who_moves_by_which_loss(image, variables):
  names = ("image", "codebook", "commitment")

  def losses(variables):
    y, out = tiny().apply(variables, image)
    return jnp.stack([jnp.square(y).mean(), out[names[1]], out[names[2]]])

  # One program for all three.
  grad = jax.jit(lambda v, which: jax.vjp(losses, v)[1](which)[0])

  def moved(name):
    g = grad(variables, jnp.float32([name == n for n in names]))["params"]
    return {
      part: any(np.abs(x).max() > 0 for x in jax.tree.leaves(g[part]))
      for part in ("encoder", "codebook", "decoder")
    }

  # Straight through: the reconstruction moves the encoder past the lookup.
  assert moved("image") == dict(encoder=True, codebook=False, decoder=True)
  assert moved("codebook") == dict(encoder=False, codebook=True, decoder=False)
  assert moved("commitment") == dict(
    encoder=True, codebook=False, decoder=False
  )


def test_attention_only_where_asked(image):
  def names(model):
    made = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return {
      n for half in ("encoder", "decoder") for n in made[half] if "attn" in n
    }

  assert names(tiny()) == {"mid_attn_1"}
  assert names(tiny(attention=[1])) == {
    "mid_attn_1",
    "down_1_attn_0",
    "up_1_attn_0",
    "up_1_attn_1",
  }


def test_uint8_is_brought_to_minus_one_to_one(variables, key):
  raw = jax.random.randint(key, (1, 4, 4, 3), 0, 256).astype(jnp.uint8)
  floats = raw.astype(jnp.float32) / 127.5 - 1
  vectors = run("_vectors")
  got, want = (vectors(variables, x, False) for x in (raw, floats))
  np.testing.assert_allclose(got, want, atol=1e-5)
  with pytest.raises(errors.InputError, match="image is int32"):
    tiny().apply(variables, raw.astype(jnp.int32))


def test_dropout_acts_in_training_only(image, variables, key, called):
  model = run(dropout=0.3)
  still, _ = model(variables, image)
  np.testing.assert_allclose(still, called[0], atol=1e-5)
  y, _ = model(variables, image, train=True, rngs={"dropout": key})
  assert np.abs(y - still).max() > 1e-2


def test_wrong_calls_are_named(image, variables):
  with pytest.raises(errors.InputError, match="one of image and codes"):
    tiny().apply(variables)
  with pytest.raises(errors.InputError, match="1 x 6 pixels"):
    tiny().apply(variables, image[:, :1])


@pytest.mark.parametrize(
  "kw, words",
  [
    (dict(variant="f16-16348"), "Did you mean 'f16-16384'"),
    (dict(width=32, blocks=1), "multiples, attention, latent, codes, code_w"),
    (dict(variant="f16-1024", groups=24), "groups = 24: no divisor of 128"),
    (dict(variant="f16-1024", attention=[5]), "levels 0 to 4"),
  ],
)
def test_bad_keywords_are_named(kw, words):
  with pytest.raises(errors.InputError, match=words):
    vqgan.build(**kw)
