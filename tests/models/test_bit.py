import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors, tree
from mmjax.models import bit


# The first as in the paper's code, all as timm rounds them (resnetv2_*_bit).
@pytest.mark.parametrize(
  "variant, millions",
  [
    ("R50x1", 25.549352),
    ("R50x3", 217.32),
    ("R101x1", 44.54),
    ("R101x3", 387.93),
    ("R152x2", 236.34),
    ("R152x4", 936.53),
  ],
)
def test_published_parameter_counts(variant, millions):
  model = bit.build(variant, num_classes=1000)
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), image))
  assert set(shapes) == {"params"}
  digits = 6 if variant == "R50x1" else 2
  assert round(tree.count(shapes) / 1e6, digits) == millions


@pytest.mark.slow
def test_features_of_odd_and_oblong_images(key):
  model = bit.build(**{**bit.TINY, "num_classes": None})
  image = jax.random.normal(key, (2, 45, 38, 3))
  variables = nn.unbox(jax.jit(model.init)(key, image))
  y, out = jax.jit(model.apply)(variables, image)
  assert y.shape == (2, 32) and model.width == 32
  assert out["tokens"].shape == (2, 6 * 5, 32)
  np.testing.assert_allclose(y, out["tokens"].mean(1), atol=1e-5)
  # Each example is its own, also in training.
  alone, _ = jax.jit(functools.partial(model.apply, train=True))(
    variables, image[1:]
  )
  np.testing.assert_allclose(alone, y[1:], atol=1e-5)


def test_filters_are_standardised(key, draw):
  model = bit.build(**bit.TINY)
  image = jax.random.normal(key, (2, 21, 16, 3))
  variables = nn.unbox(draw(model, image))
  apply = jax.jit(model.apply)

  def move(path, x):
    return 3 * x + 1 if x.ndim >= 4 else x

  moved = jax.tree_util.tree_map_with_path(move, variables)
  for want, got in zip(
    apply(variables, image)[1].values(),
    apply(moved, image)[1].values(),
    strict=True,
  ):
    np.testing.assert_allclose(got, want, atol=1e-3)


@pytest.mark.parametrize("padding, rows", [("half", 2), ("same", 1)])
def test_padding(key, padding, rows):
  # 9 rows -> 5 -> of 3 windows 2 with zeros around, else 2 -> 1 at the end.
  model = bit.build(**bit.TINY, padding=padding)
  image = jax.ShapeDtypeStruct((1, 9, 9, 3), jnp.float32)
  (_, out), _ = jax.eval_shape(model.init_with_output, key, image)
  assert out["tokens"].shape == (1, rows**2, 32)


def test_what_cannot_be_built():
  for keywords, says in (
    (dict(variant="R50x2"), "models.bit variant = 'R50x2'"),
    (dict(depths=[1]), "stem, widths not given"),
    (dict(variant="R50x1", padding="valid"), "models.bit padding = 'valid'"),
    (dict(variant="R50x1", pool_padding="x"), "pool_padding = 'x'"),
    (dict(variant="R50x1", groups=48), "groups = 48: .* do not divide 256"),
  ):
    with pytest.raises(errors.InputError, match=says):
      bit.build(**keywords)
