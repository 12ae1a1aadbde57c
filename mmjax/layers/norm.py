"""Normalisation of the width of tokens."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.parallel import rules

KINDS = (
  "layer",
  "layer_no_bias",
  "layer_no_scale",
  "rms",
  "rms_no_scale",
  "rms_plus_one",
)
# Norms of a Transformer's block beside those before its branches: at the end
# of the attentions' branches, at the end of the MLP's, of its hidden units.
PLACES = {
  "preln": (False, False, False),
  "normformer": (True, False, True),  # Shleifer et al. 2021
  "cogview": (True, True, False),  # Ding et al. 2021
}


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
      "layer_no_bias"; "layer_no_scale", before a dense layer; "rms", which
      subtracts no mean and adds no bias ("Root mean square layer
      normalization", Zhang and Sennrich 2019); "rms_no_scale", before a dense
      layer; "rms_plus_one", whose parameter is added to 1 (Gemma).
    epsilon: added to the variance.
    dtype: of the result; statistics and parameters are float32.
    name: of the module.

  Raises:
    InputError: an unknown kind.
  """
  if kind not in KINDS:
    raise errors.unknown("norm", kind, KINDS)
  if kind.startswith("rms"):
    scaled = kind != "rms_no_scale"
    return RMSNorm(epsilon, kind == "rms_plus_one", dtype, scaled, name=name)
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


def placed(places: str, kind: str, scaled: bool) -> dict[str, Any]:
  """Returns the kinds of a block's norms, as `layers.block.Spec` names them.

  Args:
    places: where there are norms, of `PLACES`.
    kind: "layer" or "rms".
    scaled: whether those before a dense layer have a scale; others always do.

  Raises:
    InputError: an unknown place or kind.
  """
  if places not in PLACES:
    raise errors.unknown("norms", places, PLACES)
  if kind not in ("layer", "rms"):
    raise errors.unknown("norm", kind, ("layer", "rms"))
  before = kind if scaled else f"{kind}_no_scale"
  after, after_mlp, hidden = PLACES[places]
  return dict(
    norm=before,
    norm_after=kind if after else None,
    norm_after_mlp=kind if after_mlp else None,
    norm_mlp=before if hidden else None,
  )


class RMSNorm(nn.Module):
  """Divides by the root of the mean square, and scales.

  Attributes:
    epsilon: added to the mean square.
    plus_one: the parameter is added to 1, and starts at 0.
    dtype: of the result.
    scaled: whether there is the parameter.
  """

  epsilon: float
  plus_one: bool = False
  dtype: Any = jnp.float32
  scaled: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [... D] to [... D]."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(square + self.epsilon)
    if not self.scaled:
      return x.astype(self.dtype)
    start = nn.initializers.zeros if self.plus_one else nn.initializers.ones
    scale = self.param(
      "scale", rules.with_axes(start, ("norm",)), (x.shape[-1],)
    )
    scale = scale + 1.0 if self.plus_one else scale
    return (x * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(self.dtype)
