import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors, tree
from mmjax.models import dvae


def tiny(**kw):
  return dvae.build(**{**dvae.TINY, **kw})


@functools.cache
def run(method="__call__", **kw):
  """Returns a method of the tiny model, compiled."""
  return jax.jit(functools.partial(tiny(**kw).apply, method=method))


def shapes(model, **inputs):
  return nn.unbox(jax.eval_shape(model.init, jax.random.key(0), **inputs))


@pytest.fixture(scope="module")
def image():
  return jax.random.normal(jax.random.key(1), (2, 16, 24, 3))


@pytest.fixture(scope="module")
def variables(image, draw):
  return nn.unbox(draw(tiny(), image))


def conv(size, given, made):
  return size * size * given * made + made


def block(given, made, sizes):
  """Parameters of a residual block, as appendix A of the paper lays it out."""
  hidden = made // 4
  skip = conv(1, given, made) if given != made else 0
  widths = (given, hidden, hidden, hidden, made)
  return skip + sum(
    conv(s, widths[i], widths[i + 1]) for i, s in enumerate(sizes)
  )


def half(first, widths, sizes):
  total, given = 0, first
  for made in widths:
    total += block(given, made, sizes) + block(made, made, sizes)
    given = made
  return total


def test_published_parameter_counts():
  image, codes = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 4, 4), jnp.int32)
  encoder = (
    conv(7, 3, 256)
    + half(256, (256, 512, 1024, 2048), (3, 3, 3, 1))
    + conv(1, 2048, 8192)
  )
  decoder = (
    conv(1, 8192, 128)
    + half(128, (2048, 1024, 512, 256), (1, 3, 3, 3))
    + conv(1, 256, 6)
  )
  # Those of OpenAI's modules, counted.
  assert (encoder, decoder) == (53_786_240, 43_829_766)

  def count(part, **kw):
    return tree.count(shapes(dvae.build("dall-e", part=part), **kw))

  assert count("encoder", image=image) == encoder
  assert count("decoder", codes=codes) == decoder
  assert count("both", image=image) == encoder + decoder


def test_pixels_are_mapped_and_back():
  x = jnp.array([0.0, 0.5, 1.0])
  np.testing.assert_allclose(dvae.map_pixels(x), [0.1, 0.5, 0.9], atol=1e-6)
  np.testing.assert_allclose(
    dvae.unmap_pixels(dvae.map_pixels(x)), x, atol=1e-6
  )
  np.testing.assert_array_equal(
    dvae.unmap_pixels(jnp.array([0.0, 1.0])), [0.0, 1.0]
  )
  # mu = logit(0.7) is the pixel (0.7 - 0.1) / 0.8; ln b is not looked at.
  statistics = jnp.array([[[[np.log(0.7 / 0.3), 9.0]]]])
  np.testing.assert_allclose(dvae.pixels(statistics), [[[[0.75]]]], atol=1e-6)


def test_gumbel_softmax_draws_the_softmax(key):
  p = np.array([0.1, 0.2, 0.7])
  logits = jnp.broadcast_to(jnp.log(jnp.float32(p)), (20_000, 3))
  for temperature in (0.1, 2.0):
    soft = dvae.gumbel_softmax(logits, temperature, key)
    np.testing.assert_allclose(soft.sum(-1), 1.0, atol=1e-5)
    drawn = np.bincount(np.argmax(soft, -1), minlength=3) / len(soft)
    np.testing.assert_allclose(drawn, p, atol=0.015)  # 4 deviations
  hot = dvae.gumbel_softmax(logits, 0.1, key).max(-1).mean()
  warm = dvae.gumbel_softmax(logits, 2.0, key).max(-1).mean()
  assert hot > 0.9 > 0.7 > warm
  # Without a key it is the softmax itself.
  np.testing.assert_allclose(dvae.gumbel_softmax(logits)[0], p, atol=1e-6)


@pytest.mark.slow
def test_ids_and_one_hot_vectors_decode_alike(image, variables):
  ids = run("codes")(variables, image)
  assert ids.shape == (2, 2, 3) and ids.dtype == jnp.int32
  logits = run("encode")(variables, image)
  np.testing.assert_array_equal(ids, np.argmax(logits, -1))
  hard = run("decode")(variables, ids)
  assert hard.shape == (2, 16, 24, 6)
  one_hot = jax.nn.one_hot(ids, dvae.TINY["vocab_size"])
  soft = run("decode")(variables, one_hot)
  np.testing.assert_allclose(hard, soft, atol=1e-5)
  called, out = run()(variables, codes=ids)
  np.testing.assert_array_equal(called, hard)
  assert out == {}
  bad = jnp.full(ids.shape, dvae.TINY["vocab_size"])
  assert np.isnan(run("decode")(variables, bad)).all()


