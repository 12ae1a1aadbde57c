"""NaFlex: a ViT over images of any size and aspect, as rows of patches.

"SigLIP 2", Tschannen et al. 2025, after "Patch n' Pack", Dehghani et al. 2023,
and "FlexiViT", Beyer et al. 2023: each image keeps its aspect and has as many
patches as fit; the learned grid of positions is stretched to it. An image of h
x w patches fills the first h*w places of its row of P, row by row; the rest is
padding, which nothing sees.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers import pool as pooling
from mmjax.layers.block import Spec
from mmjax.layers.mlp import activation
from mmjax.layers.norm import layer_norm
from mmjax.layers.transformer import REMAT, SIZES, Stack
from mmjax.ops import masks
from mmjax.parallel import rules

VARIANTS = SIZES
POOLS = ("map", "gap", "none")

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(width=32, depth=2, heads=4, mlp=64, patch=4, side=3)
TINY_INPUTS = dict(image=((16, 8, 3), "float32"))


class NaFlex(nn.Module):
  """Image encoder; see `build` for the attributes."""

  width: int
  depth: int
  heads: int
  mlp: int
  patch: int
  side: int = 16
  channels: int = 3
  num_classes: int | None = None
  pool: str = "map"
  act: str = "gelu"
  epsilon: float = 1e-6
  dropout: float = 0.0
  drop_path: float = 0.0
  scan: bool | None = None
  remat: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    image: jax.Array,
    mask: jax.Array | None = None,
    shapes: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Encodes images.

    Args:
      image: patches [B P patch*patch*C], in each pixel by pixel with channels
        last; or whole images of one size [B Y X C]. Floats in [-1, 1], or
        uint8, which is brought there.
      mask: [B P], 0 where there is no patch; None is what shapes say.
      shapes: int32 [B 2], rows and columns of patches of each image; given
        with patches, and with them only. At least 1, and at most P together.
      train: dropout on; needs the rng "dropout" if any rate is above 0.

    Returns:
      Features [B D] ([B P D] with pool "none") or logits [B num_classes], and
      {"pre_logits": the features, "tokens": [B P D] of which they are made}.
      Places without a patch mean nothing.

    Raises:
      InputError: arrays that do not go together.
    """
    image, shapes = self._as_patches(image, shapes)
    P = image.shape[1]
    image = rules.constrain(image, "batch", None, None)
    if mask is None:
      mask = jnp.arange(P)[None, :] < shapes.prod(-1)[:, None]
    seen = masks.Keys(mask)
    x = _Embed(
      self.width, self.patch, self.channels, self.dtype, name="embedding"
    )(image)
    places = StretchedGrid(self.side, name="posemb")(shapes, P, self.width)
    x = rules.constrain(x + places.astype(x.dtype), "batch", "length", "embed")
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    x = Stack(
      Spec(
        self.heads,
        self.mlp,
        act=self.act,
        epsilon=self.epsilon,
        dropout=self.dropout,
      ),
      self.depth,
      drop_path=self.drop_path,
      dtype=self.dtype,
      scan=self.scan,
      remat=self.remat,
      name="encoder",
    )(x, seen, not train)
    x = layer_norm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
    out = {"tokens": x}
    if self.pool == "gap":
      weight = (mask != 0).astype(jnp.float32)[:, :, None]
      total = (x.astype(jnp.float32) * weight).sum(1)
      x = (total / jnp.maximum(weight.sum(1), 1.0)).astype(x.dtype)
    elif self.pool == "map":
      x = pooling.MAPHead(
        self.heads,
        self.mlp,
        act=self.act,
        epsilon=self.epsilon,
        dtype=self.dtype,
        name="pool",
      )(x, mask=seen)
    out["pre_logits"] = x
    if self.num_classes is None:
      return x, out
    return pooling.head(self.num_classes, self.dtype, "head")(x), out

  def _as_patches(
    self, image: jax.Array, shapes: jax.Array | None
  ) -> tuple[jax.Array, jax.Array]:
    """Returns patches [B P patch*patch*C] in [-1, 1], and shapes [B 2]."""
    if image.dtype == jnp.uint8:
      image = image.astype(jnp.float32) / 127.5 - 1.0
    elif not jnp.issubdtype(image.dtype, jnp.floating):
      raise errors.InputError(
        f"image is {image.dtype}: give uint8, or floats in [-1, 1]."
      )
    whole = image.ndim == 4
    if whole != (shapes is None):
      raise errors.InputError(
        f"models.naflex image has shape {image.shape} and shapes is "
        f"{'not ' if shapes is None else ''}given: patches [B P "
        "patch*patch*C] come with shapes [B 2], images [B Y X C] without."
      )
    p, C = self.patch, self.channels
    if whole:
      B, Y, X, given = image.shape
      if Y % p or X % p or given != C:
        raise errors.InputError(
          f"models.naflex image of {Y} x {X} pixels and {given} channels: "
          f"give multiples of patch = {p}, and channels = {C}."
        )
      image = image.reshape(B, Y // p, p, X // p, p, C)
      image = image.transpose(0, 1, 3, 2, 4, 5)
      shapes = jnp.full((B, 2), jnp.array([Y // p, X // p]), jnp.int32)
      image = image.reshape(B, -1, p * p * C)
    elif image.shape[-1] != p * p * C:
      raise errors.InputError(
        f"models.naflex image has patches of {image.shape[-1]} numbers; those "
        f"of patch = {p} and channels = {C} have {p * p * C}."
      )
    return image, jnp.asarray(shapes)


class _Embed(nn.Module):
  """Projects patches; the kernel [patch patch C D] is that of a ViT."""

  width: int
  patch: int
  channels: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    size = self.patch * self.patch * self.channels

    def init(key, shape, dtype=jnp.float32):
      flat = nn.initializers.lecun_normal()(key, (size, self.width), dtype)
      return flat.reshape(shape)

    kernel = self.param(
      "kernel",
      rules.with_axes(init, ("kernel", "kernel", "channels", "embed")),
      (self.patch, self.patch, self.channels, self.width),
    )
    bias = self.param(
      "bias", rules.with_axes(nn.initializers.zeros, ("norm",)), (self.width,)
    )
    kernel = kernel.astype(self.dtype).reshape(size, self.width)
    return x.astype(self.dtype) @ kernel + bias.astype(self.dtype)[None, None]


class StretchedGrid(nn.Module):
  """A learned grid of positions, stretched to each image of a batch.

  Bilinear, with a filter that widens where the grid shrinks (antialias). The
  sizes are data: one compiled function serves all.

  Attributes:
    side: S, rows and columns of the grid [S S D].
  """

  side: int

  @nn.compact
  def __call__(self, shapes: jax.Array, length: int, width: int) -> jax.Array:
    """Returns the embedding of each place of rows of patches.

    Args:
      shapes: int32 [B 2], rows and columns of each image.
      length: P. width: D.

    Returns:
      float32 [B P D]; places after the last patch mean nothing.
    """
    grid = self.param(
      "grid",
      rules.with_axes(
        nn.initializers.normal(width**-0.5),
        ("positions", "positions", "embed"),
      ),
      (self.side, self.side, width),
    )
    place = jnp.arange(length, dtype=jnp.int32)[None, :]
    rows, columns = shapes[:, :1], shapes[:, 1:]
    y = stretch(place // columns, rows, self.side)
    x = stretch(place % columns, columns, self.side)
    weights = y[:, :, :, None] * x[:, :, None, :]
    # Positions are added to all that follows.
    return jnp.einsum("bpyx,yxd->bpd", weights, grid, precision="highest")


def stretch(place: jax.Array, new: jax.Array, old: int) -> jax.Array:
  """Returns what the samples of an axis weigh in a resized one.

  Args:
    place: int [B P] in [0, new), places on the new axis.
    new: int [B 1], its length.
    old: S, samples there are.

  Returns:
    float32 [B P S], of sum 1.
  """
  scale = old / new.astype(jnp.float32)
  centre = (place.astype(jnp.float32) + 0.5) * scale
  source = jnp.arange(old, dtype=jnp.float32)[None, None, :] + 0.5
  away = (source - centre[:, :, None]) / jnp.maximum(scale, 1.0)[:, :, None]
  weights = jnp.maximum(1.0 - jnp.abs(away), 0.0)
  total = weights.sum(-1, keepdims=True)
  # A place after the last patch may lie where no sample is.
  return weights / jnp.maximum(total, 1e-6)


def build(
  variant: str | None = None,
  *,
  width: int | None = None,
  depth: int | None = None,
  heads: int | None = None,
  mlp: int | None = None,
  patch: int | None = None,
  side: int = 16,
  channels: int = 3,
  num_classes: int | None = None,
  pool: str = "map",
  act: str = "gelu",
  epsilon: float = 1e-6,
  dropout: float = 0.0,
  drop_path: float = 0.0,
  scan: bool | None = None,
  remat: str = "none",
  dtype: str = "float32",
) -> NaFlex:
  """Builds an image encoder.

  Args:
    variant: a size of `VARIANTS` and the patch, "B/16", or None. What is given
      beside it goes before it.
    width: D. depth: blocks. heads: N. mlp: F. patch: side in pixels.
    side: rows and columns of the learned grid of positions.
    channels: C of a pixel.
    num_classes: width of a linear head that starts at zero; None is none.
    pool: "map", a head that attends; "gap", the mean; "none".
    act: "gelu" (tanh), "gelu_exact", "quick_gelu", "relu".
    epsilon: of the norms.
    dropout: rate. drop_path: rate of stochastic depth of the last block.
    scan: whether to loop over the blocks, see `layers.loop`.
    remat: "none", "full", "dots": see `layers.transformer.Stack`.
    dtype: of the computation; parameters are float32.

  Raises:
    InputError: an unknown name, or a size that is not given.
  """
  sizes: dict[str, Any] = dict(
    width=width, depth=depth, heads=heads, mlp=mlp, patch=patch
  )
  if variant is not None:
    size, _, pixels = variant.partition("/")
    if size not in VARIANTS or not pixels.isdecimal():
      raise errors.unknown(
        "models.naflex variant", variant, [f"{name}/16" for name in VARIANTS]
      )
    known = dict(VARIANTS[size], patch=int(pixels))
    sizes = {k: known[k] if v is None else v for k, v in sizes.items()}
  missing = [name for name, value in sizes.items() if value is None]
  if missing:
    raise errors.InputError(
      f"models.naflex: {', '.join(missing)} not given; give them, or a variant "
      "such as 'B/16'."
    )
  for field, value, known in (("pool", pool, POOLS), ("remat", remat, REMAT)):
    if value not in known:
      raise errors.unknown(f"models.naflex {field}", value, known)
  activation(act)
  return NaFlex(
    **sizes,
    side=side,
    channels=channels,
    num_classes=num_classes,
    pool=pool,
    act=act,
    epsilon=epsilon,
    dropout=dropout,
    drop_path=drop_path,
    scan=scan,
    remat=remat,
    dtype=jnp.dtype(dtype),
  )
