"""One encoder of a pair, with its projection into the joint space.

What `models.dual_encoder` holds two of, for checkpoints and tasks with one:
"Learning transferable visual models from natural language supervision",
Radford et al. 2021. The embeddings are as long as they come.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.build import build as build_plugin
from mmjax.layers.mlp import MLP, activation
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
  """An encoder and what projects its features; see `build` for the attributes."""

  encoder: nn.Module
  embed_dim: int
  use_bias: bool = False
  act: str | None = None
  hidden: int | None = None
  dtype: Any = jnp.float32

  @property
  def width(self) -> int:
    """Returns the width of the features."""
    return self.embed_dim

  @nn.compact
  def __call__(self, *args: Any, train: bool = False, **inputs: Any) -> Any:
    """Embeds what the encoder takes, under the encoder's names.

    Returns:
      What the encoder returns, with [B E] for its features [B D].
    """
    found = self.encoder(*args, train=train, **inputs)
    x, more = found if isinstance(found, tuple) else (found, None)
    x = rules.constrain(self._project(x), "batch", "joint")
    return x if more is None else (x, more)

  def _project(self, x: jax.Array) -> jax.Array:
    if self.act is not None:
      return MLP(
        self.hidden or self.embed_dim,
        act=self.act,
        use_bias=self.use_bias,
        out_width=self.embed_dim,
        dtype=self.dtype,
        name="projection",
      )(x[:, None])[:, 0]
    return nn.Dense(
      self.embed_dim,
      use_bias=self.use_bias,
      dtype=self.dtype,
      kernel_init=rules.with_axes(
        nn.initializers.lecun_normal(), ("embed", "joint")
      ),
      bias_init=rules.with_axes(nn.initializers.zeros, ("joint",)),
      name="projection",
    )(x)


def build(
  *,
  encoder: Mapping[str, Any],
  embed_dim: int,
  use_bias: bool = False,
  act: str | None = None,
  hidden: int | None = None,
  dtype: str = "float32",
) -> Projected:
  """Builds an encoder with a projection.

  Args:
    encoder: name and keywords of the encoder, {"name": "vit", ...}.
    embed_dim: E.
    use_bias: of the projection.
    act: of a projection of two layers, as in CLAP; None is one.
    hidden: width between the two layers; None is E.
    dtype: of the computation, also of an encoder that does not say its own.

  Raises:
    InputError: an encoder without a name, or that cannot be built; an unknown
      activation.
  """
  if act is not None:
    activation(act)
  if "name" not in encoder:
    raise errors.InputError(
      f"models.projected encoder = {dict(encoder)}: has no name; add the "
      "model's, for example name='vit'."
    )
  return Projected(
    encoder=build_plugin("models", **{"dtype": dtype, **encoder}),
    embed_dim=embed_dim,
    use_bias=use_bias,
    act=act,
    hidden=hidden,
    dtype=jnp.dtype(dtype),
  )
