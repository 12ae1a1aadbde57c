"""ViLT: words and image patches in one Transformer, without a detector.

"ViLT: Vision-and-language transformer without convolution or region
supervision", Kim et al. 2021. An image may be of any size and be padded on the
right and below: positions are interpolated to the part that is no padding.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax import errors
from mmjax.layers.bert import MaskedWords, Pooler, TextEmbed, dense
from mmjax.layers.block import Spec
from mmjax.layers.embed import Patches, TokenEmbed
from mmjax.layers.interpolate import corner_weights
from mmjax.layers.mlp import activation, exact_gelu
from mmjax.layers.norm import layer_norm
from mmjax.layers.transformer import REMAT, Stack
from mmjax.ops import masks
from mmjax.parallel import rules

VARIANTS: dict[str, dict[str, int]] = {
  "B/32": dict(width=768, depth=12, heads=12, mlp=3072, patch=32, grid=12)
}
ANSWER_EPSILON = 1e-5  # of the norm in the head over answers

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(
  vocab_size=64,
  width=32,
  depth=2,
  heads=4,
  mlp=64,
  patch=4,
  grid=3,
  length=8,
  masked_words=True,
  answers=6,
  matched=True,
)
TINY_INPUTS = dict(tokens=((8,), "int32"), image=((16, 8, 3), "float32"))


class ViLT(nn.Module):
  """Encoder of a text with an image; see `build` for the attributes."""

  vocab_size: int
  width: int
  depth: int
  heads: int
  mlp: int
  patch: int
  grid: int
  length: int = 40
  types: int = 2
  modalities: int = 2
  masked_words: bool = False
  answers: int | None = None
  answers_width: int | None = None
  matched: bool = False
  classes: int | None = None
  pooler: bool = True
  images: int = 1
  max_patches: int | None = None
  biases: str = "qkvo"
  pad_id: int = 0
  mask_pad: bool = True
  act: str = "gelu_exact"
  epsilon: float = 1e-12
  dropout: float = 0.0
  scan: bool | None = None
  remat: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    image: jax.Array,
    mask: jax.Array | None = None,
    pixel_mask: jax.Array | None = None,
    types: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Encodes texts together with images.

    Args:
      tokens: int32 [B T].
      image: [B Y X C], rows and columns that fill no patch are not read; or
        [B I Y X C] for I images, as pixel_mask then: each with the text.
      mask: int or bool [B T], where it is 0 no token looks; None is where
        there is padding, or nowhere if mask_pad is False.
      pixel_mask: int or bool [B Y X], 0 where the image is padded, on the
        right and below; None is nowhere.
      types: int32 [B T], the segment of each token; None is 0.
      train: dropout on; needs the rng "dropout" if its rate is above 0.

    Returns:
      The pooled first token [B D], or without a pooler that token; and a dict
      of "tokens" [B T D], "patches" [B 1+P D], the image's class token first,
      and of what the heads give: "logits" of words [B T V], "answers" [B Q],
      "matched" [B 1], "classes" of words [B T C]. For I images B is B*I but
      for answers, which read what is pooled of all.

    Raises:
      InputError: more tokens or patches than the model takes.
    """
    if self.images > 1:
      image, pixel_mask = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:]), (image, pixel_mask)
      )
      tokens, mask, types = jax.tree.map(
        lambda x: jnp.repeat(x, self.images, 0), (tokens, mask, types)
      )
    tokens = rules.constrain(tokens, "batch", None)
    if mask is None:
      mask = jnp.ones_like(tokens)
      if self.mask_pad:
        mask = tokens != self.pad_id
    text, words = TextEmbed(
      self.vocab_size,
      self.width,
      self.length,
      self.types,
      epsilon=self.epsilon,
      dtype=self.dtype,
      name="embed",
    )(tokens, types)
    patches, valid = self._patches(image, pixel_mask)

    modality = TokenEmbed(
      self.modalities, self.width, dtype=self.dtype, name="modality"
    )(jnp.arange(1 + self.images)[None])
    kinds = jnp.tile(modality[0, 1:], (len(tokens) // self.images, 1))
    drop = nn.Dropout(self.dropout, deterministic=not train)
    x = jnp.concatenate(
      [drop(text) + modality[:, :1], drop(patches) + kinds[:, None]], axis=1
    )
    x = rules.constrain(x, "batch", "length", "embed")
    seen = jnp.concatenate([mask != 0, valid], axis=1)
    x = Stack(
      Spec(
        self.heads,
        self.mlp,
        act=self.act,
        epsilon=self.epsilon,
        biases=self.biases,
        dropout=self.dropout,
      ),
      self.depth,
      dtype=self.dtype,
      scan=self.scan,
      remat=self.remat,
      name="encoder",
    )(x, masks.Keys(seen), not train)
    x = layer_norm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
    pooled = x[:, 0]
    if self.pooler:
      pooled = Pooler(self.dtype, name="pooler")(x)
    count = tokens.shape[1]
    out = {"tokens": x[:, :count], "patches": x[:, count:]}
    return pooled, out | self._heads(pooled, out["tokens"], words)

  def _patches(
    self, image: jax.Array, pixel_mask: jax.Array | None
  ) -> tuple[jax.Array, jax.Array]:
    """Returns class token and patches [B 1+P D], and bool [B 1+P]."""
    B, Y, X, _ = image.shape
    rows, columns = Y // self.patch, X // self.patch
    if self.max_patches is not None and rows * columns > self.max_patches:
      raise errors.InputError(
        f"an image of {rows} x {columns} patches, but the model takes "
        f"max_patches = {self.max_patches}; resize the image."
      )
    image = image[:, : rows * self.patch, : columns * self.patch]
    x = Patches(self.width, self.patch, self.dtype, name="embedding")(image)
    if pixel_mask is None:
      pixel_mask = jnp.ones((B, Y, X), bool)
    # A patch counts if its first pixel does.
    at = [np.arange(n) * m // n for n, m in ((rows, Y), (columns, X))]
    valid = pixel_mask[:, at[0]][:, :, at[1]] != 0
    position = self.param(
      "positions",
      rules.with_axes(
        nn.initializers.normal(0.02), ("positions", "positions", "embed")
      ),
      (self.grid, self.grid, self.width),
    ).astype(self.dtype)
    first = self.param(
      "cls_position",
      rules.with_axes(nn.initializers.normal(0.02), ("norm",)),
      (self.width,),
    )
    cls = self.param(
      "cls",
      rules.with_axes(nn.initializers.normal(0.02), ("norm",)),
      (self.width,),
    )
    down = corner_weights(valid[:, :, 0].sum(1), rows, self.grid)
    right = corner_weights(valid[:, 0].sum(1), columns, self.grid)
    x = x + jnp.einsum(
      "byg,bxh,ghd->byxd",
      down.astype(self.dtype),
      right.astype(self.dtype),
      rules.constrain(position, None, None, None),
    )
    start = (cls + first).astype(self.dtype).reshape(1, 1, -1)
    start = jnp.broadcast_to(start, (B, 1, self.width))
    x = jnp.concatenate([start, x.reshape(B, -1, self.width)], axis=1)
    valid = jnp.concatenate([jnp.ones((B, 1), bool), valid.reshape(B, -1)], 1)
    return rules.constrain(x, "batch", None, "embed"), valid

  def _heads(
    self, pooled: jax.Array, text: jax.Array, words: jax.Array
  ) -> dict[str, jax.Array]:
    """Returns what the heads give, those that are there."""
    out = {}
    if self.masked_words:
      out["logits"] = MaskedWords(
        self.act, self.epsilon, self.dtype, name="masked_words"
      )(text, words)
    if self.answers is not None:
      y = pooled.reshape(-1, self.images * self.width)
      up = self.answers_width or max(2, self.images) * self.width
      y = dense(up, name="answer_up", axis="mlp", dtype=self.dtype)(y)
      y = layer_norm(
        epsilon=ANSWER_EPSILON, dtype=self.dtype, name="answer_norm"
      )(y)
      out["answers"] = dense(
        self.answers, name="answers_head", axis="classes", dtype=self.dtype
      )(exact_gelu(y))
    if self.matched:
      out["matched"] = dense(1, name="matched", dtype=self.dtype)(pooled)
    if self.classes is not None:
      out["classes"] = dense(
        self.classes, name="classes_head", axis="classes", dtype=self.dtype
      )(text)
    return out


def build(
  variant: str | None = None,
  *,
  vocab_size: int,
  width: int | None = None,
  depth: int | None = None,
  heads: int | None = None,
  mlp: int | None = None,
  patch: int | None = None,
  grid: int | None = None,
  length: int = 40,
  types: int = 2,
  modalities: int = 2,
  masked_words: bool = False,
  answers: int | None = None,
  answers_width: int | None = None,
  matched: bool = False,
  classes: int | None = None,
  pooler: bool = True,
  images: int = 1,
  max_patches: int | None = None,
  biases: str = "qkvo",
  pad_id: int = 0,
  mask_pad: bool = True,
  act: str = "gelu_exact",
  epsilon: float = 1e-12,
  dropout: float = 0.0,
  scan: bool | None = None,
  remat: str = "none",
  dtype: str = "float32",
) -> ViLT:
  """Builds a ViLT.

  Args:
    variant: a size of `VARIANTS`, or None; what is given goes before it.
    vocab_size: V. width: D. depth: blocks. heads: N. mlp: F.
    patch: side in pixels. grid: rows, and columns, of the learned positions.
    length: the longest text. types: of tokens, segments of the text.
    modalities: rows of their table; text is 0 and image 1.
    masked_words: a head that predicts words, by the table that embeds them.
    answers: classes of a head over answers; None is none. answers_width: its
      hidden units; None is 2D, or for more than 2 images I*D.
    matched: a head that says whether text and image belong together.
    classes: of a head over each word; None is none.
    pooler: first tokens are pooled; False only without answers and matched.
    images: I, seen one by one with the text, as for NLVR2.
    max_patches: an image with more is refused (the reference draws some of
      them at random); None is no limit.
    biases: of the attention, letters of "qkvo".
    pad_id: of padding, which is masked where no mask is given; mask_pad =
      False masks nothing then.
    act: of blocks and head of words. epsilon: of the norms.
    dropout: rate, 0 in ViLT.
    scan, remat: see `layers.transformer.Stack`.
    dtype: of the computation; parameters are float32.

  Raises:
    InputError: an unknown name, a size that is not given, or a head without
      the pooler that it reads.
  """
  sizes: dict[str, Any] = dict(
    width=width, depth=depth, heads=heads, mlp=mlp, patch=patch, grid=grid
  )
  if variant is not None:
    if variant not in VARIANTS:
      raise errors.unknown("models.vilt variant", variant, VARIANTS)
    known = VARIANTS[variant]
    sizes = {k: known[k] if v is None else v for k, v in sizes.items()}
  missing = ", ".join(k for k, v in sizes.items() if v is None)
  if missing:
    raise errors.InputError(
      f"models.vilt: {missing} not given; give them, or variant = 'B/32'."
    )
  if remat not in REMAT:
    raise errors.unknown("models.vilt remat", remat, REMAT)
  activation(act)
  if not pooler and (matched or answers is not None):
    raise errors.InputError(
      "models.vilt pooler = False: answers and matched read what is pooled; "
      "leave them out, or the pooler in."
    )
  return ViLT(
    vocab_size=vocab_size,
    **sizes,
    length=length,
    types=types,
    modalities=modalities,
    masked_words=masked_words,
    answers=answers,
    answers_width=answers_width,
    matched=matched,
    classes=classes,
    pooler=pooler,
    images=images,
    max_patches=max_patches,
    biases=biases,
    pad_id=pad_id,
    mask_pad=mask_pad,
    act=act,
    epsilon=epsilon,
    dropout=dropout,
    scan=scan,
    remat=remat,
    dtype=jnp.dtype(dtype),
  )
