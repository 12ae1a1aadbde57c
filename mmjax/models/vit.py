"""ViT: a Transformer over the patches of an image.

"An image is worth 16x16 words", Dosovitskiy et al. 2021; "How to train your
ViT?", Steiner et al. 2022; sizes from "Scaling vision transformers", Zhai et
al. 2022. By its options also DeiT ("Training data-efficient image transformers
and distillation through attention", Touvron et al. 2021), DINOv2 (Oquab et al.
2023) and its registers ("Vision transformers need registers", Darcet et al.
2024).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers import pool as pooling
from mmjax.layers import subset
from mmjax.layers.bert import Pooler
from mmjax.layers.block import Spec
from mmjax.layers.embed import ConvStem, Patches, add_rows, normalised
from mmjax.layers.interpolate import METHODS
from mmjax.layers.mlp import activation
from mmjax.layers.norm import layer_norm
from mmjax.layers.position import LearnedGrid, sincos2d
from mmjax.layers.transformer import REMAT, SIZES, Stack, sized
from mmjax.parallel import rules

VARIANTS = SIZES
POOLS = ("gap", "tok", "pair", "tok_gap", "map", "none")
POSEMBS = ("learn", "sincos2d")
STEMS = ("patch", "conv")
LAST_NORMS = ("tokens", "pooled", "both", "none")

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
  interpolate: str | None = None
  stem: str = "patch"
  stride: tuple[int, int] | None = None
  crop: bool = False
  patch_bias: bool = True
  class_token: bool | None = None
  distilled: bool = False
  registers: int = 0
  token_posemb: bool = True
  pre_norm: bool = False
  last_norm: str = "tokens"
  mask_token: bool = False
  pooler: bool = False
  pooler_act: str = "tanh"
  pooler_width: int | None = None
  act: str = "gelu"
  gated: bool = False
  qkv_bias: bool = True
  layer_scale: float | None = None
  epsilon: float = 1e-6
  dropout: float = 0.0
  drop_path: float = 0.0
  patch_drop: float = 0.0
  scan: bool | None = None
  remat: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    image: jax.Array,
    keep: jax.Array | None = None,
    hidden: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Encodes images.

    Args:
      image: [B Y X C], float in [-1, 1], or uint8, which is brought there.
        Y and X are multiples of the patch (or `crop`), and may differ.
      keep: int32 [B K], patches that are seen, in this order; None is all.
      hidden: int or bool [B P], 1 where the mask token stands for a patch, of
        a model that has one; None is nowhere.
      train: dropout on; needs the rng "dropout" if any rate is above 0.

    Returns:
      Features [B D] ([B T D] with pool "none", [B 2D] with "tok_gap"), or
      logits [B C] if there are classes; and {"pre_logits": the features,
      "tokens": [B T D]: class token, distillation token, registers, patches}.
      With pool "pair" and classes also "logits_cls" and "logits_distilled",
      whose mean the logits are; with a pooler "pooled", BERT's.

    Raises:
      InputError: an image that patches or positions do not fit, or `hidden`
        without a mask token.
    """
    if hidden is not None and not self.mask_token:
      raise errors.InputError(
        "models.vit hidden: no token stands for it; add mask_token = True."
      )
    image = normalised(image)
    if self.crop:
      Y, X = (n - n % self.patch for n in image.shape[1:3])
      image = image[:, :Y, :X]
    image = rules.constrain(image, "batch", None, None, None)
    x = self._stem()(image)
    if self.mask_token:
      x = subset.MaskToken(name="mask")(x, hidden)
    x = self._with_tokens(x, keep, train)
    if self.pre_norm:
      x = layer_norm(epsilon=self.epsilon, dtype=self.dtype, name="pre_norm")(x)
    x = rules.constrain(x, "batch", "length", "embed")
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    x = Stack(
      Spec(
        self.heads,
        self.mlp,
        act=self.act,
        gated=self.gated,
        biases="qkvo" if self.qkv_bias else "o",
        layer_scale=self.layer_scale,
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
    norm = layer_norm(epsilon=self.epsilon, dtype=self.dtype, name="norm")
    x = norm(x) if self.last_norm in ("tokens", "both") else x
    out = {"tokens": x}
    if self.pooler:
      out["pooled"] = Pooler(
        self.dtype, self.pooler_act, self.pooler_width, name="pooler"
      )(x)
    x = self._pooled(x)
    x = norm(x) if self.last_norm in ("pooled", "both") else x
    out["pre_logits"] = x
    if self.num_classes is None:
      return x, out
    head = pooling.head(self.num_classes, self.dtype, "head")
    if self.pool != "pair":
      return head(x), out
    other = pooling.head(self.num_classes, self.dtype, "head_distilled")
    out["logits_cls"] = head(out["tokens"][:, 0])
    out["logits_distilled"] = other(out["tokens"][:, 1])
    return (out["logits_cls"] + out["logits_distilled"]) / 2, out

  def _stem(self) -> nn.Module:
    args: dict[str, Any] = dict(dtype=self.dtype, name="embedding")
    if self.stem == "conv":
      return ConvStem(self.width, self.patch, **args)
    args |= dict(use_bias=self.patch_bias, stride=self.stride)
    return Patches(self.width, self.patch, **args)

  def _read_tokens(self) -> list[str]:
    """Returns the names of the tokens before the registers."""
    with_class = self.class_token
    if with_class is None:
      with_class = self.pool in ("tok", "pair", "tok_gap")
    return ["cls"] * with_class + ["distilled"] * self.distilled

  def _with_tokens(
    self, x: jax.Array, keep: jax.Array | None, train: bool
  ) -> jax.Array:
    """Adds positions, drops patches, and puts other tokens in front."""
    B, rows, columns, D = x.shape
    x = x.reshape(B, rows * columns, D)
    names = self._read_tokens()
    placed = len(names) if self.token_posemb else 0
    if self.posemb == "learn":
      table = LearnedGrid(placed, self.interpolate, name="posemb")(
        rows, columns, D
      )
    else:
      # A class token has no place in the grid.
      table = jnp.pad(sincos2d(rows, columns, D), ((placed, 0), (0, 0)))
    table = table.astype(x.dtype)
    x = add_rows(x, table[placed:])
    if keep is not None:
      x = subset.take(x, keep)
    elif train and self.patch_drop > 0.0:
      x = subset.drop(x, self.patch_drop, self.make_rng("dropout"))
    zeros = nn.initializers.zeros
    counts = [(name, 1, zeros) for name in names]
    if self.registers:  # unlike at the start, or they stay alike
      start = nn.initializers.normal(0.02)
      counts.append(("registers", self.registers, start))
    tokens = [
      self.param(name, rules.with_axes(init, ("positions", "embed")), (n, D))
      for name, n, init in counts
    ]
    if not tokens:
      return x
    front = jnp.concatenate(tokens).astype(x.dtype)
    front = front.at[:placed].add(table[:placed])
    front = jnp.broadcast_to(front[None], (B, *front.shape))
    return jnp.concatenate([front, x], axis=1)

  def _pooled(self, x: jax.Array) -> jax.Array:
    patches = x[:, len(self._read_tokens()) + self.registers :]
    if self.pool == "tok":
      return x[:, 0]
    if self.pool == "pair":
      return pooling.mean(x[:, :2])
    if self.pool == "gap":
      return pooling.mean(patches)
    if self.pool == "tok_gap":
      return jnp.concatenate([x[:, 0], pooling.mean(patches)], axis=-1)
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
  interpolate: str | None = None,
  stem: str = "patch",
  stride: tuple[int, int] | None = None,
  crop: bool = False,
  patch_bias: bool = True,
  class_token: bool | None = None,
  distilled: bool = False,
  registers: int = 0,
  token_posemb: bool = True,
  pre_norm: bool = False,
  last_norm: str = "tokens",
  mask_token: bool = False,
  pooler: bool = False,
  pooler_act: str = "tanh",
  pooler_width: int | None = None,
  act: str = "gelu",
  gated: bool = False,
  qkv_bias: bool = True,
  layer_scale: float | None = None,
  epsilon: float = 1e-6,
  dropout: float = 0.0,
  drop_path: float = 0.0,
  patch_drop: float = 0.0,
  scan: bool | None = None,
  remat: str = "none",
  dtype: str = "float32",
) -> ViT:
  """Builds a ViT.

  Args:
    variant: "S/16": a size of `VARIANTS`, and the patch; or None. What is
      given beside it goes before it.
    width: D. depth: blocks. heads: N. mlp: F. patch: pixels.
    num_classes: width of a linear head that starts at zero; None is none.
    pool: "gap" mean of the patches, "tok" class token, "pair" mean of class
      and distillation token (with a head for each, DeiT), "tok_gap" class
      token and mean side by side (DINOv2), "map" attention head, "none".
    posemb: "learn", for one grid of patches, or "sincos2d", for any.
    interpolate: method of `layers.interpolate` by which learned positions are
      stretched to other grids than the first one; None refuses them.
    stem: "patch", or "conv": stride-2 convolutions, for small data.
    stride: pixels down and across from patch to patch; None is the patch.
    crop: pixels at the right and bottom that fill no patch are not read, as in
      SigLIP's 384 pixels of patch 14; False refuses such images.
    patch_bias: the patches' projection has a bias; False in CLIP.
    class_token: None is where the pool reads one.
    distilled: a distillation token after the class token.
    registers: tokens after those, without positions, that nobody reads.
    token_posemb: class and distillation token have positions too.
    pre_norm: a norm before the first block, as in CLIP.
    last_norm: of "tokens"; "pooled", after the pool; "both", again, as in
      BLIP's image encoder alone; or "none", as in CLIP's classifiers.
    mask_token: a token for the patches that the call says are hidden.
    pooler: also "pooled", with pooler_act, of pooler_width (None is D).
    act, gated: see `layers.mlp`. qkv_bias: query, key and value have biases.
    layer_scale: see `layers.block.Spec`.
    epsilon: of the norms; 1e-6 in Google's models, 1e-5 in CLIP.
    dropout: rate. drop_path: rate of stochastic depth of the last block.
    patch_drop: part of the patches that are left out in training (FLIP).
    scan, remat: see `layers.transformer.Stack`.
    dtype: of the computation; parameters are float32.

  Raises:
    InputError: a name, a size or options that cannot work.
  """
  # What is neither a size nor checked below is an attribute as it is.
  options: dict[str, Any] = dict(locals(), dtype=jnp.dtype(dtype))
  del options["variant"]
  given = {k: options.pop(k) for k in (*VARIANTS["mu"], "patch")}
  sizes = sized("models.vit", variant, given)
  for field, value, known in (
    ("pool", pool, POOLS),
    ("posemb", posemb, POSEMBS),
    ("interpolate", interpolate or "bicubic", METHODS),
    ("stem", stem, STEMS),
    ("last_norm", last_norm, LAST_NORMS),
    ("remat", remat, REMAT),
  ):
    if value not in known:
      raise errors.unknown(f"models.vit {field}", value, known)
  activation(act)
  activation(pooler_act)
  reads = pool in ("tok", "pair", "tok_gap")
  for wrong, why in (
    (
      stem == "conv" and not patch_bias,
      "patch_bias = False: stem = 'conv' has no patches, and keeps its "
      "biases; take stem='patch', or leave patch_bias out.",
    ),
    (
      stem == "conv" and stride is not None,
      f"stride = {stride}: stem = 'conv' has its own; leave one of them out.",
    ),
    (
      reads and class_token is False,
      f"class_token = False: pool = {pool!r} reads it; take pool = 'gap'.",
    ),
    (pool == "pair" and not distilled, "pool = 'pair': add distilled = True."),
    (not 0 <= patch_drop < 1, f"patch_drop = {patch_drop} is not in [0, 1)."),
  ):
    if wrong:
      raise errors.InputError(f"models.vit {why}")
  return ViT(**sizes, **options)
