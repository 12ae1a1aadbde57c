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


def test_the_giant_has_the_published_millions():
  count = tree.count(shapes(vit.build("G/14", pool="tok"), 224, 224, 3))
  assert abs(count / 1843e6 - 1) < 3e-3


@pytest.mark.parametrize("variant", vit.VARIANTS)
def test_every_variant_by_the_formula(variant):
  size = vit.VARIANTS[variant]
  D, F = size["width"], size["mlp"]
  block = 4 * D * D + 2 * D * F + 9 * D + F
  rest = (16 * 16 * 3 + 1) * D + 197 * D + D + 2 * D
  model = vit.build(variant, patch=16, pool="tok")
  found = tree.count(shapes(model, 224, 224, 3))
  assert found == size["depth"] * block + rest


@pytest.mark.parametrize("variant", vit.VARIANTS)
def test_every_variant_has_whole_heads(variant):
  size = vit.VARIANTS[variant]
  assert size["width"] % size["heads"] == 0
  assert vit.build(variant, patch=16, depth=3).depth == 3


@pytest.mark.parametrize("stem", vit.STEMS)
@pytest.mark.parametrize("pool", vit.POOLS)
def test_pools_stems_and_oblong_images(key, pool, stem):
  posemb = "sincos2d" if stem == "conv" else "learn"
  model = vit.build(
    "mu/4",
    pool=pool,
    stem=stem,
    posemb=posemb,
    num_classes=3,
    distilled=pool == "pair",
  )
  image = jax.ShapeDtypeStruct((2, 8, 16, 3), jnp.float32)
  (y, out), _ = jax.eval_shape(model.init_with_output, key, image)
  tokens = (8,) if pool == "none" else ()
  assert y.shape == (2, *tokens, 3)
  width = 64 if pool == "tok_gap" else 32
  assert out["pre_logits"].shape == (2, *tokens, width)


def test_learned_positions_are_for_one_grid_sincos_for_any(draw):
  image = jnp.zeros((1, 8, 16, 3))
  model = vit.build("mu/4")
  variables = nn.unbox(draw(model, image))
  turned = image.swapaxes(1, 2)
  with pytest.raises(errors.InputError, match=r"\(2, 4\).*\(4, 2\)"):
    jax.eval_shape(model.apply, variables, turned)
  model = vit.build("mu/4", posemb="sincos2d")
  variables = nn.unbox(draw(model, image))
  y, _ = jax.jit(model.apply)(variables, turned)
  assert np.isfinite(y).all()


def test_uint8_is_brought_to_minus_one_to_one(key, draw):
  image = jax.random.randint(key, (2, 8, 8, 3), 0, 256).astype(jnp.uint8)
  model = vit.build("mu/4", pool="map")
  floats = image.astype(jnp.float32) / 127.5 - 1
  variables = nn.unbox(draw(model, floats))
  apply = jax.jit(lambda x: model.apply(variables, x)[0])
  np.testing.assert_allclose(apply(image), apply(floats), atol=1e-5)
  with pytest.raises(errors.InputError, match="image is int32"):
    model.apply(variables, image.astype(jnp.int32))


def test_class_token_reads_the_image(key, draw):
  model = vit.build("mu/4", pool="tok")
  image = jax.random.normal(key, (2, 8, 8, 3))
  variables = draw(model, image)
  y, _ = jax.jit(model.apply)(variables, image)
  assert np.abs(y[0] - y[1]).max() > 1e-3


def test_patches_are_hidden_by_a_mask_token_only(key):
  image = jax.random.normal(key, (2, 8, 8, 3))
  with pytest.raises(errors.InputError, match="add mask_token = True"):
    vit.build("mu/4").init(key, image, None, jnp.zeros((2, 4)))


def test_crop_reads_whole_patches_only(key, draw):
  image = jax.random.normal(key, (2, 11, 9, 3))
  with pytest.raises(errors.InputError, match="patch = 4 does not divide"):
    vit.build("mu/4").init(key, image)
  model = vit.build("mu/4", crop=True)
  variables = draw(model, image)
  y, _ = jax.jit(model.apply)(variables, image)
  apply = jax.jit(vit.build("mu/4").apply)
  whole, _ = apply(nn.unbox(variables), image[:, :8, :8])
  np.testing.assert_allclose(y, whole, atol=1e-5)


def test_clips_norm_before_the_blocks_and_no_patch_bias(key, draw):
  plain = shapes(vit.build("mu/4"), 8, 8, 3)["params"]
  model = vit.build("mu/4", pre_norm=True, patch_bias=False)
  image = jax.random.normal(key, (2, 8, 8, 3))
  params = nn.unbox(draw(model, image))["params"]
  assert params.keys() - plain.keys() == {"pre_norm"}
  assert params["embedding"].keys() == {"kernel"}
  assert plain["embedding"].keys() == {"kernel", "bias"}
  # All that the blocks see comes through the norm.
  for scale in (0.0, 1.0):
    params["pre_norm"]["scale"] = jnp.full(32, scale)
    y, _ = jax.jit(model.apply)({"params": params}, image)
    assert (np.abs(y[0] - y[1]).max() > 1e-3) == bool(scale)


