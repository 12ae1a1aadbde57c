"""MAE: most patches are hidden from a ViT, and a small one paints them in.

"Masked autoencoders are scalable vision learners", He et al. 2022. The encoder
is a ViT over the visible patches; the decoder is 8 blocks of width 512 in the
paper. Positions are sine-cosine there and not trained; here they are
parameters like others, so that checkpoints keep theirs.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.build import build as build_plugin
from mmjax.layers import interpolate as stretch
from mmjax.layers import subset
from mmjax.layers.block import Spec
from mmjax.layers.norm import layer_norm
from mmjax.layers.transformer import SIZES, Stack
from mmjax.parallel import rules

VARIANTS = {name: SIZES[name] for name in ("B", "L", "H")}
# Of all of them.
DECODER = dict(width=512, depth=8, heads=16, mlp=2048)

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(
  encoder=dict(width=32, depth=2, heads=4, mlp=64, patch=4),
  decoder=dict(width=16, depth=2, heads=2, mlp=32),
)
TINY_INPUTS = dict(image=((16, 16, 3), "float32"), noise=((16,), "float32"))


class Decoder(nn.Module):
  """Paints patches from the tokens of the visible ones.

  Attributes:
    spec, depth: of the blocks.
    width: of their tokens.
    outputs: values of a patch.
    interpolate: see `models.vit`.
    dtype, scan, remat: see `models.vit`.
  """

  spec: Spec
  depth: int
  width: int
  outputs: int
  interpolate: str | None = None
  dtype: Any = jnp.float32
  scan: bool | None = None
  remat: str = "none"

  @nn.compact
  def __call__(
    self, x: jax.Array, places: jax.Array, train: bool = False
  ) -> jax.Array:
    """Maps tokens [B 1+K D] to patches [B P outputs].

    Args:
      x: the class token, then the visible patches, shuffled.
      places: int32 [B P], where each patch stands in the shuffled order.
      train: dropout on.
    """
    B, P = places.shape
    x = self._dense(x, self.width, "embed")
    hidden = self.param(
      "mask", rules.with_axes(_normal, ("positions", "embed")), (1, self.width)
    )
    hidden = jnp.broadcast_to(
      hidden.astype(x.dtype)[None], (B, P + 1 - x.shape[1], self.width)
    )
    first, x = x[:, :1], jnp.concatenate([x[:, 1:], hidden], axis=1)
    x = jnp.concatenate([first, subset.take(x, places)], axis=1)
    x = x + self._positions(P).astype(x.dtype)[None]
    x = rules.constrain(x, "batch", "length", "embed")
    x = Stack(
      self.spec,
      self.depth,
      dtype=self.dtype,
      scan=self.scan,
      remat=self.remat,
      name="stack",
    )(x, None, not train)
    x = layer_norm(epsilon=self.spec.epsilon, dtype=self.dtype, name="norm")(x)
    return self._dense(x, self.outputs, "predict")[:, 1:]

  def _positions(self, count: int) -> jax.Array:
    """Returns [1+count D], of the class token and the patches."""
    shape = (1 + count, self.width)
    if self.has_variable("params", "positions"):
      given = nn.meta.unbox(self.get_variable("params", "positions")).shape
      if given != shape and self.interpolate is None:
        raise errors.InputError(
          f"models.vit_mae: the decoder has positions of {given[0] - 1} "
          f"patches, the image has {count}; resize it, or take "
          "interpolate = 'bicubic'."
        )
      shape = given
    table = self.param(
      "positions", rules.with_axes(_normal, ("positions", "embed")), shape
    )
    if shape[0] != 1 + count:
      # The reference takes the patches for one line.
      line = stretch.resize(table[None, 1:], 1, count, self.interpolate or "")
      table = jnp.concatenate([table[:1], line[0]])
    return table

  def _dense(self, x: jax.Array, features: int, name: str) -> jax.Array:
    return nn.Dense(
      features,
      dtype=self.dtype,
      kernel_init=rules.with_axes(
        nn.initializers.xavier_uniform(), ("embed", None)
      ),
      bias_init=rules.with_axes(nn.initializers.zeros, ("norm",)),
      name=name,
    )(x)


_normal = nn.initializers.normal(0.02)


class ViTMAE(nn.Module):
  """Masked autoencoder; see `build` for the attributes."""

  encoder: nn.Module
  decoder: nn.Module | None
  patch: int
  mask_ratio: float = 0.75
  normalised_targets: bool = False

  def __call__(
    self,
    image: jax.Array,
    noise: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Encodes some patches of images, and paints all of them.

    Args:
      image: [B Y X C], float, normalised.
      noise: [B P], the patches of least noise are seen; None draws it from the
        rng "mask".
      train: dropout on; needs the rng "dropout" if its rate is above 0.

    Returns:
      Patches [B P patch*patch*C], row by row and channels last, or without a
      decoder the class token [B D]; and {"tokens": [B 1+K D] of the class
      token and what is seen, "mask": [B P], 1 where a patch is hidden}; with a
      decoder also "loss", a scalar, see `loss`.
    """
    B, Y, X, _ = image.shape
    P = (Y // self.patch) * (X // self.patch)
    if noise is None:
      noise = jax.random.uniform(self.make_rng("mask"), (B, P))
    keep = subset.kept(self.mask_ratio, P)
    order, places = subset.shuffled(noise)
    _, out = self.encoder(image, order[:, :keep], train=train)
    found = {
      "tokens": out["tokens"],
      "mask": (places >= keep).astype(jnp.float32),
    }
    if self.decoder is None:
      return out["tokens"][:, 0], found
    painted = self.decoder(out["tokens"], places, train)
    found["loss"] = loss(
      painted,
      patches(image, self.patch),
      found["mask"],
      self.normalised_targets,
    )
    return painted, found


def patches(image: jax.Array, patch: int) -> jax.Array:
  """Cuts an image [B Y X C] to patches [B P patch*patch*C]."""
  B, Y, X, C = image.shape
  rows, columns, p = Y // patch, X // patch, patch
  x = image[:, : rows * p, : columns * p].reshape(B, rows, p, columns, p, C)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, rows * columns, p * p * C)


