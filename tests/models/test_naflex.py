"""NaFlex equals a ViT on whole images; padding and batches change nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax import build, errors
from mmjax.models import naflex

SIZES = dict(width=12, depth=1, heads=3, mlp=20, patch=4, pool="map")


def make(**changes):
  keywords = {**SIZES, "side": 3, **changes}
  return build.build("models", name="naflex", **keywords)


@functools.cache
def applied():
  return jax.jit(make().apply)


@pytest.fixture(scope="module")
def square(draw):
  """Returns images, and variables far from their start."""
  rng = np.random.default_rng(1)
  image = rng.standard_normal((2, 12, 12, 3), np.float32)
  params = nn.unbox(draw(make(), image))
  return image, jax.tree.map(
    lambda x: x + 0.3 * rng.standard_normal(x.shape, np.float32), params
  )


def test_a_square_image_is_read_as_by_a_vit(square):
  image, params = square
  vit = build.build("models", name="vit", **SIZES)
  want, _ = jax.jit(vit.apply)(params, image)
  got, _ = applied()(params, image)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_padding_and_other_images_are_not_seen(square):
  _, params = square
  rng = np.random.default_rng(0)
  patches = rng.normal(size=(2, 11, 48)).astype(np.float32)
  shapes = np.array([[2, 4], [5, 2]], np.int32)
  got, _ = applied()(params, patches, shapes=shapes)
  for row, (h, w) in enumerate(shapes):
    alone = patches[row, : h * w].reshape(1, h, w, 4, 4, 3)
    image = alone.transpose(0, 1, 3, 2, 4, 5).reshape(1, h * 4, w * 4, 3)
    want, _ = applied()(params, image)
    np.testing.assert_allclose(got[row], want[0], atol=1e-5)


def test_a_mask_takes_patches_away(square):
  _, params = square
  patches = np.random.default_rng(0).normal(size=(1, 6, 48))
  patches = patches.astype(np.float32)
  shapes = np.array([[2, 3]], np.int32)
  mask = np.array([[1, 1, 0, 1, 1, 1]])
  got, _ = applied()(params, patches, mask, shapes)
  changed = patches.copy()
  changed[0, 2] += 5.0
  again, _ = applied()(params, changed, mask, shapes)
  np.testing.assert_allclose(got, again, atol=1e-5)
  whole, _ = applied()(params, patches, np.ones_like(mask), shapes)
  assert np.abs(got - whole).max() > 1e-2


def test_classes_are_of_the_mean(square):
  image, params = square
  model = make(pool="gap", num_classes=5)
  rng = np.random.default_rng(2)
  kernel = rng.standard_normal((12, 5), np.float32)
  head = {"kernel": kernel, "bias": np.arange(5, dtype=np.float32)}
  kept = {k: v for k, v in params["params"].items() if k != "pool"}
  logits, out = jax.jit(model.apply)({"params": {**kept, "head": head}}, image)
  mean = np.asarray(out["tokens"]).mean(1)
  np.testing.assert_allclose(
    logits, mean @ kernel + head["bias"], rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize("old, new", [(5, 3), (3, 7), (4, 4), (16, 5)])
def test_an_axis_is_stretched_by_a_triangle_that_widens(old, new):
  got = naflex.stretch(jnp.arange(new)[None], jnp.full((1, 1), new), old)[0]
  scale = old / new
  wide = max(scale, 1.0)
  for i in range(new):
    row = [
      max(0.0, 1 - abs(j + 0.5 - (i + 0.5) * scale) / wide) for j in range(old)
    ]
    np.testing.assert_allclose(got[i], np.array(row) / sum(row), atol=1e-6)


def test_the_released_size_has_as_many_parameters_as_its_vit():
  count = lambda m, image: sum(  # noqa: E731
    x.size
    for x in jax.tree.leaves(jax.eval_shape(m.init, jax.random.key(0), image))
  )
  image = jnp.zeros((1, 256, 256, 3))
  got = count(naflex.build("B/16"), image)
  # SigLIP B/16 at 224 pixels has 92,884,224, and 196 positions for 256.
  assert got == 92_884_224 + 60 * 768


@pytest.mark.parametrize(
  "image, shapes, word",
  [
    (np.zeros((1, 4, 48), np.float32), None, "shapes"),
    (np.zeros((1, 8, 8, 3), np.float32), [[2, 2]], "shapes"),
    (np.zeros((1, 4, 47), np.float32), [[2, 2]], "47"),
    (np.zeros((1, 8, 9, 3), np.float32), None, "patch = 4"),
    (np.zeros((1, 4, 48), np.int32), [[2, 2]], "int32"),
  ],
)
def test_arrays_that_do_not_go_together_are_refused(image, shapes, word):
  shapes = None if shapes is None else np.array(shapes)
  with pytest.raises(errors.InputError, match=word):
    make().init(jax.random.key(0), image, None, shapes)


@pytest.mark.parametrize(
  "keywords, word",
  [
    (dict(variant="B"), "variant"),
    (dict(width=8), "depth"),
    (dict(variant="B/16", pool="tok"), "pool"),
    (dict(variant="B/16", remat="x"), "remat"),
    (dict(variant="B/16", act="x"), "activation"),
  ],
)
def test_keywords_are_checked(keywords, word):
  with pytest.raises(errors.InputError, match=word):
    naflex.build(**keywords)
