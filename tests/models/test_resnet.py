import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import build, errors, tree
from mmjax.models import resnet


def shapes(model):
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  return nn.unbox(jax.eval_shape(model.init, jax.random.key(0), image))


def train(model, train=True):
  return jax.jit(
    functools.partial(model.apply, train=train, mutable=["batch_stats"])
  )


@pytest.mark.parametrize(
  "variant, published, width",
  [
    ("18", 11_689_512, 512),
    ("34", 21_797_672, 512),
    ("50", 25_557_032, 2048),
    ("101", 44_549_160, 2048),
    ("152", 60_192_808, 2048),
  ],
)
def test_published_parameter_counts(variant, published, width):
  model = resnet.build(variant, num_classes=1000)
  variables = shapes(model)
  assert tree.count(variables["params"]) == published
  assert model.width == width
  # A mean and a variance for each scale and bias.
  norms = [
    x.shape for name, x in tree.items(variables["params"]) if "norm" in name
  ]
  assert tree.count(variables["batch_stats"]) == sum(
    int(np.prod(shape)) for shape in norms
  )


@pytest.mark.slow
def test_features_of_odd_and_oblong_images(key):
  model = resnet.build(**{**resnet.TINY, "num_classes": None})
  image = jax.random.normal(key, (2, 45, 38, 3))
  (y, out), _ = jax.eval_shape(model.init_with_output, key, image)
  assert y.shape == (2, 32)
  assert out["tokens"].shape == (2, 6 * 5, 32)
  variables = jax.jit(model.init)(key, image)
  y, out = jax.jit(model.apply)(variables, image)
  np.testing.assert_allclose(y, out["tokens"].mean(1), atol=1e-5)
  byte = jnp.arange(2 * 45 * 38 * 3, dtype=jnp.uint8).reshape(image.shape)
  y, _ = jax.jit(model.apply)(variables, byte)
  floats = byte.astype(jnp.float32) / 127.5 - 1
  want, _ = jax.jit(model.apply)(variables, floats)
  np.testing.assert_allclose(y, want, atol=1e-5)


def test_first_stride_halves_once_more(key):
  model = resnet.build(**resnet.TINY, first_stride=2)
  image = jax.ShapeDtypeStruct((2, 64, 32, 3), jnp.float32)
  (_, out), _ = jax.eval_shape(model.init_with_output, key, image)
  assert out["tokens"].shape == (2, 4 * 2, 32)


def test_training_moves_statistics_evaluation_does_not(key):
  model = resnet.build(**resnet.TINY)
  image = jax.random.normal(key, (4, 21, 16, 3))
  variables = nn.unbox(jax.jit(model.init)(key, image))
  _, moved = train(model)(variables, image)
  assert all(
    np.abs(a - b).max() > 0
    for a, b in zip(
      jax.tree.leaves(moved["batch_stats"]),
      jax.tree.leaves(variables["batch_stats"]),
      strict=True,
    )
  )
  _, still = train(model, False)(variables, image)
  for a, b in zip(
    jax.tree.leaves(still["batch_stats"]),
    jax.tree.leaves(variables["batch_stats"]),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_as_the_image_tower_of_a_dual_encoder(key):
  model = build.build(
    "models",
    name="dual_encoder",
    image=dict(name="resnet", **{**resnet.TINY, "num_classes": None}),
    text=dict(
      name="text_encoder", vocab_size=20, width=16, depth=1, heads=2, mlp=16
    ),
    embed_dim=12,
  )
  image = jax.random.normal(key, (4, 21, 16, 3))
  text = jnp.ones((4, 5), jnp.int32)
  variables = nn.unbox(jax.jit(model.init)(key, image, text))
  (image_BD, text_BD, _), moved = train(model)(variables, image, text)
  assert image_BD.shape == text_BD.shape == (4, 12)
  assert set(moved["batch_stats"]) == {"image"}


def test_what_cannot_be_built():
  for keywords, says in (
    (dict(variant="51"), "models.resnet variant = '51'"),
    (dict(), "block and depths must be given"),
    (dict(variant="50", block="wide"), "models.resnet block = 'wide'"),
    (dict(variant="50", stride_in="third"), "stride_in = 'third'"),
    (dict(variant="18", inner=[1] * 4), "it has no inner channels"),
    (dict(variant="50", widths=[8]), "1 values for the 4 stages"),
    (dict(variant="50", inner_act="xielu"), "activation = 'xielu'"),
  ):
    with pytest.raises(errors.InputError, match=says):
      resnet.build(**keywords)
