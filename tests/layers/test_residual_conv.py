import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.layers import residual_conv


def conv(x, kernel, bias, before, after):
  """Convolution of stride 1 with zeros before and after, in float64."""
  size = kernel.shape[0]
  x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
  Y, X = x.shape[1] - size + 1, x.shape[2] - size + 1
  return bias + sum(
    x[:, i : i + Y, j : j + X] @ kernel[i, j]
    for i in range(size)
    for j in range(size)
  )


def same(x, params):
  pad = params["kernel"].shape[0] // 2
  return conv(x, params["kernel"], params["bias"], pad, pad)


def group_norm(x, params, groups):
  B, Y, X, C = x.shape
  y = x.reshape(B, Y * X, groups, C // groups)
  mean = y.mean((1, 3), keepdims=True)
  y = (y - mean) / np.sqrt(y.var((1, 3), keepdims=True) + 1e-6)
  return y.reshape(x.shape) * params["scale"] + params["bias"]


def swish(x):
  return x / (1 + np.exp(-x))


def drawn(module, *inputs):
  """Returns variables whose leaves are all drawn anew."""
  boxed = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  generator = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: np.float32(generator.normal(size=leaf.shape)),
    nn.unbox(boxed),
  )


@pytest.fixture
def x():
  return np.float32(np.random.default_rng(1).normal(size=(2, 4, 6, 8)))


@pytest.mark.parametrize("size", [1, 3, 7])
def test_conv_keeps_rows_and_columns(x, size):
  module = residual_conv.conv(5, size)
  variables = drawn(module, x)
  y = jax.jit(module.apply)(variables, x)
  np.testing.assert_allclose(y, same(x, variables["params"]), atol=2e-4)


def test_conv_with_stride_and_zeros_at_the_end_only(x):
  module = residual_conv.conv(5, 3, stride=2, padding=((0, 1), (0, 1)))
  variables = drawn(module, x)
  y = jax.jit(module.apply)(variables, x)
  p = variables["params"]
  want = conv(x, p["kernel"], p["bias"], 0, 1)[:, ::2, ::2]
  assert y.shape == (2, 2, 3, 5)
  np.testing.assert_allclose(y, want, atol=2e-4)


def test_upsample_makes_each_pixel_four(x):
  y = residual_conv.upsample(jnp.asarray(x))
  assert y.shape == (2, 8, 12, 8)
  for i in (0, 1):
    for j in (0, 1):
      np.testing.assert_array_equal(y[:, i::2, j::2], x)


def test_group_norm_equals_float64_far_from_zero(x):
  module = residual_conv.group_norm(4)
  variables = drawn(module, x)
  y = jax.jit(module.apply)(variables, x + 300)
  want = group_norm(x + np.float64(300), variables["params"], 4)
  np.testing.assert_allclose(y, want, atol=2e-3)


@pytest.mark.parametrize("width", [8, 12])
def test_relu_block(x, width):
  module = residual_conv.ReluBlock(width, (3, 3, 3, 1), gain=0.25)
  variables = drawn(module, x)
  p = variables["params"]
  h = x
  for i in range(1, 5):
    h = same(np.maximum(h, 0), p[f"conv_{i}"])
  assert ("skip" in p) == (width != 8)
  assert p["conv_2"]["kernel"].shape == (3, 3, width // 4, width // 4)
  want = (same(x, p["skip"]) if "skip" in p else x) + 0.25 * h
  y = jax.jit(module.apply)(variables, x)
  np.testing.assert_allclose(y, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("width", [8, 12])
def test_norm_block(x, width):
  module = residual_conv.NormBlock(width, groups=4)
  variables = drawn(module, x)
  p = variables["params"]
  h = same(swish(group_norm(x, p["norm1"], 4)), p["conv1"])
  h = same(swish(group_norm(h, p["norm2"], 4)), p["conv2"])
  assert ("skip" in p) == (width != 8)
  want = (same(x, p["skip"]) if "skip" in p else x) + h
  y = jax.jit(module.apply)(variables, x)
  np.testing.assert_allclose(y, want, atol=1e-5 * np.abs(want).max())


def test_norm_blocks_dropout_is_off_unless_asked(x, key):
  module = residual_conv.NormBlock(8, groups=4, dropout=0.5)
  variables = drawn(module, x)
  still = module.apply(variables, x)
  plain = residual_conv.NormBlock(8, groups=4).apply(variables, x)
  np.testing.assert_array_equal(still, plain)
  y = module.apply(variables, x, False, rngs={"dropout": key})
  assert np.abs(y - still).max() > 0.1


def test_attention_block(x):
  module = residual_conv.AttentionBlock(groups=4)
  variables = drawn(module, x)
  p = variables["params"]
  h = group_norm(x, p["norm"], 4).reshape(2, 24, 8)
  q, k, v = (
    h @ p["attention"][n]["kernel"][:, 0] + p["attention"][n]["bias"][0]
    for n in ("query", "key", "value")
  )
  scores = q @ k.swapaxes(1, 2) / np.sqrt(8)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  out = weights @ v @ p["attention"]["out"]["kernel"][0]
  want = x + (out + p["attention"]["out"]["bias"]).reshape(x.shape)
  y = jax.jit(module.apply)(variables, x)
  np.testing.assert_allclose(y, want, atol=1e-4)
