import copy

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.layers import pool
from mmjax.models import dual_encoder


@pytest.fixture(scope="module")
def inputs():
  key = jax.random.key(1)
  image = jax.random.normal(key, (3, 16, 16, 3))
  return image, jax.random.randint(key, (3, 8), 1, 64)


@pytest.fixture(scope="module")
def built(inputs):
  model = dual_encoder.build(**dual_encoder.TINY)
  return model, nn.unbox(jax.jit(model.init)(jax.random.key(0), *inputs))


def test_embeddings_are_of_length_one_and_of_each_alone(built, inputs):
  model, variables = built
  apply = jax.jit(model.apply)
  image, text, scale = apply(variables, *inputs)
  for x in (image, text):
    assert x.shape == (3, 16) and x.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, atol=1e-6)
  assert np.abs(image[0] - image[1]).max() > 1e-3
  only, none, _ = apply(variables, inputs[0])
  np.testing.assert_allclose(only, image, atol=1e-6)
  assert none is None
  none, only, _ = apply(variables, None, inputs[1])
  np.testing.assert_allclose(only, text, atol=1e-6)
  assert none is None
  np.testing.assert_allclose(scale, (10.0, -10.0), rtol=1e-6)


def test_temperature_is_a_logarithm_and_may_be_cut(built, inputs):
  kw = dict(dual_encoder.TINY, bias_init=None, temperature_max=100.0)
  model, (_, variables) = dual_encoder.build(**kw), built
  params = {k: v for k, v in variables["params"].items() if k != "b"}
  apply = jax.jit(model.apply)
  for log_t, want in ((np.log(7.0), 7.0), (9.0, 100.0)):
    params["log_t"] = jnp.float32(log_t)
    *_, scale = apply({"params": params}, None, inputs[1])
    np.testing.assert_allclose(scale, (want, 0.0), rtol=1e-6)


def test_normalise_has_a_finite_gradient_at_zero():
  x = jnp.zeros((1, 4))
  assert (pool.unit(x) == 0).all()
  grad = jax.grad(lambda x: pool.unit(x).sum())(x)
  assert np.isfinite(grad).all()
  low = jnp.full((1, 4), 3.0, jnp.bfloat16)
  np.testing.assert_allclose(pool.unit(low), 0.5, rtol=1e-6)


@pytest.mark.parametrize("projected", dual_encoder.PROJECTED)
@pytest.mark.parametrize("bias", [False, True])
def test_projections(inputs, projected, bias):
  kw = copy.deepcopy(dual_encoder.TINY)
  for side in {"image", "text"} - set(dual_encoder.PROJECTED[projected]):
    kw[side]["width"] = kw["embed_dim"]
  model = dual_encoder.build(**kw, projected=projected, projection_bias=bias)
  init = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  found = {
    name.removesuffix("_projection"): set(leaves)
    for name, leaves in nn.unbox(init)["params"].items()
    if name.endswith("_projection")
  }
  leaves = {"kernel", "bias"} if bias else {"kernel"}
  assert found == dict.fromkeys(dual_encoder.PROJECTED[projected], leaves)


def test_dtype_reaches_the_towers():
  model = dual_encoder.build(**dual_encoder.TINY, dtype="bfloat16")
  assert model.image.dtype == model.text.dtype == jnp.bfloat16
  kw = copy.deepcopy(dual_encoder.TINY)
  kw["text"]["dtype"] = "float32"
  assert dual_encoder.build(**kw, dtype="bfloat16").text.dtype == jnp.float32


@pytest.mark.parametrize(
  "change, words",
  [
    (dict(temperature_init=0.0), "temperature_init = 0.0"),
    (dict(image=dict(variant="S/16")), "has no name"),
    (dict(image=dict(name="vitt")), "Did you mean 'vit'"),
    (dict(image=dict(name="vit", widht=3)), "Did you mean 'width'"),
    (
      dict(
        embed_dim=None,
        text=dict(name="text_encoder", variant="S", vocab_size=9),
      ),
      "embed_dim = None.*32 and 384",
    ),
    (dict(projected="txt"), "Did you mean 'text'"),
    (dict(projected="text"), "image encoder is of width 32, embed_dim = 16"),
  ],
)
def test_errors_name_the_field(change, words):
  with pytest.raises(errors.InputError, match=words):
    dual_encoder.build(**{**dual_encoder.TINY, **change})


@pytest.mark.slow
def test_patches_of_any_aspect_are_embedded_with_their_shapes():
  model = dual_encoder.build(
    **{
      **dual_encoder.TINY,
      "image": dict(
        name="naflex", width=32, depth=1, heads=4, mlp=16, patch=2, side=2
      ),
    },
  )
  patches = jax.random.normal(jax.random.key(0), (2, 6, 12))
  shapes = jnp.array([[2, 3], [1, 4]])
  init, apply = jax.jit(model.init), jax.jit(model.apply)
  params = init(jax.random.key(1), patches, image_shapes=shapes)
  got, text, _ = apply(params, patches, image_shapes=shapes)
  assert text is None
  changed = patches.at[1, 4:].set(9.0)  # padding
  again, _, _ = apply(params, changed, image_shapes=shapes)
  np.testing.assert_allclose(got, again, atol=1e-6)
  mask = jnp.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]])
  less, _, _ = apply(params, patches, image_mask=mask, image_shapes=shapes)
  assert np.abs(less - got)[0].max() > 1e-4
  np.testing.assert_allclose(less[1], got[1], atol=1e-6)
