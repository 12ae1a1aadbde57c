"""LXMERT: language, objects, and layers in which they see each other.

"LXMERT: Learning cross-modality encoder representations from transformers",
Tan and Bansal 2019: 9 language, 5 object-relation and 5 cross layers over 36
regions of an image, each a feature of a detector [F] and a box [4] (x1, y1, x2,
y2 as fractions of the image's width and height).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers.bert import (
  MaskedWords,
  Pooler,
  TextEmbed,
  Transform,
  dense,
)
from mmjax.layers.block import Spec
from mmjax.layers.cross_modal import CrossStack
from mmjax.layers.mlp import activation, exact_gelu
from mmjax.layers.norm import layer_norm
from mmjax.layers.transformer import REMAT, Stack
from mmjax.ops import masks
from mmjax.parallel import rules

_LXMERT: dict[str, Any] = dict(
  width=768,
  text_depth=9,
  region_depth=5,
  cross_depth=5,
  heads=12,
  mlp=3072,
  features=2048,
)
VARIANTS: dict[str, dict[str, Any]] = {
  "lxmert": _LXMERT,
  "lxmert-pretraining": dict(
    **_LXMERT,
    masked_words=True,
    matched=True,
    objects=1600,
    attributes=400,
    predict_features=True,
    answers=9500,
  ),
}

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(
  vocab_size=64,
  width=32,
  text_depth=2,
  region_depth=2,
  cross_depth=2,
  heads=4,
  mlp=64,
  length=8,
  features=12,
  masked_words=True,
  matched=True,
  objects=6,
  attributes=4,
  predict_features=True,
  answers=10,
)
TINY_INPUTS = dict(
  tokens=((8,), "int32"),
  features=((5, 12), "float32"),
  boxes=((5, 4), "float32"),
)


class CrossModal(nn.Module):
  """Encoder of texts with regions of images; see `build` for the attributes."""

  vocab_size: int
  width: int
  text_depth: int
  region_depth: int
  cross_depth: int
  heads: int
  mlp: int
  features: int
  length: int = 512
  types: int = 2
  box: int = 4
  masked_words: bool = False
  tied: bool = True
  matched: bool = False
  objects: int | None = None
  attributes: int | None = None
  predict_features: bool = False
  answers: int | None = None
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
    features: jax.Array,
    boxes: jax.Array,
    mask: jax.Array | None = None,
    region_mask: jax.Array | None = None,
    types: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Encodes texts together with regions of images.

    Args:
      tokens: int32 [B T].
      features: of the regions, [B R F].
      boxes: of the regions, [B R 4] in [0, 1].
      mask: int or bool [B T], where it is 0 nothing looks; None is where
        there is padding, or nowhere if mask_pad is False.
      region_mask: int or bool [B R], as `mask`; None is nowhere.
      types: int32 [B T], the segment of each token; None is 0.
      train: dropout on; needs the rng "dropout" if its rate is above 0.

    Returns:
      The pooled first token [B D]; and a dict of "tokens" [B T D], "regions"
      [B R D], and of what the heads give: "logits" of words [B T V],
      "matched" [B 2], "objects" [B R O], "attributes" [B R A], "features"
      [B R F], "answers" [B Q].

    Raises:
      InputError: more tokens than there are positions.
    """
    tokens = rules.constrain(tokens, "batch", None)
    if mask is None and self.mask_pad:
      mask = tokens != self.pad_id
    seen = [None if m is None else masks.Keys(m) for m in (mask, region_mask)]
    text, words = TextEmbed(
      self.vocab_size,
      self.width,
      self.length,
      self.types,
      epsilon=self.epsilon,
      dtype=self.dtype,
      name="embed",
    )(tokens, types)
    regions = self._regions(features, boxes)
    drop = nn.Dropout(self.dropout, deterministic=not train)
    text, regions = drop(text), drop(regions)

    spec = Spec(
      self.heads,
      self.mlp,
      act=self.act,
      epsilon=self.epsilon,
      order="post",
      dropout=self.dropout,
    )
    how: dict[str, Any] = dict(
      dtype=self.dtype, scan=self.scan, remat=self.remat
    )
    text = Stack(spec, self.text_depth, **how, name="text")(
      text, seen[0], not train
    )
    regions = Stack(spec, self.region_depth, **how, name="regions")(
      regions, seen[1], not train
    )
    text, regions = CrossStack(spec, self.cross_depth, **how, name="cross")(
      text, regions, seen[0], seen[1], not train
    )
    pooled = Pooler(self.dtype, name="pooler")(text)
    out = {"tokens": text, "regions": regions}
    return pooled, out | self._heads(pooled, text, regions, words)

  def _regions(self, features: jax.Array, boxes: jax.Array) -> jax.Array:
    """Embeds regions: the mean of a norm of each part, [B R D]."""
    parts = [
      layer_norm(epsilon=self.epsilon, dtype=self.dtype, name=f"{name}_norm")(
        nn.Dense(
          self.width,
          dtype=self.dtype,
          kernel_init=rules.with_axes(
            nn.initializers.normal(0.02), (None, "embed")
          ),
          bias_init=rules.with_axes(nn.initializers.zeros, ("norm",)),
          name=name,
        )(x)
      )
      for name, x in (("features", features), ("boxes", boxes))
    ]
    return rules.constrain((parts[0] + parts[1]) / 2, "batch", None, "embed")

  def _heads(
    self,
    pooled: jax.Array,
    text: jax.Array,
    regions: jax.Array,
    words: jax.Array,
  ) -> dict[str, jax.Array]:
    """Returns what the heads of pretraining give, those that are there."""
    args = (self.act, self.epsilon, self.dtype)
    out = {}
    if self.masked_words:
      out["logits"] = MaskedWords(*args, self.tied, name="masked_words")(
        text, words
      )
    if self.matched:
      out["matched"] = dense(2, name="matched", dtype=self.dtype)(pooled)
    sizes = {
      "objects": self.objects,
      "attributes": self.attributes,
      "features": self.features if self.predict_features else None,
    }
    if any(sizes.values()):
      x = Transform(*args, name="region_transform")(regions)
      for name, size in sizes.items():
        if size is not None:
          out[name] = dense(size, name=f"{name}_head", dtype=self.dtype)(x)
    if self.answers is not None:
      y = dense(2 * self.width, name="answer_up", axis="mlp", dtype=self.dtype)(
        pooled
      )
      y = exact_gelu(y)
      y = layer_norm(
        epsilon=self.epsilon, dtype=self.dtype, name="answer_norm"
      )(y)
      out["answers"] = dense(
        self.answers, name="answers_head", axis="classes", dtype=self.dtype
      )(y)
    return out


