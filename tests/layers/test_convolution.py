"""Against loops over windows in numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.layers import convolution as conv
from mmjax.layers.embed import normalised


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def windows(x, size, stride):
  """Yields (row, column, window) of x [B Y X C], which is padded already."""
  for i in range((x.shape[1] - size) // stride + 1):
    for j in range((x.shape[2] - size) // stride + 1):
      y, z = i * stride, j * stride
      yield i, j, x[:, y : y + size, z : z + size]


def slide(x, size, stride, f):
  """Returns [B Y' X' ...] of f(window [B size size C])."""
  found = {(i, j): f(w) for i, j, w in windows(x, size, stride)}
  rows = max(i for i, _ in found) + 1
  columns = max(j for _, j in found) + 1
  return np.stack(
    [np.stack([found[i, j] for j in range(columns)], 1) for i in range(rows)],
    1,
  )


def framed(x, before, after, value=0.0):
  ends = ((0, 0), (before, after), (before, after), (0, 0))
  return np.pad(x, ends, constant_values=value)


# TensorFlow's rule at 7 pixels and stride 2: 4 rows, so 2 of padding with a
# window of 3; at 8 pixels one, at the end.
@pytest.mark.parametrize(
  "kind, pixels, size, stride, before, after",
  [
    ("half", 7, 3, 2, 1, 1),
    ("half", 8, 3, 2, 1, 1),
    ("half", 9, 7, 2, 3, 3),
    ("half", 6, 1, 2, 0, 0),
    ("same", 7, 3, 2, 1, 1),
    ("same", 8, 3, 2, 0, 1),
    ("same", 8, 7, 2, 2, 3),
    ("same", 5, 3, 1, 1, 1),
    ("valid", 7, 3, 2, 0, 0),
  ],
)
@pytest.mark.parametrize("standardise", [None, 1e-3])
def test_convolution(
  rng, key, kind, pixels, size, stride, before, after, standardise
):
  x = rng.normal(size=(2, pixels, pixels, 3)).astype(np.float32)
  layer = conv.Conv(5, size, stride, kind, standardise)
  out, variables = jax.jit(layer.init_with_output)(key, x)
  (kernel,) = jax.tree.leaves(nn.unbox(variables))
  kernel = np.asarray(kernel, np.float64)
  assert kernel.shape == (size, size, 3, 5)
  if standardise is not None:
    flat = kernel.reshape(-1, 5)
    flat = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + standardise)
    kernel = flat.reshape(kernel.shape)
  want = slide(
    framed(x, before, after),
    size,
    stride,
    lambda w: np.einsum("byxc,yxcd->bd", w, kernel),
  )
  np.testing.assert_allclose(out, want, atol=2e-5 * np.abs(want).max())
  # Padding by hand is the same.
  np.testing.assert_array_equal(
    conv.pad(jnp.asarray(x), size, stride, kind), framed(x, before, after)
  )


@pytest.mark.parametrize("kind, before", [("half", 2), ("valid", 0)])
def test_a_dilated_kernel_is_one_with_holes(rng, key, kind, before):
  x = rng.normal(size=(2, 8, 9, 3)).astype(np.float32)
  layer = conv.Conv(5, 3, 1, kind, dilation=2)
  out, variables = jax.jit(layer.init_with_output)(key, x)
  (kernel,) = jax.tree.leaves(nn.unbox(variables))
  holes = np.zeros((5, 5, 3, 5), np.float32)
  holes[::2, ::2] = kernel
  want = slide(
    framed(x, before, before),
    5,
    1,
    lambda w: np.einsum("byxc,yxcd->bd", w, holes),
  )
  np.testing.assert_allclose(out, want, atol=1e-5)


def test_pooling(rng):
  x = -1 - rng.random(size=(2, 7, 7, 3)).astype(np.float32)
  for how, value in (("half", -np.inf), ("valid", None)):
    padded = x if value is None else framed(x, 1, 1, value)
    want = slide(padded, 3, 2, lambda w: w.max((1, 2)))
    np.testing.assert_array_equal(conv.max_pool(x, how=how), want)
  # Zeros are greater than all there is.
  zeros = conv.max_pool(conv.pad(jnp.asarray(x), 3, 2, "half"), how="valid")
  assert zeros[0, 0, 0, 0] == 0 and zeros[0, 1, 1, 0] < 0
  want = slide(x, 2, 2, lambda w: w.mean((1, 2)))
  assert want.shape == (2, 3, 3, 3)
  np.testing.assert_allclose(conv.avg_pool(x, 2), want, rtol=1e-6)
  np.testing.assert_array_equal(conv.avg_pool(x, 1), x)


def test_batch_norm_trains_by_the_batch_and_keeps_statistics(rng, key):
  x = rng.normal(3, 2, size=(4, 5, 6, 3)).astype(np.float32)
  flat = x.reshape(-1, 3).astype(np.float64)
  make = dict(epsilon=0.1, momentum=0.75)
  train = conv.batch_norm(train=True, **make)
  still = conv.batch_norm(train=False, **make)
  variables = nn.unbox(still.init(key, x))
  # At the start the statistics are 0 and 1, and declaring moves them not.
  np.testing.assert_allclose(
    still.apply(variables, x), x / np.sqrt(1.1), rtol=1e-5
  )
  out, moved = train.apply(variables, x, mutable=["batch_stats"])
  want = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 0.1)
  np.testing.assert_allclose(out, want, atol=1e-4)
  stats = jax.tree.map(np.asarray, moved["batch_stats"])
  np.testing.assert_allclose(stats["mean"], 0.25 * flat.mean(0), rtol=1e-5)
  np.testing.assert_allclose(stats["var"], 0.75 + 0.25 * flat.var(0), rtol=1e-4)
  out = still.apply({**variables, **moved}, x)
  want = (x - stats["mean"]) / np.sqrt(stats["var"] + 0.1)
  np.testing.assert_allclose(out, want, atol=1e-4)


def test_group_norm_keeps_its_digits(rng, key):
  # Far from 0, the mean of squares has no digits left for the variance.
  x = (1000 + rng.normal(size=(2, 4, 3, 6))).astype(np.float32)
  layer = conv.group_norm(groups=2, epsilon=0.1)
  out, _ = jax.jit(layer.init_with_output)(key, x)
  parts = x.astype(np.float64).reshape(2, 12, 2, 3)
  mean = parts.mean((1, 3), keepdims=True)
  want = (parts - mean) / np.sqrt(parts.var((1, 3), keepdims=True) + 0.1)
  np.testing.assert_allclose(out, want.reshape(x.shape), atol=1e-3)


def test_images_become_floats():
  image = np.array([[0, 51, 255]], np.uint8)
  np.testing.assert_allclose(normalised(image), [[-1, -0.6, 1]], atol=1e-6)
  half = np.ones(3, np.float16)
  assert normalised(half) is half
  with pytest.raises(errors.InputError, match="image is int32"):
    normalised(np.ones(3, np.int32))
  with pytest.raises(errors.InputError, match="padding = 'full'"):
    conv.padding("full", 3)
