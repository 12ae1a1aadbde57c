"""Residual blocks of convolutions, of which image tokenizers are made.

All of them keep rows and columns; maps are [B Y X C].
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.layers.attention import Attention
from mmjax.parallel import rules

INIT = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


def conv(
  channels: int,
  size: int,
  axes: tuple[str | None, str | None] = ("embed", "mlp"),
  *,
  stride: int = 1,
  padding: int | Sequence[tuple[int, int]] | None = None,
  dtype: Any = jnp.float32,
  name: str | None = None,
) -> nn.Conv:
  """Returns a convolution with a square kernel [size size C_in C_out].

  Args:
    channels: of the result.
    size: of the kernel, in pixels.
    axes: logical axes of the channels that come in and go out.
    stride: in pixels.
    padding: with zeros; None keeps rows and columns, at stride 1.
    dtype: of the computation.
    name: of the module.
  """
  # What goes along the residual stream is a vector of the width.
  bias = "norm" if axes[1] == "embed" else axes[1]
  return nn.Conv(
    channels,
    (size, size),
    strides=(stride, stride),
    padding=size // 2 if padding is None else padding,
    dtype=dtype,
    kernel_init=rules.with_axes(INIT, ("kernel", "kernel", *axes)),
    bias_init=rules.with_axes(nn.initializers.zeros, (bias,)),
    name=name,
  )


def upsample(x: jax.Array) -> jax.Array:
  """Makes each pixel four: [B Y X C] -> [B 2Y 2X C]."""
  return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def group_norm(
  groups: int, *, dtype: Any = jnp.float32, name: str | None = None
) -> nn.GroupNorm:
  """Returns a GroupNorm ("Group normalization", Wu and He 2018) module.

  Its epsilon is 1e-6. Mean and variance are float32; the result has `dtype`.
  """
  return nn.GroupNorm(
    num_groups=groups,
    epsilon=1e-6,
    use_fast_variance=False,  # E[x^2] - E[x]^2 loses digits
    dtype=dtype,
    scale_init=rules.with_axes(nn.initializers.ones, ("norm",)),
    bias_init=rules.with_axes(nn.initializers.zeros, ("norm",)),
    name=name,
  )


class ReluBlock(nn.Module):
  """Four convolutions to a quarter of the width and back, each after a ReLU.

  y = skip(x) + gain * path(x), of DALL-E's dVAE ("Zero-shot text-to-image
  generation", Ramesh et al. 2021).

  Attributes:
    width: C of the result, a multiple of 4.
    sizes: of the four kernels, in pixels.
    gain: of the path.
    dtype: of the computation.
  """

  width: int
  sizes: Sequence[int]
  gain: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B Y X C'] to [B Y X C]; the skip is 1x1 where C' is not C."""
    hidden = self.width // 4
    h = x
    for i, size in enumerate(self.sizes):
      first, last = i == 0, i == len(self.sizes) - 1
      axes = "embed" if first else "mlp", "embed" if last else "mlp"
      channels = self.width if last else hidden
      h = conv(channels, size, axes, dtype=self.dtype, name=f"conv_{i + 1}")(
        jax.nn.relu(h)
      )
    if x.shape[-1] != self.width:
      axes = ("embed", "embed")
      x = conv(self.width, 1, axes, dtype=self.dtype, name="skip")(x)
    return rules.constrain(x + self.gain * h, "batch", None, None, "embed")


class NormBlock(nn.Module):
  """Two 3x3 convolutions, each after a GroupNorm and a swish.

  y = skip(x) + path(x), of VQGAN and of "Denoising diffusion probabilistic
  models", Ho et al. 2020.

  Attributes:
    width: C of the result.
    groups: of the norms, a divisor of C and of C'.
    dropout: rate, before the second convolution.
    dtype: of the computation.
  """

  width: int
  groups: int = 32
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
    """Maps [B Y X C'] to [B Y X C]; the skip is 1x1 where C' is not C."""
    kw: dict[str, Any] = dict(dtype=self.dtype)
    h = jax.nn.swish(group_norm(self.groups, name="norm1", **kw)(x))
    h = conv(self.width, 3, ("embed", "mlp"), name="conv1", **kw)(h)
    h = jax.nn.swish(group_norm(self.groups, name="norm2", **kw)(h))
    h = nn.Dropout(self.dropout)(h, deterministic=deterministic)
    h = conv(self.width, 3, ("mlp", "embed"), name="conv2", **kw)(h)
    if x.shape[-1] != self.width:
      x = conv(self.width, 1, ("embed", "embed"), name="skip", **kw)(x)
    return rules.constrain(x + h, "batch", None, None, "embed")


class AttentionBlock(nn.Module):
  """One head of attention from each pixel to all, after a GroupNorm.

  Attributes:
    groups: of the norm.
    dtype: of the computation.
  """

  groups: int = 32
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Adds what each pixel reads to it, [B Y X C]."""
    B, Y, X, C = x.shape
    h = group_norm(self.groups, dtype=self.dtype, name="norm")(x)
    h = Attention(1, dtype=self.dtype, name="attention")(h.reshape(B, Y * X, C))
    return rules.constrain(x + h.reshape(x.shape), "batch", None, None, "embed")
