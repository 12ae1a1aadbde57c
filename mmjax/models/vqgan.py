"""VQGAN: an image as a grid of ids of a learned codebook, and back.

"Taming transformers for high-resolution image synthesis", Esser et al. 2021:
an encoder to vectors [B Y/16 X/16 Z], of which each becomes the nearest of the
codebook, and a decoder. By an option the vector is drawn by logits instead
(GumbelVQ of taming-transformers). The discriminator is no part of it.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers.codebook import Codebook, GumbelCodebook
from mmjax.layers.residual_conv import (
  AttentionBlock,
  NormBlock,
  conv,
  group_norm,
  upsample,
)
from mmjax.parallel import rules

_F16: dict[str, Any] = dict(
  width=128, multiples=(1, 1, 2, 2, 4), blocks=2, attention=(4,), latent=256
)
VARIANTS = {
  "f16-1024": dict(_F16, codes=1024, code_width=256),
  "f16-16384": dict(_F16, codes=16384, code_width=256),
  "gumbel-f8-8192": dict(
    _F16,
    multiples=(1, 1, 2, 4),
    attention=(3,),
    codes=8192,
    code_width=256,
    quantiser="gumbel",
  ),
}
QUANTISERS = {"nearest": Codebook, "gumbel": GumbelCodebook}

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(
  width=8,
  multiples=(1, 2),
  blocks=1,
  attention=(),
  latent=8,
  codes=12,
  code_width=4,
  groups=2,
)
TINY_INPUTS = dict(image=((4, 4, 3), "float32"))


class _Half(nn.Module):
  """What encoder and decoder share: their attributes and the middle."""

  width: int
  multiples: Sequence[int]
  blocks: int
  attention: Sequence[int]
  channels: int
  groups: int
  dropout: float
  dtype: Any

  def _block(self, x: jax.Array, width: int, name: str, still: bool):
    return NormBlock(width, self.groups, self.dropout, self.dtype, name=name)(
      x, still
    )

  def _attend(self, x: jax.Array, name: str) -> jax.Array:
    return AttentionBlock(self.groups, self.dtype, name=name)(x)

  def _middle(self, x: jax.Array, still: bool) -> jax.Array:
    width = x.shape[-1]
    x = self._block(x, width, "mid_block_1", still)
    x = self._attend(x, "mid_attn_1")
    return self._block(x, width, "mid_block_2", still)

  def _out(self, x: jax.Array) -> jax.Array:
    x = group_norm(self.groups, dtype=self.dtype, name="norm_out")(x)
    return self._conv(
      jax.nn.swish(x), self.channels, "conv_out", ("embed", "channels")
    )

  def _conv(self, x: jax.Array, channels: int, name: str, axes=None, **kw: Any):
    axes = axes or ("embed", "embed")
    return conv(channels, 3, axes, dtype=self.dtype, name=name, **kw)(x)


class Encoder(_Half):
  """Image [B Y X C] to [B Y/f X/f Z], f = 2^(levels - 1)."""

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
    x = self._conv(x, self.width, "conv_in", ("channels", "embed"))
    for i, multiple in enumerate(self.multiples):
      width = self.width * multiple
      for j in range(self.blocks):
        x = self._block(x, width, f"down_{i}_block_{j}", deterministic)
        if i in self.attention:
          x = self._attend(x, f"down_{i}_attn_{j}")
      if i < len(self.multiples) - 1:
        # Zeros below and to the right only, unlike a padding of 1.
        below = ((0, 1), (0, 1))
        x = self._conv(x, width, f"down_{i}_down", stride=2, padding=below)
    return self._out(self._middle(x, deterministic))


class Decoder(_Half):
  """[B Y X Z] to an image [B f*Y f*X C]."""

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
    last = self.width * self.multiples[-1]
    x = self._conv(x, last, "conv_in", ("channels", "embed"))
    x = self._middle(x, deterministic)
    for i, multiple in reversed(list(enumerate(self.multiples))):
      width = self.width * multiple
      for j in range(self.blocks + 1):
        x = self._block(x, width, f"up_{i}_block_{j}", deterministic)
        if i in self.attention:
          x = self._attend(x, f"up_{i}_attn_{j}")
      if i:
        x = self._conv(upsample(x), width, f"up_{i}_up")
    return self._out(x)


class VQGAN(nn.Module):
  """Image tokenizer; see `build` for the attributes."""

  width: int
  multiples: Sequence[int]
  blocks: int
  attention: Sequence[int]
  latent: int
  codes: int
  code_width: int
  quantiser: str = "nearest"
  channels: int = 3
  out_channels: int = 3
  groups: int = 32
  dropout: float = 0.0
  dtype: Any = jnp.float32

  def setup(self) -> None:
    half: dict[str, Any] = dict(
      width=self.width,
      multiples=self.multiples,
      blocks=self.blocks,
      attention=self.attention,
      groups=self.groups,
      dropout=self.dropout,
      dtype=self.dtype,
    )
    self.encoder = Encoder(channels=self.latent, **half)
    self.decoder = Decoder(channels=self.out_channels, **half)
    book = QUANTISERS[self.quantiser]
    self.codebook = book(self.codes, self.code_width)
    # Not split: the latent is "channels" here and in the convolutions beside.
    self.to_code = conv(self.code_width, 1, ("channels", "embed"))
    self.from_code = conv(
      self.latent, 1, ("embed", "channels"), dtype=self.dtype
    )

  def __call__(
    self,
    image: jax.Array | None = None,
    codes: jax.Array | None = None,
    *,
    temperature: Any = 1.0,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Encodes, quantises and decodes images; or decodes codes.

    The paper's loss of the codebook is codebook + 0.25 * commitment; taming-
    transformers weights the two the other way round.

    Args:
      image: [B Y X C], see `encode`.
      codes: ids [B Y X] or vectors [B Y X D], see `decode`; for an image.
      temperature: of the quantiser "gumbel", to be lowered with time.
      train: dropout on, and "gumbel" draws the codes; needs the rng "dropout"
        if the rate is above 0 or codes are drawn.

    Returns:
      The reconstruction [B Y X C] in about [-1, 1], and {"ids", "quantised":
      see `encode`; and the scalar losses of `layers.codebook`: "codebook" and
      "commitment", or "kl" of "gumbel"}. Of codes: {}.

    Raises:
      InputError: not one of image and codes.
    """
    if image is None and codes is not None:
      return self.decode(codes, train=train), {}
    if image is None or codes is not None:
      raise errors.InputError("models.vqgan: give one of image and codes.")
    z = self._vectors(image, train)
    given = {}
    if self.quantiser == "gumbel":
      rng = self.make_rng("dropout") if train else None
      given = dict(temperature=temperature, rng=rng)
    ids, straight, losses = self.codebook.quantise(z, **given)
    found = {"ids": ids, "quantised": straight, **losses}
    return self.decode(straight, train=train), found

  def encode(self, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns ids int32 [B Y/f X/f] and their vectors [B Y/f X/f D].

    f is 2^(levels - 1): 16 in f16.

    Args:
      image: [B Y X C], float in [-1, 1], or uint8, which is brought there.

    Raises:
      InputError: another dtype, or less than f x f pixels.
    """
    ids = self.codebook.ids(self._vectors(image, False))
    return ids, self.codebook(ids)

  def decode(self, codes: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns images float32 [B f*Y f*X C], in about [-1, 1].

    Args:
      codes: ids [B Y X], or the codebook's vectors [B Y X D].
      train: see `__call__`.
    """
    x = codes
    if jnp.issubdtype(x.dtype, jnp.integer):
      x = self.codebook(x)
    x = self.from_code(x.astype(self.dtype))
    return self.decoder(x, not train).astype(jnp.float32)

  def _vectors(self, image: jax.Array, train: bool) -> jax.Array:
    """Returns what is to be quantised, [B Y/f X/f D] float32."""
    factor = 2 ** (len(self.multiples) - 1)
    if min(image.shape[1:3]) < factor:
      raise errors.InputError(
        f"models.vqgan image of {image.shape[1]} x {image.shape[2]} pixels: a "
        f"token is of {factor} x {factor}; give a larger image."
      )
    image = rules.constrain(_normalised(image), "batch", None, None, None)
    x = self.encoder(image.astype(self.dtype), not train)
    return self.to_code(x.astype(jnp.float32))


def _normalised(image: jax.Array) -> jax.Array:
  if jnp.issubdtype(image.dtype, jnp.floating):
    return image
  if image.dtype == jnp.uint8:
    return image.astype(jnp.float32) / 127.5 - 1.0
  raise errors.InputError(
    f"image is {image.dtype}: give uint8, or floats in [-1, 1]."
  )


def build(
  variant: str | None = None,
  *,
  width: int | None = None,
  multiples: Sequence[int] | None = None,
  blocks: int | None = None,
  attention: Sequence[int] | None = None,
  latent: int | None = None,
  codes: int | None = None,
  code_width: int | None = None,
  quantiser: str | None = None,
  channels: int = 3,
  out_channels: int | None = None,
  groups: int = 32,
  dropout: float = 0.0,
  dtype: str = "float32",
) -> VQGAN:
  """Builds a VQGAN.

  Args:
    variant: of `VARIANTS`, or None. What is given beside it goes before it.
    width: channels after the first convolution.
    multiples: of the width, one a level; each level halves rows and columns.
    blocks: of each level of the encoder; the decoder has one more.
    attention: levels, counted from 0, whose blocks are followed by attention.
    latent: Z, channels between encoder and codebook.
    codes: V, length of the codebook.
    code_width: D of its vectors.
    quantiser: "nearest" or "gumbel", see `layers.codebook`; None is the first.
    channels: C of the image.
    out_channels: C of what is decoded; None is the same.
    groups: of the norms.
    dropout: rate within the blocks.
    dtype: of the computation; parameters and distances are float32.

  Raises:
    InputError: an unknown name, a size that is not given, groups that divide
      no level, or attention at a level that is not there.
  """
  if variant is not None and variant not in VARIANTS:
    raise errors.unknown("models.vqgan variant", variant, VARIANTS)
  given = dict(
    width=width,
    multiples=multiples,
    blocks=blocks,
    attention=attention,
    latent=latent,
    codes=codes,
    code_width=code_width,
    quantiser=quantiser,
  )
  sizes: dict[str, Any] = {"quantiser": "nearest"}
  sizes.update(VARIANTS[variant] if variant else {})
  sizes.update({k: v for k, v in given.items() if v is not None})
  missing = [name for name in given if name not in sizes]
  if missing:
    raise errors.InputError(
      f"models.vqgan: {', '.join(missing)} not given; give them, or a variant "
      f"of {', '.join(VARIANTS)}."
    )
  if sizes["quantiser"] not in QUANTISERS:
    raise errors.unknown(
      "models.vqgan quantiser", sizes["quantiser"], QUANTISERS
    )
  sizes["multiples"] = tuple(sizes["multiples"])
  sizes["attention"] = tuple(sizes["attention"])
  for multiple in (1, *sizes["multiples"]):
    if sizes["width"] * multiple % groups:
      raise errors.InputError(
        f"models.vqgan groups = {groups}: no divisor of {sizes['width']} * "
        f"{multiple} channels; change groups, width or multiples."
      )
  levels = range(len(sizes["multiples"]))
  if not set(sizes["attention"]) <= set(levels):
    raise errors.InputError(
      f"models.vqgan attention = {sizes['attention']}: there are levels 0 to "
      f"{len(levels) - 1}."
    )
  return VQGAN(
    **sizes,
    channels=channels,
    out_channels=channels if out_channels is None else out_channels,
    groups=groups,
    dropout=dropout,
    dtype=jnp.dtype(dtype),
  )
