"""MAE: published counts, what is seen, what is painted, the loss."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors, tree
from mmjax.models import vit_mae

TINY = vit_mae.TINY


@pytest.fixture(scope="module")
def tiny():
  key = jax.random.key(0)
  model = vit_mae.build(**TINY, mask_ratio=0.5)
  image = jax.random.normal(key, (2, 16, 16, 3))
  noise = jax.random.uniform(key, (2, 16))
  variables = nn.unbox(jax.jit(model.init)(key, image, noise))
  apply = jax.jit(lambda image: model.apply(variables, image, noise))
  return apply, image, noise, variables


@pytest.mark.parametrize(
  "variant, count", [("B/16", 111_907_840), ("L/16", 329_541_888)]
)
def test_published_parameter_counts(variant, count):
  model = vit_mae.build(variant)
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  noise = jax.ShapeDtypeStruct((1, 196), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image, noise)
  assert tree.count(nn.unbox(shapes)) == count


def test_patches_of_least_noise_are_seen_and_no_others(tiny):
  apply, image, noise, _ = tiny
  painted, out = jax.tree.map(np.asarray, apply(image))
  assert painted.shape == (2, 16, 48)
  assert out["tokens"].shape == (2, 1 + 8, 32)
  np.testing.assert_array_equal(
    out["mask"], noise > jnp.median(noise, axis=1, keepdims=True)
  )
  for patch in range(16):
    y, x = divmod(patch, 4)
    changed = np.array(image)
    changed[0, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] += 1.0
    moved = np.abs(np.asarray(apply(changed)[0]) - painted).max(axis=(1, 2))
    assert (moved[0] > 1e-5) == (out["mask"][0, patch] == 0), patch
    assert moved[1] == 0


def test_the_loss_counts_hidden_patches_only(tiny):
  apply, image, _, _ = tiny
  painted, out = apply(image)
  wanted = vit_mae.patches(image, 4)
  np.testing.assert_array_equal(
    wanted[1, 4 + 2], image[1, 4:8, 8:12].reshape(-1)
  )
  hidden = np.asarray(out["mask"]) == 1
  error = (np.asarray(painted) - np.asarray(wanted))[hidden]
  np.testing.assert_allclose(out["loss"], np.mean(error**2), rtol=1e-5)
  assert vit_mae.loss(wanted, wanted, out["mask"], False) == 0
  # Normalised, neither brightness nor contrast of a patch matters.
  a, b = (
    vit_mae.loss(painted, x, out["mask"], True)
    for x in (wanted, 5 * wanted + 2)
  )
  np.testing.assert_allclose(a, b, rtol=1e-4)


def test_noise_is_drawn_where_none_is_given(tiny):
  _, image, _, variables = tiny
  model = vit_mae.build(**TINY, mask_ratio=0.5)
  apply = jax.jit(
    lambda key: model.apply(variables, image, rngs={"mask": key})[1]["mask"]
  )
  masks = [apply(jax.random.key(i)) for i in range(3)]
  assert all((mask.sum(1) == 8).all() for mask in masks)
  assert (masks[0] != masks[1]).any() and (masks[0] != masks[2]).any()
  assert (masks[0][0] != masks[0][1]).any()


def test_other_sizes_and_a_bare_encoder(tiny):
  _, image, noise, variables = tiny
  with pytest.raises(errors.InputError, match=r"\(4, 4\).*\(2, 4\)"):
    vit_mae.build(**TINY).apply(variables, image[:, :8], noise[:, :8])
  encoder = dict(TINY["encoder"], interpolate="bicubic")
  model = vit_mae.build(encoder=encoder, decoder=TINY["decoder"])
  painted, _ = jax.jit(model.apply)(variables, image[:, :8], noise[:, :8])
  assert painted.shape == (2, 8, 48)
  bare = vit_mae.build(encoder=TINY["encoder"], bare=True, mask_ratio=0.5)
  params = {"params": {"encoder": variables["params"]["encoder"]}}
  x, out = jax.jit(bare.apply)(params, image, noise)
  assert x.shape == (2, 32) and "loss" not in out


@pytest.mark.parametrize(
  "kw, words",
  [
    (dict(variant="Ti/16"), "variant = 'Ti/16'"),
    (dict(TINY, decoder=dict(widht=3)), "Did you mean 'width'"),
    (dict(TINY, mask_ratio=1.0), "mask_ratio = 1.0"),
    (dict(), "width, depth"),
  ],
)
def test_bad_keywords_are_named(kw, words):
  with pytest.raises(errors.InputError, match=words):
    vit_mae.build(**kw)
