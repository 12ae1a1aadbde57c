import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors, tree
from mmjax.models import vit


def shapes(model, *image_shape):
  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  return nn.unbox(jax.eval_shape(model.init, jax.random.key(0), image))


@pytest.mark.parametrize(
  "variant, with_head, headless",
  [
    ("Ti/16", 5_717_416, 5_524_416),
    ("S/16", 22_050_664, 21_665_664),
    ("B/16", 86_567_656, 85_798_656),
    ("B/32", 88_224_232, None),
    ("L/16", 304_326_632, None),
    ("L/14", 304_203_752, None),
    ("H/14", 632_045_800, None),
    ("g/14", 1_012_611_432, None),
  ],
)
def test_published_parameter_counts(variant, with_head, headless):
  model = vit.build(variant, num_classes=1000, pool="tok")
  assert tree.count(shapes(model, 224, 224, 3)) == with_head
  if headless:
    model = vit.build(variant, pool="tok")
    assert tree.count(shapes(model, 224, 224, 3)) == headless


@pytest.mark.parametrize("variant", vit.VARIANTS)
def test_every_variant_has_whole_heads(variant):
  size = vit.VARIANTS[variant]
  assert size["width"] % size["heads"] == 0
  assert vit.build(variant, patch=16, depth=3).depth == 3


@pytest.mark.parametrize("stem", vit.STEMS)
@pytest.mark.parametrize("pool", vit.POOLS)
def test_pools_stems_and_oblong_images(key, pool, stem):
  posemb = "sincos2d" if stem == "conv" else "learn"
  model = vit.build("mu/4", pool=pool, stem=stem, posemb=posemb, num_classes=3)
  image = jax.ShapeDtypeStruct((2, 8, 16, 3), jnp.float32)
  (y, out), _ = jax.eval_shape(model.init_with_output, key, image)
  tokens = (8,) if pool == "none" else ()
  assert y.shape == (2, *tokens, 3)
  assert out["pre_logits"].shape == (2, *tokens, 32)


def test_learned_positions_are_for_one_grid_sincos_for_any(key):
  image = jnp.zeros((1, 8, 16, 3))
  model = vit.build("mu/4")
  variables = nn.unbox(jax.jit(model.init)(key, image))
  turned = image.swapaxes(1, 2)
  with pytest.raises(errors.InputError, match=r"\(2, 4\).*\(4, 2\)"):
    model.apply(variables, turned)
  model = vit.build("mu/4", posemb="sincos2d")
  variables = nn.unbox(jax.jit(model.init)(key, image))
  y, _ = jax.jit(model.apply)(variables, turned)
  assert np.isfinite(y).all()


def test_uint8_is_brought_to_minus_one_to_one(key):
  image = jax.random.randint(key, (2, 8, 8, 3), 0, 256).astype(jnp.uint8)
  model = vit.build("mu/4", pool="map")
  floats = image.astype(jnp.float32) / 127.5 - 1
  variables = nn.unbox(jax.jit(model.init)(key, floats))
  apply = jax.jit(lambda x: model.apply(variables, x)[0])
  np.testing.assert_allclose(apply(image), apply(floats), atol=1e-5)
  with pytest.raises(errors.InputError, match="image is int32"):
    model.apply(variables, image.astype(jnp.int32))


def test_class_token_reads_the_image(key):
  model = vit.build("mu/4", pool="tok")
  image = jax.random.normal(key, (2, 8, 8, 3))
  (y, _), _ = jax.jit(model.init_with_output)(key, image)
  assert np.abs(y[0] - y[1]).max() > 1e-3


def test_crop_reads_whole_patches_only(key):
  image = jax.random.normal(key, (2, 11, 9, 3))
  with pytest.raises(errors.InputError, match="patch = 4 does not divide"):
    vit.build("mu/4").init(key, image)
  model = vit.build("mu/4", crop=True)
  (y, _), variables = jax.jit(model.init_with_output)(key, image)
  whole, _ = vit.build("mu/4").apply(nn.unbox(variables), image[:, :8, :8])
  np.testing.assert_allclose(y, whole, atol=1e-5)


def test_clips_norm_before_the_blocks_and_no_patch_bias(key):
  plain = shapes(vit.build("mu/4"), 8, 8, 3)["params"]
  model = vit.build("mu/4", pre_norm=True, patch_bias=False)
  image = jax.random.normal(key, (2, 8, 8, 3))
  params = nn.unbox(jax.jit(model.init)(key, image))["params"]
  assert params.keys() - plain.keys() == {"pre_norm"}
  assert params["embedding"].keys() == {"kernel"}
  assert plain["embedding"].keys() == {"kernel", "bias"}
  # All that the blocks see comes through the norm.
  for scale in (0.0, 1.0):
    params["pre_norm"]["scale"] = jnp.full(32, scale)
    y, _ = jax.jit(model.apply)({"params": params}, image)
    assert (np.abs(y[0] - y[1]).max() > 1e-3) == bool(scale)


@pytest.mark.parametrize(
  "kw, words",
  [
    (dict(variant="X/16"), "variant = 'X/16'"),
    (dict(variant="S/large"), "no number of pixels"),
    (dict(variant="S"), "patch not given"),
    (dict(variant="S/16", pool="gab"), "Did you mean 'gap'"),
    (dict(variant="S/16", posemb="sincos"), "'sincos2d'"),
    (dict(variant="S/16", stem="convs"), "'conv'"),
    (dict(variant="S/16", remat="all"), "remat"),
    (dict(variant="S/16", act="gellu"), "'gelu'"),
    (dict(variant="S/16", stem="conv", patch_bias=False), "patch_bias = False"),
  ],
)
def test_bad_keywords_are_named(kw, words):
  with pytest.raises(errors.InputError, match=words):
    vit.build(**kw)
