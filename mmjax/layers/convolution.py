"""Convolutions of feature maps [B Y X C], their norms, and local pooling.

Padding is PyTorch's, symmetric and explicit: with stride 2 it differs from
"SAME", which puts more at the end.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.parallel import rules

PADDINGS = ("half", "same", "valid")


def padding(kind: str, size: int) -> str | list[tuple[int, int]]:
  """Returns the padding of a window of odd size, as XLA takes it.

  Args:
    kind: "half" of the window on both sides, "same" as TensorFlow (what makes
      ceil(Y / stride) rows, the odd one at the end), or "valid", none.
    size: of the window.

  Raises:
    InputError: an unknown kind.
  """
  if kind not in PADDINGS:
    raise errors.unknown("padding", kind, PADDINGS)
  return [(size // 2, size // 2)] * 2 if kind == "half" else kind.upper()


class Conv(nn.Module):
  """A convolution without a bias.

  Attributes:
    features: D.
    size: side of the kernel, odd.
    stride: in pixels.
    dilation: pixels from one entry of the kernel to the next.
    padding: see `padding`.
    standardise: None, or the epsilon with which each filter is brought to mean
      0 and variance 1 over its inputs ("Micro-batch training with
      batch-channel normalization and weight standardization", Qiao et al.
      2019), in float32.
    dtype: of the computation; the kernel is float32.
  """

  features: int
  size: int = 3
  stride: int = 1
  padding: str = "half"
  standardise: float | None = None
  dtype: Any = jnp.float32
  dilation: int = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B Y X C] to [B Y' X' D]."""
    kernel = self.param(
      "kernel",
      rules.with_axes(
        nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        ("kernel", "kernel", "channels", "embed"),
      ),
      (self.size, self.size, x.shape[-1], self.features),
    )
    if self.standardise is not None:
      mean = kernel.mean((0, 1, 2), keepdims=True)
      variance = kernel.var((0, 1, 2), keepdims=True)
      kernel = (kernel - mean) * jax.lax.rsqrt(variance + self.standardise)
    x = jax.lax.conv_general_dilated(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      (self.stride, self.stride),
      # What a window spans, holes and all.
      padding(self.padding, self.dilation * (self.size - 1) + 1),
      rhs_dilation=(self.dilation, self.dilation),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return rules.constrain(x, "batch", None, None, None)


def batch_norm(
  *,
  train: bool,
  epsilon: float = 1e-5,
  momentum: float = 0.9,
  dtype: Any = jnp.float32,
  name: str | None = None,
) -> nn.BatchNorm:
  """Returns a BatchNorm ("Batch normalization", Ioffe and Szegedy 2015).

  Its running mean and variance are the collection "batch_stats". Training
  takes those of the batch, the whole of it however it is split, and moves the
  running ones by 1 - momentum towards them. The variance that is kept is that
  of the batch; PyTorch keeps n / (n - 1) times it.
  """
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=momentum,
    epsilon=epsilon,
    dtype=dtype,
    scale_init=rules.with_axes(nn.initializers.ones, ("norm",)),
    bias_init=rules.with_axes(nn.initializers.zeros, ("norm",)),
    name=name,
  )


def group_norm(
  *,
  groups: int = 32,
  epsilon: float = 1e-5,
  dtype: Any = jnp.float32,
  name: str | None = None,
) -> nn.GroupNorm:
  """Returns a GroupNorm ("Group normalization", Wu and He 2018)."""
  return nn.GroupNorm(
    num_groups=groups,
    epsilon=epsilon,
    dtype=dtype,
    # Of differences from the mean: those of squares lose digits.
    use_fast_variance=False,
    scale_init=rules.with_axes(nn.initializers.ones, ("norm",)),
    bias_init=rules.with_axes(nn.initializers.zeros, ("norm",)),
    name=name,
  )


def max_pool(
  x: jax.Array, size: int = 3, stride: int = 2, how: str = "half"
) -> jax.Array:
  """Takes the greatest value of each window of [B Y X C]; padding never is."""
  ends: Any = padding(how, size)
  return nn.max_pool(x, (size, size), (stride, stride), ends)


def avg_pool(x: jax.Array, size: int) -> jax.Array:
  """Averages squares of [B Y X C]; what fills none at the end is left out."""
  if size == 1:
    return x
  return nn.avg_pool(x, (size, size), (size, size), "VALID")


def pad(x: jax.Array, size: int, stride: int, how: str) -> jax.Array:
  """Pads [B Y X C] with zeros, as `padding` would for a window.

  For poolings that take zeros for values, unlike `max_pool`.
  """
  ends = []
  for n in x.shape[1:3]:
    if how == "half":
      ends.append((size // 2, size // 2))
    elif how == "same":
      lack = max((-(-n // stride) - 1) * stride + size - n, 0)
      ends.append((lack // 2, lack - lack // 2))
    else:
      ends.append((0, 0))
  return jnp.pad(x, ((0, 0), *ends, (0, 0)))
