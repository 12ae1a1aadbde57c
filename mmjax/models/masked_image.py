"""SimMIM: pixels are painted where patches are hidden from a ViT.

"SimMIM: a simple framework for masked image modeling", Xie et al. 2022: a mask
token stands for what is hidden, and one linear layer makes each token a square
of pixels. By its encoder also DeiT's.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.build import build as build_plugin
from mmjax.layers.embed import normalised
from mmjax.parallel import rules

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(encoder=dict(width=32, depth=2, heads=4, mlp=64, patch=4), square=4)
TINY_INPUTS = dict(image=((16, 16, 3), "float32"), hidden=((16,), "bool"))


class MaskedImage(nn.Module):
  """A ViT and what paints pixels; see `build` for the attributes."""

  encoder: nn.Module
  square: int
  channels: int = 3
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    image: jax.Array,
    hidden: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Paints images of which some patches are hidden.

    Args:
      image: [B Y X C], see `models.vit`.
      hidden: int or bool [B P], 1 where a patch is hidden; None is nowhere.
      train: dropout on; needs the rng "dropout" if its rate is above 0.

    Returns:
      The painted image [B rows*square columns*square C], and {"tokens":
      [B T D]}; where patches are hidden and squares are as large as they are,
      also "loss", see `loss`.

    Raises:
      InputError: an image that patches or positions do not fit.
    """
    image = normalised(image)
    _, out = self.encoder(image, None, hidden, train=train)
    p, s, C = self.encoder.patch, self.square, self.channels
    rows, columns = image.shape[1] // p, image.shape[2] // p
    B, T, _ = out["tokens"].shape
    x = nn.Dense(
      s * s * C,
      dtype=self.dtype,
      kernel_init=rules.with_axes(
        nn.initializers.lecun_normal(), ("embed", None)
      ),
      bias_init=rules.with_axes(nn.initializers.zeros, ("norm",)),
      name="paint",
    )(out["tokens"][:, T - rows * columns :])
    # Each channel has the pixels of a square side by side.
    x = x.reshape(B, rows, columns, C, s, s).transpose(0, 1, 4, 2, 5, 3)
    x = x.reshape(B, rows * s, columns * s, C)
    found = {"tokens": out["tokens"]}
    if hidden is not None and s == p:
      cut = image[:, : rows * p, : columns * p]
      found["loss"] = loss(x, cut, hidden.reshape(B, rows, columns), p)
    return rules.constrain(x, "batch", None, None, None), found


def loss(
  painted: jax.Array, wanted: jax.Array, hidden: jax.Array, patch: int
) -> jax.Array:
  """Computes the mean absolute error of the hidden pixels, a scalar.

  Args:
    painted, wanted: [B Y X C].
    hidden: int or bool [B Y/patch X/patch].
    patch: in pixels.
  """
  where = (hidden != 0).astype(jnp.float32)
  where = jnp.repeat(jnp.repeat(where, patch, 1), patch, 2)
  error = jnp.abs(painted.astype(jnp.float32) - wanted.astype(jnp.float32))
  # So that nothing hidden is no division by 0.
  return (error.mean(-1) * where).sum() / (where.sum() + 1e-5)


def build(
  variant: str | None = None,
  *,
  encoder: Mapping[str, Any] | None = None,
  square: int | None = None,
  channels: int = 3,
  dtype: str = "float32",
) -> MaskedImage:
  """Builds a ViT that paints what is hidden from it.

  Args:
    variant: of `models.vit`, or None.
    encoder: keywords of `models.vit`, beside the variant; it has a class token
      and a mask token.
    square: side of what is painted for a patch, in pixels; None is the patch.
    channels: C of the image.
    dtype: of the computation, also of an encoder that does not say its own.

  Raises:
    InputError: as of `models.vit`; a square that is not above 0.
  """
  if square is not None and square < 1:
    raise errors.InputError(
      f"models.masked_image square = {square}: it is a side in pixels, 1 at "
      "least; None is the patch."
    )
  vit = build_plugin(
    "models",
    name="vit",
    variant=variant,
    **{"pool": "tok", "dtype": dtype, **(encoder or {}), "mask_token": True},
  )
  return MaskedImage(
    vit, square or vit.patch, channels=channels, dtype=jnp.dtype(dtype)
  )
