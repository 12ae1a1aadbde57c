"""BERT and RoBERTa: bidirectional encoders of text, with norms after branches.

"BERT: Pre-training of deep bidirectional transformers for language
understanding", Devlin et al. 2019; "RoBERTa: A robustly optimized BERT
pretraining approach", Liu et al. 2019; for sentences "Sentence-BERT", Reimers
and Gurevych 2019, and "MiniLM", Wang et al. 2020.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers import pool as pooling
from mmjax.layers.bert import MaskedWords, Pooler, TextEmbed, dense
from mmjax.layers.block import Spec
from mmjax.layers.mlp import activation
from mmjax.layers.transformer import REMAT, Stack
from mmjax.ops import masks
from mmjax.parallel import rules

# Tiny to medium are those of "Well-read students learn better", Turc et al.
# 2019; the MiniLM has as many heads as BERT, of half their width.
VARIANTS: dict[str, dict[str, int]] = {
  name: dict(width=width, depth=depth, heads=heads, mlp=4 * width)
  for name, width, depth, heads in (
    ("tiny", 128, 2, 2),
    ("mini", 256, 4, 4),
    ("small", 512, 4, 8),
    ("medium", 512, 8, 8),
    ("base", 768, 12, 12),
    ("large", 1024, 24, 16),
    ("minilm-l6", 384, 6, 12),
    ("minilm-l12", 384, 12, 12),
  )
}
POOLS = ("mean", "cls", "pooler")

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(
  vocab_size=64,
  width=32,
  depth=2,
  heads=4,
  mlp=64,
  length=8,
  masked_words=True,
  next_sentence=True,
)
TINY_INPUTS = dict(tokens=((8,), "int32"))


class Bert(nn.Module):
  """Text encoder; see `build` for the attributes."""

  vocab_size: int
  width: int
  depth: int
  heads: int
  mlp: int
  length: int
  types: int = 2
  offset: int | None = None
  pool: str | None = None
  normalise: bool = False
  pooler: bool = True
  masked_words: bool = False
  tied: bool = True
  causal: bool = False
  next_sentence: bool = False
  classes: int | None = None
  each_token: bool = False
  spans: bool = False
  pad_id: int = 0
  mask_pad: bool = True
  act: str = "gelu_exact"
  head_act: str | None = None
  epsilon: float = 1e-12
  dropout: float = 0.0
  scan: bool | None = None
  remat: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    mask: jax.Array | None = None,
    types: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> Any:
    """Encodes texts.

    Args:
      tokens: int32 [B T].
      mask: int or bool [B T], where it is 0 no token looks; None is where
        there is padding, or nowhere if mask_pad is False.
      types: int32 [B T], the segment of each token; None is 0.
      train: dropout on; needs the rng "dropout" if its rate is above 0.

    Returns:
      With a pool the text's features [B D]. Without, the tokens [B T D], and
      a dict of what the heads give: "pooled" [B D], "logits" of words
      [B T V], "next" [B 2], whose first entry stands for the next sentence,
      "classes" [B C] or of each token [B T C], "start" and "end" [B T], scores
      of the first and of the last token of an answer.

    Raises:
      InputError: more tokens than there are positions.
    """
    tokens = rules.constrain(tokens, "batch", None)
    if mask is None and self.mask_pad:
      mask = tokens != self.pad_id
    x, words = TextEmbed(
      self.vocab_size,
      self.width,
      self.length,
      self.types,
      self.offset,
      self.epsilon,
      self.dtype,
      name="embed",
    )(tokens, types)
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    seen = None if mask is None else masks.Keys(mask)
    if self.causal:
      seen = masks.Causal() if seen is None else masks.Causal() & seen
    x = Stack(
      Spec(
        self.heads,
        self.mlp,
        act=self.act,
        epsilon=self.epsilon,
        order="post",
        dropout=self.dropout,
      ),
      self.depth,
      dtype=self.dtype,
      scan=self.scan,
      remat=self.remat,
      name="encoder",
    )(x, seen, not train)

    out = {}
    if self.pooler:
      out["pooled"] = Pooler(self.dtype, name="pooler")(x)
    if self.pool is not None:
      return self._pooled(x, mask, out)
    if self.masked_words:
      out["logits"] = MaskedWords(
        self.head_act or self.act,
        self.epsilon,
        self.dtype,
        self.tied,
        name="masked_words",
      )(x, words)
    if self.next_sentence:
      pooled = nn.Dropout(self.dropout)(out["pooled"], deterministic=not train)
      out["next"] = dense(2, name="next_sentence", dtype=self.dtype)(pooled)
    if self.classes is not None:
      read = x if self.each_token else out["pooled"]
      read = nn.Dropout(self.dropout)(read, deterministic=not train)
      out["classes"] = dense(
        self.classes, name="classes_head", axis="classes", dtype=self.dtype
      )(read)
    if self.spans:
      ends = dense(2, name="spans_head", dtype=self.dtype)(x)
      out["start"], out["end"] = ends[..., 0], ends[..., 1]
    return x, out

  def _pooled(
    self, x: jax.Array, mask: jax.Array | None, out: dict[str, jax.Array]
  ) -> jax.Array:
    if self.pool == "pooler":
      y = out["pooled"]
    elif self.pool == "cls":
      y = x[:, 0]
    else:
      y = pooling.mean(x) if mask is None else pooling.mean_where(x, mask)
    y = pooling.unit(y) if self.normalise else y
    return rules.constrain(y, "batch", "embed")


def build(
  variant: str | None = None,
  *,
  vocab_size: int,
  width: int | None = None,
  depth: int | None = None,
  heads: int | None = None,
  mlp: int | None = None,
  length: int = 512,
  types: int = 2,
  offset: int | None = None,
  pool: str | None = None,
  normalise: bool = False,
  pooler: bool | None = None,
  masked_words: bool = False,
  tied: bool = True,
  causal: bool = False,
  next_sentence: bool = False,
  classes: int | None = None,
  each_token: bool = False,
  spans: bool = False,
  pad_id: int = 0,
  mask_pad: bool = True,
  act: str = "gelu_exact",
  head_act: str | None = None,
  epsilon: float = 1e-12,
  dropout: float = 0.0,
  scan: bool | None = None,
  remat: str = "none",
  dtype: str = "float32",
) -> Bert:
  """Builds a BERT.

  Args:
    variant: a size of `VARIANTS`, or None. What is given beside it goes
      before it.
    vocab_size: V.
    width: D. depth: blocks. heads: N. mlp: F.
    length: rows of the table of positions, the longest text; with an offset
      the longest text is shorter by offset + 1.
    types: of tokens, segments of the text.
    offset: RoBERTa's positions, which count from offset + 1 the tokens that
      are not this id, its padding; None counts all from 0.
    pool: "mean" over tokens that are not masked, "cls" first token, "pooler"
      that token after a dense layer and tanh: the call then returns one
      vector a text, as a text encoder of `dual_encoder` does. None returns
      all tokens and what the heads give.
    normalise: the vector is scaled to length 1.
    pooler: there is a pooler; None is where pool, next_sentence or classes
      need it, and where there is no pool.
    masked_words: a head that predicts words, by the table that embeds them if
      it is tied. causal: no token sees those after it; the head then predicts
      the next one.
    next_sentence: a head that says whether two sentences follow each other.
    classes: C of a head that reads what is pooled; None is none. each_token:
      it reads each token instead.
    spans: a head that says where an answer begins and ends.
    pad_id: of padding, which is masked where no mask is given; mask_pad =
      False masks nothing then.
    act: of the blocks, "gelu_exact" in BERT.
    head_act: of the head of words; None is `act`.
    epsilon: of the norms.
    dropout: rate, 0.1 in BERT.
    scan: whether to loop over the blocks, see `layers.loop`.
    remat: "none", "full", "dots": see `layers.transformer.Stack`.
    dtype: of the computation; parameters are float32.

  Raises:
    InputError: an unknown name, a size that is not given, or parts that do
      not go together.
  """
  sizes: dict[str, Any] = dict(width=width, depth=depth, heads=heads, mlp=mlp)
  if variant is not None:
    if variant not in VARIANTS:
      raise errors.unknown("models.bert variant", variant, VARIANTS)
    known = VARIANTS[variant]
    sizes = {k: known[k] if v is None else v for k, v in sizes.items()}
  missing = [name for name, value in sizes.items() if value is None]
  if missing:
    raise errors.InputError(
      f"models.bert: {', '.join(missing)} not given; give them, or a variant "
      "such as 'base'."
    )
  if pool is not None and pool not in POOLS:
    raise errors.unknown("models.bert pool", pool, POOLS)
  if remat not in REMAT:
    raise errors.unknown("models.bert remat", remat, REMAT)
  if pool is not None and (masked_words or next_sentence or classes or spans):
    raise errors.InputError(
      f"models.bert pool = {pool!r}: with a pool the call returns one vector, "
      "and heads have no place; leave out masked_words, next_sentence, classes "
      "and spans."
    )
  if normalise and pool is None:
    raise errors.InputError(
      "models.bert normalise = True: it scales what a pool gives; give a pool "
      "such as 'mean'."
    )
  reads = classes is not None and not each_token
  needed = pool == "pooler" or next_sentence or reads
  if pooler is None:
    pooler = needed or pool is None
  elif needed and not pooler:
    raise errors.InputError(
      "models.bert pooler = False: pool = 'pooler', next_sentence and classes "
      "read it; leave it out."
    )
  for name in (act, head_act or act):
    activation(name)
  return Bert(
    vocab_size=vocab_size,
    **sizes,
    length=length,
    types=types,
    offset=offset,
    pool=pool,
    normalise=normalise,
    pooler=pooler,
    masked_words=masked_words,
    tied=tied,
    causal=causal,
    next_sentence=next_sentence,
    classes=classes,
    each_token=each_token,
    spans=spans,
    pad_id=pad_id,
    mask_pad=mask_pad,
    act=act,
    head_act=head_act,
    epsilon=epsilon,
    dropout=dropout,
    scan=scan,
    remat=remat,
    dtype=jnp.dtype(dtype),
  )
