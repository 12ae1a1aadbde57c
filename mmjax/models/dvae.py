"""DALL-E's dVAE: an image as a grid of ids of 8,192 tokens, and back.

"Zero-shot text-to-image generation", Ramesh et al. 2021, section 2.1 and
appendix A: an encoder to logits [B Y/8 X/8 V] and a decoder from tokens to the
statistics of a logit-Laplace distribution of each pixel's channels.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers.residual_conv import INIT, ReluBlock, conv, upsample
from mmjax.parallel import rules

VARIANTS = {"dall-e": dict(width=256, blocks=2, first=128, vocab_size=8192)}
PARTS = ("both", "encoder", "decoder")
MULTIPLES = (1, 2, 4, 8)  # of the width, group after group
EPSILON = 0.1  # pixels keep away from 0 and 1, where the logit is infinite

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(width=16, blocks=1, first=8, vocab_size=24)
TINY_INPUTS = dict(image=((16, 8, 3), "float32"))


def map_pixels(image: jax.Array) -> jax.Array:
  """Brings pixels from [0, 1] to [0.1, 0.9], where the encoder reads them."""
  return (1 - 2 * EPSILON) * image + EPSILON


def unmap_pixels(x: jax.Array) -> jax.Array:
  """Brings sigmoid(mu) back to pixels in [0, 1]; what is outside is cut."""
  return jnp.clip((x - EPSILON) / (1 - 2 * EPSILON), 0.0, 1.0)


def pixels(statistics: jax.Array) -> jax.Array:
  """Returns the image [B Y X C] in [0, 1] of statistics [B Y X 2C]."""
  mu, _ = jnp.split(statistics, 2, axis=-1)
  return unmap_pixels(jax.nn.sigmoid(mu))


def gumbel_softmax(
  logits: jax.Array, temperature: Any = 1.0, rng: jax.Array | None = None
) -> jax.Array:
  """Draws a relaxed one-hot vector, softmax((logits + noise) / temperature).

  "Categorical reparameterization with Gumbel-softmax", Jang et al. 2017: its
  argmax is a draw of softmax(logits), and at a low temperature the vector is
  nearly one-hot.

  Args:
    logits: [... V].
    temperature: above 0; a number or a traced scalar, to be lowered with time.
    rng: key of the noise; None is no noise.

  Returns:
    [... V] float32, of sum 1.
  """
  logits = logits.astype(jnp.float32)
  if rng is not None:
    logits = logits + jax.random.gumbel(rng, logits.shape)
  return jax.nn.softmax(logits / temperature, axis=-1)


class Encoder(nn.Module):
  """Image [B Y X C] to logits [B Y/8 X/8 V]."""

  width: int
  blocks: int
  vocab_size: int
  gain: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = conv(
      self.width, 7, ("channels", "embed"), dtype=self.dtype, name="input"
    )(x)
    for i, multiple in enumerate(MULTIPLES):
      for j in range(self.blocks):
        x = ReluBlock(
          multiple * self.width,
          (3, 3, 3, 1),
          self.gain,
          self.dtype,
          name=f"group_{i + 1}_block_{j + 1}",
        )(x)
      if i < len(MULTIPLES) - 1:
        x = nn.max_pool(x, (2, 2), (2, 2))
    # As in the original, ids come of float32 whatever the blocks compute in.
    x = jax.nn.relu(x).astype(jnp.float32)
    return conv(self.vocab_size, 1, ("embed", "vocab"), name="output")(x)


class Codes(nn.Module):
  """The vectors of tokens: ids [B Y X], or weights [B Y X V], to [B Y X C].

  An id of V or more gives NaN.
  """

  vocab_size: int
  width: int

  @nn.compact
  def __call__(self, codes: jax.Array) -> jax.Array:
    table = self.param(
      "kernel",
      rules.with_axes(INIT, ("vocab", "embed")),
      (self.vocab_size, self.width),
    )
    bias = self.param(
      "bias", rules.with_axes(nn.initializers.zeros, ("norm",)), (self.width,)
    )
    if jnp.issubdtype(codes.dtype, jnp.integer):
      # As in layers/embed.py: gather the table rather than move the result.
      table = rules.constrain(table, "vocab", None)
      x = jnp.take(table, codes, axis=0, mode="fill")
    else:
      x = jnp.einsum("byxv,vc->byxc", codes.astype(jnp.float32), table)
    return x + bias[None, None, None]


class Decoder(nn.Module):
  """Tokens [B Y X] or weights [B Y X V] to statistics [B 8Y 8X 2C]."""

  width: int
  blocks: int
  first: int
  vocab_size: int
  channels: int
  gain: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, codes: jax.Array) -> jax.Array:
    x = Codes(self.vocab_size, self.first, name="input")(codes)
    x = rules.constrain(x.astype(self.dtype), "batch", None, None, "embed")
    for i, multiple in enumerate(reversed(MULTIPLES)):
      for j in range(self.blocks):
        x = ReluBlock(
          multiple * self.width,
          (1, 3, 3, 3),
          self.gain,
          self.dtype,
          name=f"group_{i + 1}_block_{j + 1}",
        )(x)
      if i < len(MULTIPLES) - 1:
        x = upsample(x)
    x = conv(
      2 * self.channels,
      1,
      ("embed", "channels"),
      dtype=self.dtype,
      name="output",
    )(jax.nn.relu(x))
    return x.astype(jnp.float32)


class DVAE(nn.Module):
  """Image tokenizer; see `build` for the attributes."""

  width: int
  blocks: int
  first: int
  vocab_size: int
  channels: int = 3
  gain_layers: int | None = None
  part: str = "both"
  dtype: Any = jnp.float32

  def setup(self) -> None:
    layers = self.gain_layers or len(MULTIPLES) * self.blocks
    sizes: dict[str, Any] = dict(
      width=self.width,
      blocks=self.blocks,
      vocab_size=self.vocab_size,
      gain=layers**-2,
      dtype=self.dtype,
    )
    if self.part != "decoder":
      self.encoder = Encoder(**sizes)
    if self.part != "encoder":
      self.decoder = Decoder(first=self.first, channels=self.channels, **sizes)

  def __call__(
    self,
    image: jax.Array | None = None,
    codes: jax.Array | None = None,
    *,
    temperature: Any = 1.0,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Encodes images to relaxed codes and decodes those; or decodes codes.

    Args:
      image: [B Y X C], see `encode`.
      codes: [B Y X] or [B Y X V], see `decode`; in place of an image.
      temperature: of the relaxed codes; see `gumbel_softmax`.
      train: draw the codes with the rng "dropout"; else their softmax is
        without noise.

    Returns:
      Statistics [B Y X 2C] of the reconstruction, mu before ln b, and
      {"logits": [B Y/8 X/8 V], "ids": int32 [B Y/8 X/8], "codes": relaxed}.
      Without a decoder: the logits, and {"ids"}. Of codes: {}.

    Raises:
      InputError: not one of image and codes, or the part is missing.
    """
    if image is None and codes is not None:
      return self.decode(codes), {}
    if image is None or codes is not None:
      raise errors.InputError("models.dvae: give one of image and codes.")
    logits = self.encode(image)
    ids = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if self.part == "encoder":
      return logits, {"ids": ids}
    rng = self.make_rng("dropout") if train else None
    soft = gumbel_softmax(logits, temperature, rng)
    soft = rules.constrain(soft, "batch", None, None, "vocab")
    return self.decode(soft), {"logits": logits, "ids": ids, "codes": soft}

  def encode(self, image: jax.Array) -> jax.Array:
    """Returns logits float32 [B Y/8 X/8 V].

    Args:
      image: [B Y X C], float as `map_pixels` gives it, or uint8, which is
        brought there. Pixels that fill no square of 8 are not read.

    Raises:
      InputError: another dtype, an image of less than 8 x 8 pixels, or there
        is no encoder.
    """
    self._has("encoder")
    return self.encoder(_mapped(image).astype(self.dtype))

  def codes(self, image: jax.Array) -> jax.Array:
    """Returns the likeliest ids, int32 [B Y/8 X/8], of an image."""
    return jnp.argmax(self.encode(image), axis=-1).astype(jnp.int32)

  def decode(self, codes: jax.Array) -> jax.Array:
    """Returns statistics float32 [B 8Y 8X 2C] of the image's distribution.

    `pixels` makes an image of them.

    Args:
      codes: ids [B Y X], or (relaxed) one-hot vectors [B Y X V].

    Raises:
      InputError: there is no decoder.
    """
    self._has("decoder")
    return self.decoder(codes)

  def _has(self, part: str) -> None:
    if self.part not in ("both", part):
      raise errors.InputError(
        f"models.dvae part = {self.part!r}: there is no {part}; build it with "
        f"part = 'both' or {part!r}."
      )