def loss(
  painted: jax.Array, wanted: jax.Array, mask: jax.Array, normalised: bool
) -> jax.Array:
  """Computes the mean squared error of the hidden patches, a scalar.

  Args:
    painted: [B P E].
    wanted: [B P E].
    mask: [B P], 1 where a patch is hidden.
    normalised: the wanted ones by mean and deviation (of E - 1) of each.
  """
  wanted = wanted.astype(jnp.float32)
  if normalised:
    mean = wanted.mean(-1, keepdims=True)
    variance = wanted.var(-1, keepdims=True, ddof=1)
    wanted = (wanted - mean) / jnp.sqrt(variance + 1e-6)
  error = jnp.square(painted.astype(jnp.float32) - wanted).mean(-1)
  return (error * mask).sum() / mask.sum()


def build(
  variant: str | None = None,
  *,
  encoder: dict[str, Any] | None = None,
  decoder: dict[str, Any] | None = None,
  bare: bool = False,
  channels: int = 3,
  mask_ratio: float = 0.75,
  normalised_targets: bool = False,
  dtype: str = "float32",
) -> ViTMAE:
  """Builds a masked autoencoder.

  Args:
    variant: "B/16": a size of `VARIANTS`, and the patch; or None.
    encoder: keywords of `models.vit`, beside the variant.
    decoder: width, depth, heads, mlp; what is left out is the paper's.
    bare: without a decoder.
    channels: C of the image.
    mask_ratio: part of the patches that is hidden.
    normalised_targets: see `loss`.
    dtype: of the computation; parameters are float32.

  Raises:
    InputError: a name, a size or a ratio that cannot work.
  """
  if variant is not None and variant.partition("/")[0] not in VARIANTS:
    raise errors.unknown("models.vit_mae variant", variant, VARIANTS)
  for name in decoder or {}:
    if name not in DECODER:
      raise errors.unknown("models.vit_mae decoder", name, DECODER)
  if not 0.0 <= mask_ratio < 1.0:
    raise errors.InputError(
      f"models.vit_mae mask_ratio = {mask_ratio}: it must be in [0, 1)."
    )
  vit = build_plugin(
    "models",
    name="vit",
    variant=variant,
    **{"pool": "tok", "dtype": dtype, **(encoder or {})},
  )
  painter = None
  if not bare:
    sizes = {**DECODER, **(decoder or {})}
    spec = Spec(
      sizes["heads"],
      sizes["mlp"],
      act=vit.act,
      epsilon=vit.epsilon,
      biases="qkvo" if vit.qkv_bias else "o",
      dropout=vit.dropout,
    )
    painter = Decoder(
      spec,
      sizes["depth"],
      sizes["width"],
      vit.patch**2 * channels,
      interpolate=vit.interpolate,
      dtype=jnp.dtype(dtype),
      scan=vit.scan,
      remat=vit.remat,
    )
  return ViTMAE(vit, painter, vit.patch, mask_ratio, normalised_targets)
