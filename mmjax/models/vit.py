"""ViT: a Transformer over the patches of an image.

"An image is worth 16x16 words", Dosovitskiy et al. 2021; "How to train your
ViT?", Steiner et al. 2022; sizes from "Scaling vision transformers", Zhai et
al. 2022.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers import pool as pooling
from mmjax.layers.block import Spec
from mmjax.layers.embed import ConvStem, Patches
from mmjax.layers.mlp import activation
from mmjax.layers.norm import layer_norm
from mmjax.layers.position import LearnedGrid, sincos2d
from mmjax.layers.transformer import REMAT, SIZES, Stack
from mmjax.parallel import rules

VARIANTS = SIZES
POOLS = ("gap", "tok", "map", "none")
POSEMBS = ("learn", "sincos2d")
STEMS = ("patch", "conv")

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(width=32, depth=2, heads=4, mlp=64, patch=4, pool="gap")
TINY_INPUTS = dict(image=((16, 16, 3), "float32"))


class ViT(nn.Module):
  """Image encoder; see `build` for the attributes."""

  width: int
  depth: int
  heads: int
  mlp: int
  patch: int
  num_classes: int | None = None
  pool: str = "gap"
  posemb: str = "learn"
  stem: str = "patch"
  crop: bool = False
  patch_bias: bool = True
  pre_norm: bool = False
  act: str = "gelu"
  epsilon: float = 1e-6
  dropout: float = 0.0
  drop_path: float = 0.0
  scan: bool = True
  remat: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Encodes images.

    Args:
      image: [B Y X C], float in [-1, 1], or uint8, which is brought there.
        Y and X are multiples of the patch (or `crop`), and may differ.
      train: dropout on; needs the rng "dropout" if any rate is above 0.

    Returns:
      Features [B D] ([B P D] with pool "none"), or logits [B C] if there are
      classes; and {"pre_logits": the features, "tokens": [B T D] of which
      they are made, the class token first}.

    Raises:
      InputError: an image that patches or positions do not fit.
    """
    image = _normalised(image)
    if self.crop:
      Y, X = (n - n % self.patch for n in image.shape[1:3])
      image = image[:, :Y, :X]
    image = rules.constrain(image, "batch", None, None, None)
    x = self._stem()(image)
    B, rows, columns, D = x.shape
    x = x.reshape(B, rows * columns, D)
    x = self._with_positions(x, rows, columns)
    if self.pre_norm:
      x = layer_norm(epsilon=self.epsilon, dtype=self.dtype, name="pre_norm")(x)
    x = rules.constrain(x, "batch", "length", "embed")
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
    )(x, None, not train)
    x = layer_norm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
    out = {"tokens": x}
    x = self._pooled(x)
    out["pre_logits"] = x
    if self.num_classes is not None:
      x = nn.Dense(
        self.num_classes,
        dtype=self.dtype,
        kernel_init=rules.with_axes(
          nn.initializers.zeros, ("embed", "classes")
        ),
        bias_init=rules.with_axes(nn.initializers.zeros, ("classes",)),
        name="head",
      )(x)
    return x, out

  def _stem(self) -> nn.Module:
    args = dict(dtype=self.dtype, name="embedding")
    if self.stem == "conv":
      return ConvStem(self.width, self.patch, **args)
    return Patches(self.width, self.patch, use_bias=self.patch_bias, **args)

  def _with_positions(self, x: jax.Array, rows: int, columns: int) -> jax.Array:
    """Adds positions, and puts the class token in front where it is read."""
    B, _, D = x.shape
    extra = 1 if self.pool == "tok" else 0
    if extra:
      token = self.param(
        "cls",
        rules.with_axes(nn.initializers.zeros, ("positions", "embed")),
        (1, D),
      )
      token = jnp.broadcast_to(token.astype(x.dtype)[None], (B, 1, D))
      x = jnp.concatenate([token, x], axis=1)
    if self.posemb == "learn":
      table = LearnedGrid(extra, name="posemb")(rows, columns, D)
    else:
      # A class token has no place in the grid.
      table = jnp.pad(sincos2d(rows, columns, D), ((extra, 0), (0, 0)))
    return x + table.astype(x.dtype)[None]

  def _pooled(self, x: jax.Array) -> jax.Array:
    if self.pool == "tok":
      return x[:, 0]
    if self.pool == "gap":
      return pooling.mean(x)
    if self.pool == "map":
      return pooling.MAPHead(
        self.heads,
        self.mlp,
        act=self.act,
        epsilon=self.epsilon,
        dtype=self.dtype,
        name="pool",
      )(x)
    return x


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
  depth: int | None = None,
  heads: int | None = None,
  mlp: int | None = None,
  patch: int | None = None,
  num_classes: int | None = None,
  pool: str = "gap",
  posemb: str = "learn",
  stem: str = "patch",
  crop: bool = False,
  patch_bias: bool = True,
  pre_norm: bool = False,
  act: str = "gelu",
  epsilon: float = 1e-6,
  dropout: float = 0.0,
  drop_path: float = 0.0,
  scan: bool = True,
  remat: str = "none",
  dtype: str = "float32",
) -> ViT:
  """Builds a ViT.

  Args:
    variant: "S/16": a size of `VARIANTS`, and the patch; or None. What is
      given beside it goes before it.
    width: D. depth: blocks. heads: N. mlp: F. patch: pixels.
    num_classes: width of a linear head that starts at zero; None is none.
    pool: "gap" mean, "tok" class token, "map" attention head, "none".
    posemb: "learn", for one grid of patches, or "sincos2d", for any.
    stem: "patch", or "conv": stride-2 convolutions, for small data.
    crop: pixels at the right and bottom that fill no patch are not read, as in
      SigLIP's 384 pixels of patch 14; False refuses such images.
    patch_bias: the patches' projection has a bias; False in CLIP.
    pre_norm: a norm before the first block, as in CLIP.
    act: "gelu" (tanh), "gelu_exact", "quick_gelu", "relu".
    epsilon: of the norms; 1e-6 in Google's models, 1e-12 in the hub's,
      1e-5 in CLIP.
    dropout: rate. drop_path: rate of stochastic depth of the last block.
    scan: loop over the blocks instead of unrolling them.
    remat: "none", "full", "dots": see `layers.transformer.Stack`.
    dtype: of the computation; parameters are float32.

  Raises:
    InputError: an unknown name, a size that is not given, or stem "conv"
      without a bias.
  """
  sizes: dict[str, Any] = dict(
    width=width, depth=depth, heads=heads, mlp=mlp, patch=patch
  )
  if variant is not None:
    size, _, pixels = variant.partition("/")
    if size not in VARIANTS:
      raise errors.unknown("models.vit variant", variant, VARIANTS)
    if pixels and not pixels.isdecimal():
      raise errors.InputError(
        f"models.vit variant = {variant!r}: {pixels!r} is no number of "
        f"pixels; write for example '{size}/16'."
      )
    known = dict(VARIANTS[size], patch=int(pixels) if pixels else None)
    sizes = {k: known[k] if v is None else v for k, v in sizes.items()}
  missing = [name for name, value in sizes.items() if value is None]
  if missing:
    raise errors.InputError(
      f"models.vit: {', '.join(missing)} not given; give them, or a variant "
      "such as 'S/16'."
    )
  for field, value, known in (
    ("pool", pool, POOLS),
    ("posemb", posemb, POSEMBS),
    ("stem", stem, STEMS),
    ("remat", remat, REMAT),
  ):
    if value not in known:
      raise errors.unknown(f"models.vit {field}", value, known)
  activation(act)
  if stem == "conv" and not patch_bias:
    raise errors.InputError(
      "models.vit patch_bias = False: stem = 'conv' has no patches, and keeps "
      "its biases; take stem='patch', or leave patch_bias out."
    )
  return ViT(
    **sizes,
    num_classes=num_classes,
    pool=pool,
    posemb=posemb,
    stem=stem,
    crop=crop,
    patch_bias=patch_bias,
    pre_norm=pre_norm,
    act=act,
    epsilon=epsilon,
    dropout=dropout,
    drop_path=drop_path,
    scan=scan,
    remat=remat,
    dtype=jnp.dtype(dtype),
  )