def _mapped(image: jax.Array) -> jax.Array:
  if min(image.shape[1:3]) < 2 ** (len(MULTIPLES) - 1):
    raise errors.InputError(
      f"models.dvae image of {image.shape[1]} x {image.shape[2]} pixels: "
      "a token is of 8 x 8; give a larger image."
    )
  if jnp.issubdtype(image.dtype, jnp.floating):
    image = image.astype(jnp.float32)
  elif image.dtype == jnp.uint8:
    image = map_pixels(image.astype(jnp.float32) / 255.0)
  else:
    raise errors.InputError(
      f"image is {image.dtype}: give uint8, or floats of map_pixels."
    )
  return rules.constrain(image, "batch", None, None, None)


def build(
  variant: str | None = None,
  *,
  width: int | None = None,
  blocks: int | None = None,
  first: int | None = None,
  vocab_size: int | None = None,
  channels: int = 3,
  gain_layers: int | None = None,
  part: str = "both",
  dtype: str = "float32",
) -> DVAE:
  """Builds a dVAE.

  Args:
    variant: of `VARIANTS`, or None. What is given beside it goes before it.
    width: channels of the first of four groups, a multiple of 4; 8 times as
      many in the last.
    blocks: of each group.
    first: width of the decoder's vectors of tokens.
    vocab_size: V.
    channels: C of the image.
    gain_layers: n of the gain 1/n^2 of each block; None is their number.
    part: "both", "encoder" or "decoder".
    dtype: of the computation; parameters are float32.

  Raises:
    InputError: an unknown name, or a size that is not given or not whole.
  """
  if variant is not None and variant not in VARIANTS:
    raise errors.unknown("models.dvae variant", variant, VARIANTS)
  if part not in PARTS:
    raise errors.unknown("models.dvae part", part, PARTS)
  given = dict(width=width, blocks=blocks, first=first, vocab_size=vocab_size)
  sizes: dict[str, Any] = dict(VARIANTS[variant] if variant else {})
  sizes.update({k: v for k, v in given.items() if v is not None})
  if part == "encoder":
    sizes.setdefault("first", 0)
  missing = [name for name in given if name not in sizes]
  if missing:
    raise errors.InputError(
      f"models.dvae: {', '.join(missing)} not given; give them, or the variant "
      "'dall-e'."
    )
  if sizes["width"] % 4:
    raise errors.InputError(
      f"models.dvae width = {sizes['width']}: no multiple of 4, into which the "
      "blocks cut it."
    )
  return DVAE(
    **sizes,
    channels=channels,
    gain_layers=gain_layers,
    part=part,
    dtype=jnp.dtype(dtype),
  )
