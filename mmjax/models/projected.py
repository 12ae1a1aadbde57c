"""One encoder of a pair, with its projection into the joint space.

What `models.dual_encoder` holds two of, for checkpoints and tasks with one:
"Learning transferable visual models from natural language supervision",
Radford et al. 2021. The embeddings are as long as they come.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmjax import errors
from mmjax.build import build as build_plugin
from mmjax.parallel import rules

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(
  encoder=dict(
    name="text_encoder",
    vocab_size=64,
    width=32,
    depth=2,
    heads=4,
    mlp=64,
    length=8,
  ),
  embed_dim=16,
)
TINY_INPUTS = dict(tokens=((8,), "int32"))


class Projected(nn.Module):
  """An encoder and a dense layer; see `build` for the attributes."""

  encoder: nn.Module
  embed_dim: int
  use_bias: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, *args: Any, train: bool = False, **inputs: Any) -> Any:
    """Embeds what the encoder takes, under the encoder's names.

    Returns:
      What the encoder returns, with [B E] for its features [B D].
    """
    found = self.encoder(*args, train=train, **inputs)
    x, more = found if isinstance(found, tuple) else (found, None)
    x = nn.Dense(
      self.embed_dim,
      use_bias=self.use_bias,
      dtype=self.dtype,
      kernel_init=rules.with_axes(
        nn.initializers.lecun_normal(), ("embed", "joint")
      ),
      bias_init=rules.with_axes(nn.initializers.zeros, ("joint",)),
      name="projection",
    )(x)
    x = rules.constrain(x, "batch", "joint")
    return x if more is None else (x, more)


def build(
  *,
  encoder: Mapping[str, Any],
  embed_dim: int,
  use_bias: bool = False,
  dtype: str = "float32",
) -> Projected:
  """Builds an encoder with a projection.

  Args:
    encoder: name and keywords of the encoder, {"name": "vit", ...}.
    embed_dim: E.
    use_bias: of the projection.
    dtype: of the computation, also of an encoder that does not say its own.

  Raises:
    InputError: an encoder without a name, or that cannot be built.
  """
  if "name" not in encoder:
    raise errors.InputError(
      f"models.projected encoder = {dict(encoder)}: has no name; add the "
      "model's, for example name='vit'."
    )
  return Projected(
    encoder=build_plugin("models", **{"dtype": dtype, **encoder}),
    embed_dim=embed_dim,
    use_bias=use_bias,
    dtype=jnp.dtype(dtype),
  )
