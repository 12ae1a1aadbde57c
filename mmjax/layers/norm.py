"""Normalisation of the width of tokens."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmjax.parallel import rules


def layer_norm(
  *, epsilon: float = 1e-6, dtype: Any = jnp.float32, name: str | None = None
) -> nn.LayerNorm:
  """Returns a LayerNorm ("Layer normalization", Ba et al. 2016) module.

  Mean and variance are float32; the result has `dtype`. The scale and bias
  [D] are float32 and never split.
  """
  return nn.LayerNorm(
    epsilon=epsilon,
    dtype=dtype,
    scale_init=rules.with_axes(nn.initializers.ones, ("norm",)),
    bias_init=rules.with_axes(nn.initializers.zeros, ("norm",)),
    name=name,
  )
