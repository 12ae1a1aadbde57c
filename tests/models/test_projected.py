"""A projection after an encoder, of images and of texts."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from mmjax import build, errors
from mmjax.models import projected

IMAGE = dict(name="vit", width=8, depth=1, heads=2, mlp=12, patch=4)


@pytest.mark.parametrize("use_bias", [False, True])
def test_features_are_multiplied_and_the_rest_is_kept(use_bias):
  module = projected.build(encoder=IMAGE, embed_dim=5, use_bias=use_bias)
  image = jax.random.normal(jax.random.key(0), (3, 8, 8, 3))
  params = nn.unbox(module.init(jax.random.key(1), image=image))["params"]
  dense = params["projection"]
  assert ("bias" in dense) == use_bias
  got, out = module.apply({"params": params}, image=image)
  bare = build.build("models", **IMAGE)
  want, _ = bare.apply({"params": params["encoder"]}, image)
  np.testing.assert_allclose(got, want @ dense["kernel"], atol=1e-5)
  np.testing.assert_allclose(out["pre_logits"], want, atol=1e-6)


@pytest.mark.parametrize("width", [None, 7])
def test_two_layers_by_an_activation(width):
  module = projected.build(
    encoder=IMAGE, embed_dim=5, use_bias=True, act="relu", hidden=width
  )
  assert module.width == 5
  image = jax.random.normal(jax.random.key(0), (3, 8, 8, 3))
  params = nn.unbox(jax.jit(module.init)(jax.random.key(1), image=image))
  got, out = jax.jit(module.apply)(params, image=image)
  up, down = (
    jax.tree.map(np.asarray, params["params"]["projection"][name])
    for name in ("up", "down")
  )
  assert up["kernel"].shape == (8, width or 5)
  hidden = np.asarray(out["pre_logits"]) @ up["kernel"] + up["bias"]
  want = np.maximum(hidden, 0) @ down["kernel"] + down["bias"]
  np.testing.assert_allclose(got, want, atol=1e-5)
  with pytest.raises(errors.InputError, match="Did you mean 'relu'"):
    projected.build(encoder=IMAGE, embed_dim=5, act="reluu")


def test_an_encoder_has_a_name():
  with pytest.raises(errors.InputError, match="name"):
    projected.build(encoder=dict(width=8), embed_dim=4)
