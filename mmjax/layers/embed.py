"""From images and token ids to tokens of the model's width."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers.norm import layer_norm
from mmjax.parallel import rules

# The logits of rows of a table that are no token.
_NEVER = -1e30


def normalised(image: jax.Array) -> jax.Array:
  """Brings uint8 [0, 255] to [-1, 1]; floats are there already.

  Raises:
    InputError: any other dtype.
  """
  if jnp.issubdtype(image.dtype, jnp.floating):
    return image
  if image.dtype == jnp.uint8:
    return image.astype(jnp.float32) / 127.5 - 1.0
  raise errors.InputError(
    f"image is {image.dtype}: give uint8, or floats in [-1, 1]."
  )


def add_rows(x: jax.Array, table: jax.Array) -> jax.Array:
  """Adds rows [T D], of positions say, to tokens [B T D].

  The gradient of the rows is a product with ones, not a sum over the batch:
  for that XLA lays out the tokens of a whole model for a GPU with the batch
  last, and transposes them in every block; on a CPU the sum is slow.
  """
  return _add_rows(x, table.astype(x.dtype))


@jax.custom_jvp
def _add_rows(x, table):
  return x + table[None]


@_add_rows.defjvp
def _add_rows_jvp(primals, tangents):
  x, _ = primals
  d_x, d_table = tangents
  ones = jnp.ones((x.shape[0],), d_table.dtype)
  # Of 16 bits products are exact; asked to be, XLA would make it a sum again.
  precision = "highest" if d_table.dtype == jnp.float32 else None
  spread = jnp.einsum("B,TD->BTD", ones, d_table, precision=precision)
  return _add_rows(*primals), d_x + spread


class Patches(nn.Module):
  """Cuts an image into squares and projects each ("ViT", Dosovitskiy 2021).

  A convolution whose stride is its size, done as one matrix product. The
  kernel keeps the convolution's shape [patch patch C D].

  Attributes:
    width: D.
    patch: side of a square in pixels.
    dtype: of the computation.
    use_bias: whether there is a bias.
    stride: from a square to the next, in pixels down and across, where they
      overlap ("AST", Gong et al. 2021): what fills no square is not read, as
      in a convolution. None is the patch, which must then divide the image.
  """

  width: int
  patch: int
  dtype: Any = jnp.float32
  use_bias: bool = True
  stride: tuple[int, int] | None = None

  @nn.compact
  def __call__(self, image: jax.Array) -> jax.Array:
    """Maps an image [B Y X C] to patches [B Y/patch X/patch D].

    With a stride they are [B (Y-patch)/stride+1 (X-patch)/stride+1 D].

    Raises:
      InputError: the patch does not divide the image, or is larger.
    """
    B, Y, X, C = image.shape
    p = self.patch
    if self.stride is None:
      _check_divides(p, Y, X)
    elif min(Y, X) < p:
      raise errors.InputError(
        f"patch = {p} is larger than the image of {Y} x {X} pixels; give a "
        "larger image, or change the patch."
      )
    kernel = self.param(
      "kernel",
      rules.with_axes(_patch_init, ("kernel", "kernel", "channels", "embed")),
      (p, p, C, self.width),
    )
    kernel = kernel.astype(self.dtype)
    x = image.astype(self.dtype)
    if self.stride is None:
      x = x.reshape(B, Y // p, p, X // p, p, C).transpose(0, 1, 3, 2, 4, 5)
      x = x.reshape(B, Y // p, X // p, p * p * C)
      x = rules.constrain(x, "batch", None, None, None)
      x = x @ kernel.reshape(p * p * C, self.width)
    else:
      x = jax.lax.conv_general_dilated(
        x,
        kernel,
        self.stride,
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
      )
    if self.use_bias:
      bias = self.param(
        "bias",
        rules.with_axes(nn.initializers.zeros, ("norm",)),
        (self.width,),
      )
      x = x + bias.astype(self.dtype).reshape(1, 1, 1, -1)
    return rules.constrain(x, "batch", None, None, "embed")


def _patch_init(key, shape, dtype=jnp.float32):
  # Fan-in of the matrix that the kernel is.
  flat = (shape[0] * shape[1] * shape[2], shape[3])
  return nn.initializers.lecun_normal()(key, flat, dtype).reshape(shape)


class ConvStem(nn.Module):
  """Stride-2 3x3 convolutions, then 1x1 to the width, in place of patches.

  "Early convolutions help transformers see better", Xiao et al. 2021, with
  LayerNorm and GELU for BatchNorm and ReLU: no statistics of the batch.

  Attributes:
    width: D.
    patch: total stride in pixels, a power of 2; log2(patch) convolutions
      whose channels double up to `width`.
    dtype: of the computation.
  """

  width: int
  patch: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, image: jax.Array) -> jax.Array:
    """Maps an image [B Y X C] to tokens [B Y/patch X/patch D].

    Raises:
      InputError: patch is no power of 2, or does not divide the image.
    """
    stages = self.patch.bit_length() - 1
    if self.patch != 2**stages:
      raise errors.InputError(
        f"patch = {self.patch}: stem='conv' halves the image again and again; "
        "take a power of 2, or stem='patch'."
      )
    _check_divides(self.patch, *image.shape[1:3])
    x = image.astype(self.dtype)
    for i in range(stages):
      channels = max(8, self.width // 2 ** (stages - 1 - i))
      x = self._conv(x, f"conv{i}", channels, size=3, stride=2)
      x = layer_norm(dtype=self.dtype, name=f"norm{i}")(x)
      x = jax.nn.gelu(x)
    x = self._conv(x, "project", self.width, size=1, stride=1)
    return rules.constrain(x, "batch", None, None, "embed")

  def _conv(
    self, x: jax.Array, name: str, channels: int, size: int, stride: int
  ) -> jax.Array:
    x = nn.Conv(
      channels,
      (size, size),
      strides=(stride, stride),
      padding=size // 2,
      dtype=self.dtype,
      kernel_init=rules.with_axes(
        nn.initializers.lecun_normal(),
        ("kernel", "kernel", "channels", "embed"),
      ),
      bias_init=rules.with_axes(nn.initializers.zeros, ("norm",)),
      name=name,
    )(x)
    return rules.constrain(x, "batch", None, None, None)


def _check_divides(patch: int, rows: int, columns: int) -> None:
  if rows % patch or columns % patch:
    raise errors.InputError(
      f"patch = {patch} does not divide the image of {rows} x {columns} "
      "pixels; change the patch, or resize the image to multiples of it."
    )


class TokenEmbed(nn.Module):
  """A table of embeddings, looked up by token id.

  Attributes:
    vocab_size: V; an id outside [0, V) gives NaN, which the loss will show.
    width: D.
    scale: standard deviation at the start.
    dtype: of the result.
  """

  vocab_size: int
  width: int
  scale: float = 0.02
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Maps ids int32 [B T] to [B T D]."""
    table = self.param(
      "table",
      rules.with_axes(nn.initializers.normal(self.scale), ("vocab", "embed")),
      (self.vocab_size, self.width),
    )
    # The batch already lives on fsdp, so the lookup wants whole rows: gather
    # the table once rather than move the result around.
    table = rules.constrain(table.astype(self.dtype), "vocab", None)
    x = jnp.take(table, tokens, axis=0, mode="fill")
    return rules.constrain(x, "batch", "length", "embed")

  def attend(self, x: jax.Array) -> jax.Array:
    """Maps [B T D] to logits [B T V] by the same table, once it is declared."""
    table = nn.meta.unbox(self.get_variable("params", "table"))
    table = rules.constrain(table.astype(self.dtype), "vocab", None)
    x = jnp.einsum("btd,vd->btv", x.astype(self.dtype), table)
    return rules.constrain(x, "batch", "length", "vocab")


def word_logits(
  x: jax.Array,
  table: jax.Array,
  tied: bool,
  tokens: int,
  cap: float | None = None,
) -> jax.Array:
  """Maps what a language model's head reads, [B T D], to logits.

  Args:
    x: tokens.
    table: [V D] where it is `tied`, that of the embeddings; else [D V].
    tied: see there.
    tokens: rows of the table that are tokens, at most V. The logits of the
      others are -1e30.
    cap: logits become cap * tanh(logits / cap); None leaves them.

  Returns:
    float32 [B T V].
  """
  form = "btd,vd->btv" if tied else "btd,dv->btv"
  table = table.astype(x.dtype)
  x = jnp.einsum(form, x, table, preferred_element_type=jnp.float32)
  if cap is not None:
    x = cap * jnp.tanh(x / cap)
  if x.shape[-1] > tokens:
    known = jnp.arange(x.shape[-1]) < tokens
    x = jnp.where(known[None, None], x, _NEVER)
  return rules.constrain(x, "batch", "length", "vocab")