def test_deits_two_tokens_have_a_head_each(key):
  model = vit.build("mu/4", pool="pair", distilled=True, num_classes=3)
  image = jax.random.normal(key, (2, 8, 8, 3))
  params = nn.unbox(jax.jit(model.init)(key, image))["params"]
  assert params["posemb"]["extra"].shape == (2, 32)
  for i, name in enumerate(("head", "head_distilled")):
    params[name]["bias"] = jnp.array([1.0, 2.0, 4.0]) * (i + 1)
  y, out = jax.jit(model.apply)({"params": params}, image)
  np.testing.assert_allclose(y, np.tile([1.5, 3.0, 6.0], (2, 1)), rtol=1e-6)
  np.testing.assert_allclose(out["logits_cls"][0], [1.0, 2.0, 4.0])
  np.testing.assert_allclose(out["logits_distilled"][0], [2.0, 4.0, 8.0])


def test_registers_are_seen_but_not_pooled(key, draw):
  options = dict(pool="tok_gap", registers=3, layer_scale=0.1)
  model = vit.build("mu/4", **options)
  image = jax.random.normal(key, (2, 8, 12, 3))
  variables = draw(model, image)
  y, out = jax.jit(model.apply)(variables, image)
  tokens = out["tokens"]
  assert tokens.shape == (2, 1 + 3 + 6, 32)
  np.testing.assert_allclose(y[:, :32], tokens[:, 0], atol=1e-6)
  np.testing.assert_allclose(y[:, 32:], tokens[:, 4:].mean(1), atol=1e-6)
  params = nn.unbox(variables)["params"]
  assert params["posemb"]["extra"].shape == (1, 32)
  params["registers"] = params["registers"] + jax.random.normal(key, (3, 32))
  other, _ = jax.jit(model.apply)({"params": params}, image)
  assert np.abs(other - y).max() > 1e-4


def test_tokens_without_positions_and_a_norm_after_the_pool(key, draw):
  model = vit.build(
    "mu/4", class_token=True, token_posemb=False, last_norm="pooled"
  )
  image = jax.random.normal(key, (2, 8, 8, 3))
  variables = draw(model, image)
  y, out = jax.jit(model.apply)(variables, image)
  assert variables["params"]["posemb"].keys() == {"grid"}
  mean = out["tokens"][:, 1:].mean(1)
  want = (mean - mean.mean(-1, keepdims=True)) / mean.std(-1, keepdims=True)
  np.testing.assert_allclose(y, want, atol=1e-3)


def test_learned_positions_are_stretched_on_demand(key, draw):
  image = jax.random.normal(key, (1, 8, 16, 3))
  model = vit.build("mu/4", interpolate="bicubic", pool="tok")
  variables = nn.unbox(draw(model, image))
  plain = vit.build("mu/4", pool="tok")
  a, b = (jax.jit(m.apply)(variables, image)[0] for m in (model, plain))
  np.testing.assert_array_equal(a, b)
  larger = jnp.tile(image, (1, 2, 1, 1))
  found = [
    jax.jit(vit.build("mu/4", interpolate=m, pool="tok").apply)(
      variables, larger
    )[0]
    for m in ("bicubic", "bilinear_corners")
  ]
  assert np.abs(found[0] - found[1]).max() > 1e-5


def test_patches_are_dropped_in_training_only(key, draw):
  image = jax.random.normal(key, (2, 16, 16, 3))
  model = vit.build("mu/4", pool="tok", patch_drop=0.6)
  variables = nn.unbox(draw(model, image))
  apply = jax.jit(model.apply, static_argnames="train")
  rngs = {"dropout": key}
  _, out = apply(variables, image, train=True, rngs=rngs)
  assert out["tokens"].shape == (2, 1 + 6, 32)
  _, out = apply(variables, image)
  assert out["tokens"].shape == (2, 1 + 16, 32)
  # Those that are kept keep their positions: all of them, in any order.
  order = jnp.tile(jnp.arange(16)[::-1], (2, 1))
  _, turned = apply(variables, image, order)
  np.testing.assert_allclose(
    turned["tokens"][:, 1:], out["tokens"][:, :0:-1], atol=1e-4
  )


def test_gated_blocks_and_bare_projections(key):
  model = vit.build("mu/4", gated=True, act="silu", qkv_bias=False)
  blocks = shapes(model, 8, 8, 3)["params"]["encoder"]["blocks"]
  assert blocks["mlp"].keys() == {"up", "gate", "down"}
  assert blocks["attention"]["query"].keys() == {"kernel"}
  assert blocks["attention"]["out"].keys() == {"kernel", "bias"}


@pytest.mark.parametrize(
  "kw, words",
  [
    (dict(variant="X/16"), "variant = 'X/16'"),
    (dict(variant="S/large"), "no number of pixels"),
    (dict(variant="S"), "patch not given"),
    (dict(variant="S/16", pool="gab"), "Did you mean 'gap'"),
    (dict(variant="S/16", last_norm="all"), "last_norm"),
    (dict(variant="S/16", posemb="sincos"), "'sincos2d'"),
    (dict(variant="S/16", stem="convs"), "'conv'"),
    (dict(variant="S/16", remat="all"), "remat"),
    (dict(variant="S/16", act="gellu"), "'gelu'"),
    (dict(variant="S/16", stem="conv", patch_bias=False), "patch_bias = False"),
    (dict(variant="S/16", stem="conv", stride=(8, 8)), "stride"),
    (dict(variant="S/16", pool="tok", class_token=False), "class_token"),
    (dict(variant="S/16", pool="pair"), "distilled = True"),
    (dict(variant="S/16", patch_drop=1.0), "patch_drop = 1.0"),
    (dict(variant="S/16", interpolate="cubic"), "'bicubic'"),
  ],
)
def test_bad_keywords_are_named(kw, words):
  with pytest.raises(errors.InputError, match=words):
    vit.build(**kw)
