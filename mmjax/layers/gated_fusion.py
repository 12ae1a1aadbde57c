"""Two grids mixed by gates.

"Attentional feature fusion", Dai et al. 2021, as CLAP mixes a sound with its
parts (Wu et al. 2023).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.layers.convolution import batch_norm
from mmjax.parallel import rules


class Fusion(nn.Module):
  """Mixes two grids by gates that are made of their sum.

  "Attentional feature fusion", Dai et al. 2021.

  Attributes:
    reduction: how many times fewer channels there are within.
    dtype: of the computation.
  """

  reduction: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, y: jax.Array, read: jax.Array, norm: dict[str, Any]
  ) -> jax.Array:
    """Mixes x and y, [B Y X D].

    Args:
      x, y: the grids.
      read: bool [B 1 1 1], of which rows training takes its statistics; of all
        if it is true of none.
      norm: of `batch_norm`.
    """
    both = x + y
    mask = read | ~read.any()
    mean = both.mean((1, 2), keepdims=True)
    gate = jax.nn.sigmoid(
      self._gates(both, "near", mask, norm)
      + self._gates(mean, "far", mask, norm)
    )
    return 2 * x * gate + 2 * y * (1 - gate)

  def _gates(
    self, x: jax.Array, name: str, mask: jax.Array, norm: dict[str, Any]
  ) -> jax.Array:
    D = x.shape[-1]
    axes = [("embed", "mlp"), ("mlp", "embed")]
    for i, (features, names) in enumerate(
      zip((D // self.reduction, D), axes, strict=True), 1
    ):
      x = nn.Dense(
        features,
        dtype=self.dtype,
        kernel_init=rules.with_axes(nn.initializers.lecun_normal(), names),
        bias_init=rules.with_axes(nn.initializers.zeros, ("norm",)),
        name=f"{name}_dense{i}",
      )(x)
      x = batch_norm(dtype=self.dtype, name=f"{name}_norm{i}", **norm)(
        x, mask=mask
      )
      x = jax.nn.relu(x) if i == 1 else x
    return x