def build(
  variant: str | None = None,
  *,
  vocab_size: int,
  width: int | None = None,
  text_depth: int | None = None,
  region_depth: int | None = None,
  cross_depth: int | None = None,
  heads: int | None = None,
  mlp: int | None = None,
  features: int | None = None,
  length: int = 512,
  types: int = 2,
  box: int = 4,
  masked_words: bool | None = None,
  tied: bool = True,
  matched: bool | None = None,
  objects: int | None = None,
  attributes: int | None = None,
  predict_features: bool | None = None,
  answers: int | None = None,
  pad_id: int = 0,
  mask_pad: bool = True,
  act: str = "gelu_exact",
  epsilon: float = 1e-12,
  dropout: float = 0.0,
  scan: bool | None = None,
  remat: str = "none",
  dtype: str = "float32",
) -> CrossModal:
  """Builds an LXMERT.

  Args:
    variant: of `VARIANTS`, or None. What is given beside it goes before it.
    vocab_size: V.
    width: D. heads: N. mlp: F of the blocks.
    text_depth, region_depth, cross_depth: blocks of each kind.
    features: entries of a region's feature, 2048 of the usual detector.
    length: the longest text. types: of tokens, segments of the text.
    box: entries of a region's box, 4.
    masked_words: a head that predicts words, by the table that embeds them
      if it is tied.
    matched: a head that says whether text and image belong together.
    objects, attributes: classes of heads over regions; None is none.
    predict_features: a head that predicts each region's feature.
    answers: classes of a head over answers; None is none.
    pad_id: of padding, which is masked where no mask is given; mask_pad =
      False masks nothing then.
    act: of blocks and heads. epsilon: of the norms.
    dropout: rate, 0.1 in LXMERT.
    scan, remat: see `layers.transformer.Stack`.
    dtype: of the computation; parameters are float32.

  Raises:
    InputError: an unknown name, or a size that is not given.
  """
  sizes: dict[str, Any] = dict(
    width=width,
    text_depth=text_depth,
    region_depth=region_depth,
    cross_depth=cross_depth,
    heads=heads,
    mlp=mlp,
    features=features,
  )
  parts: dict[str, Any] = dict(
    masked_words=masked_words,
    matched=matched,
    objects=objects,
    attributes=attributes,
    predict_features=predict_features,
    answers=answers,
  )
  if variant is not None:
    if variant not in VARIANTS:
      raise errors.unknown("models.cross_modal variant", variant, VARIANTS)
    known = VARIANTS[variant]
    sizes = {k: known[k] if v is None else v for k, v in sizes.items()}
    parts = {k: known.get(k) if v is None else v for k, v in parts.items()}
  missing = [name for name, value in sizes.items() if value is None]
  if missing:
    raise errors.InputError(
      f"models.cross_modal: {', '.join(missing)} not given; give them, or "
      "variant = 'lxmert'."
    )
  for name in ("masked_words", "matched", "predict_features"):
    parts[name] = bool(parts[name])
  if remat not in REMAT:
    raise errors.unknown("models.cross_modal remat", remat, REMAT)
  activation(act)
  return CrossModal(
    vocab_size=vocab_size,
    **sizes,
    **parts,
    tied=tied,
    length=length,
    types=types,
    box=box,
    pad_id=pad_id,
    mask_pad=mask_pad,
    act=act,
    epsilon=epsilon,
    dropout=dropout,
    scan=scan,
    remat=remat,
    dtype=jnp.dtype(dtype),
  )