def test_training_draws_codes_and_reaches_the_encoder(image, variables, key):
  model = tiny()

  def f(variables, rng, temperature):
    y, out = model.apply(
      variables,
      image,
      temperature=temperature,
      train=True,
      rngs={"dropout": rng},
    )
    return jnp.square(y).sum(), out

  step = jax.jit(jax.value_and_grad(f, has_aux=True))
  (one, out), grads = step(variables, key, 0.5)
  (two, _), _ = step(variables, jax.random.key(7), 0.5)
  (again, _), _ = step(variables, key, 0.5)
  assert one == again != two
  kernel = grads["params"]["encoder"]["input"]["kernel"]
  assert np.abs(kernel).max() > 0
  (_, cold), _ = step(variables, key, 0.01)
  assert cold["codes"].max(-1).min() > out["codes"].max(-1).min()
  # Near temperature 0 the codes are the ids of the noisy logits.
  assert cold["codes"].max(-1).mean() > 0.99


def test_uint8_is_mapped(image, variables):
  model = tiny()
  raw = jax.random.randint(jax.random.key(0), (1, 16, 8, 3), 0, 256)
  raw = raw.astype(jnp.uint8)
  floats = dvae.map_pixels(raw.astype(jnp.float32) / 255)
  encode = run("encode")
  got, want = encode(variables, raw), encode(variables, floats)
  np.testing.assert_allclose(got, want, atol=1e-5)
  with pytest.raises(errors.InputError, match="image is int32"):
    model.apply(variables, raw.astype(jnp.int32))


def test_gain_is_one_over_layers_squared(image, variables):
  """With gains near 0 the blocks vanish: only skips are left."""
  far = run("encode", gain_layers=10**6)(variables, image)
  p = variables["params"]["encoder"]
  same = jax.tree.map(jnp.zeros_like, variables)
  same["params"]["encoder"] = {
    name: {
      k: v if k == "skip" else jax.tree.map(jnp.zeros_like, v)
      for k, v in module.items()
    }
    if "block" in name
    else module
    for name, module in p.items()
  }
  skips = run("encode")(same, image)
  np.testing.assert_allclose(far, skips, atol=1e-5)
  # The default counts the blocks: 4 groups of TINY's one.
  own = run("encode")(variables, image)
  four = run("encode", gain_layers=4)(variables, image)
  np.testing.assert_array_equal(own, four)
  assert np.abs(own - far).max() > 1e-3


def test_halves_alone(image, variables):
  encoder = tiny(part="encoder")
  params = {"params": {"encoder": variables["params"]["encoder"]}}
  assert shapes(encoder, image=image)["params"].keys() == {"encoder"}
  logits, out = run(part="encoder")(params, image)
  want = run("encode")(variables, image)
  np.testing.assert_array_equal(logits, want)
  np.testing.assert_array_equal(out["ids"], np.argmax(want, -1))
  with pytest.raises(errors.InputError, match="there is no decoder"):
    encoder.apply(params, codes=out["ids"])
  decoder = tiny(part="decoder")
  assert shapes(decoder, codes=out["ids"])["params"].keys() == {"decoder"}
  with pytest.raises(errors.InputError, match="there is no encoder"):
    decoder.apply(
      {"params": {"decoder": variables["params"]["decoder"]}}, image
    )


def test_bfloat16_computes_float32_logits(image, variables):
  exact = run("encode")(variables, image)
  rough = run("encode", dtype="bfloat16")(variables, image)
  assert rough.dtype == jnp.float32
  difference = np.abs(rough - exact).max() / np.abs(exact).max()
  assert 1e-5 < difference < 0.05


def test_wrong_calls_are_named(image, variables):
  with pytest.raises(errors.InputError, match="one of image and codes"):
    tiny().apply(variables)
  with pytest.raises(errors.InputError, match="one of image and codes"):
    tiny().apply(variables, image, jnp.zeros((1, 1, 1), jnp.int32))
  with pytest.raises(errors.InputError, match="7 x 24 pixels"):
    tiny().apply(variables, image[:, :7])


@pytest.mark.parametrize(
  "kw, words",
  [
    (dict(variant="dalle"), "Did you mean 'dall-e'"),
    (dict(variant="dall-e", part="encoders"), "Did you mean 'encoder'"),
    (dict(width=16, blocks=1), "first, vocab_size not given"),
    (dict(variant="dall-e", width=18), "width = 18: no multiple of 4"),
  ],
)
def test_bad_keywords_are_named(kw, words):
  with pytest.raises(errors.InputError, match=words):
    dvae.build(**kw)
