"""Normalisation of the width of tokens."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.parallel import rules

KINDS = ("layer", "layer_no_bias", "layer_no_scale", "rms", "rms_plus_one")


def norm(
  kind: str,
  *,
  epsilon: float = 1e-6,
  dtype: Any = jnp.float32,
  name: str | None = None,
) -> nn.Module:
  """Returns a norm of the last axis [... D], by name.

  Args:
    kind: "layer", LayerNorm ("Layer normalization", Ba et al. 2016);
      "layer_no_bias"; "layer_no_scale", before a dense layer; "rms", which subtracts no mean and adds no bias ("Root
      mean square layer normalization", Zhang and Sennrich 2019);
      "rms_plus_one", whose parameter is added to 1 (Gemma).
    epsilon: added to the variance.
    dtype: of the result; statistics and parameters are float32.
    name: of the module.

  Raises:
    InputError: an unknown kind.
  """
  if kind not in KINDS:
    raise errors.unknown("norm", kind, KINDS)
  if kind.startswith("rms"):
    return RMSNorm(epsilon, kind == "rms_plus_one", dtype, name=name)
  return nn.LayerNorm(
    epsilon=epsilon,
    dtype=dtype,
    use_bias=kind != "layer_no_bias",
    use_scale=kind != "layer_no_scale",
    scale_init=rules.with_axes(nn.initializers.ones, ("norm",)),
    bias_init=rules.with_axes(nn.initializers.zeros, ("norm",)),
    name=name,
  )


def layer_norm(
  *, epsilon: float = 1e-6, dtype: Any = jnp.float32, name: str | None = None
) -> nn.Module:
  """Returns a LayerNorm with scale and bias, see `norm`."""
  return norm("layer", epsilon=epsilon, dtype=dtype, name=name)


class RMSNorm(nn.Module):
  """Divides by the root of the mean square, and scales.

  Attributes:
    epsilon: added to the mean square.
    plus_one: the parameter is added to 1, and starts at 0.
    dtype: of the result.
  """

  epsilon: float
  plus_one: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [... D] to [... D]."""
    start = nn.initializers.zeros if self.plus_one else nn.initializers.ones
    scale = self.param(
      "scale", rules.with_axes(start, ("norm",)), (x.shape[-1],)
    )
    x = x.astype(jnp.float32)
    square = jnp.square(x).mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(square + self.epsilon)
    scale = scale + 1.0 if self.plus_one else scale
    return (x * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(self.dtype)
