"""Transformer text encoders: CLIP's, SigLIP's and their kin.

"Learning transferable visual models from natural language supervision",
Radford et al. 2021 (causal, read at the end-of-text token); "Sigmoid loss for
language image pre-training", Zhai et al. 2023 (bidirectional, last token).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers import pool as pooling
from mmjax.layers.block import Spec
from mmjax.layers.embed import TokenEmbed, add_rows
from mmjax.layers.mlp import activation
from mmjax.layers.norm import layer_norm
from mmjax.layers.position import LearnedSequence
from mmjax.layers.transformer import REMAT, SIZES, Stack, sized
from mmjax.ops import masks
from mmjax.parallel import rules

VARIANTS = SIZES
POOLS = ("last", "eot", "mean", "map", "cls")

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(vocab_size=64, width=32, depth=2, heads=4, mlp=64, length=8)
TINY_INPUTS = dict(tokens=((8,), "int32"))


class TextEncoder(nn.Module):
  """Text encoder; see `build` for the attributes."""

  vocab_size: int
  width: int
  depth: int
  heads: int
  mlp: int
  length: int
  pool: str = "last"
  causal: bool = False
  pad_id: int = 0
  mask_pad: bool = True
  eot_id: int | None = None
  norm_pooled: bool = False
  act: str = "gelu"
  epsilon: float = 1e-6
  dropout: float = 0.0
  drop_path: float = 0.0
  scan: bool | None = None
  remat: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
    """Encodes texts.

    Args:
      tokens: int32 [B T], T at most `length`.
      train: dropout on; needs the rng "dropout" if any rate is above 0.

    Returns:
      Features [B D].

    Raises:
      InputError: more tokens than there are positions.
    """
    tokens = rules.constrain(tokens, "batch", None)
    x = TokenEmbed(
      self.vocab_size, self.width, dtype=self.dtype, name="embedding"
    )(tokens)
    table = LearnedSequence(self.length, name="posemb")(
      tokens.shape[1], self.width
    )
    x = add_rows(x, table)
    x = rules.constrain(x, "batch", "length", "embed")
    x = nn.Dropout(self.dropout)(x, deterministic=not train)

    lengths, mask = None, None
    if self.mask_pad:
      lengths = text_lengths(tokens, self.pad_id)
      mask = masks.KeyPadding(lengths)
    if self.causal:
      mask = masks.Causal() if mask is None else masks.Causal() & mask
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
    )(x, mask, not train)
    norm = layer_norm(epsilon=self.epsilon, dtype=self.dtype, name="norm")
    if self.norm_pooled:
      return norm(self._pooled(x, tokens, lengths))
    return self._pooled(norm(x), tokens, lengths)

  def _pooled(
    self, x: jax.Array, tokens: jax.Array, lengths: jax.Array | None
  ) -> jax.Array:
    if self.pool == "cls":
      return x[:, 0]
    if self.pool == "last":
      if lengths is None:
        return x[:, -1]
      return pooling.at(x, jnp.maximum(lengths - 1, 0))
    if self.pool == "eot":
      # argmax finds the first of equals. OpenAI's end-of-text id is its
      # vocabulary's greatest.
      ends = tokens if self.eot_id is None else tokens == self.eot_id
      return pooling.at(x, ends.argmax(-1))
    if self.pool == "mean":
      return pooling.mean(x, lengths)
    return pooling.MAPHead(
      self.heads,
      self.mlp,
      act=self.act,
      epsilon=self.epsilon,
      dtype=self.dtype,
      name="pool",
    )(x, lengths)


def text_lengths(tokens: jax.Array, pad_id: int) -> jax.Array:
  """Counts tokens up to the last that is no padding: [B T] -> int32 [B]."""
  ends = jnp.arange(1, tokens.shape[1] + 1, dtype=jnp.int32)
  return jnp.where(tokens != pad_id, ends[None], 0).max(-1)


def build(
  variant: str | None = None,
  *,
  vocab_size: int,
  width: int | None = None,
  depth: int | None = None,
  heads: int | None = None,
  mlp: int | None = None,
  length: int = 64,
  pool: str = "last",
  causal: bool = False,
  pad_id: int = 0,
  mask_pad: bool = True,
  eot_id: int | None = None,
  norm_pooled: bool = False,
  act: str = "gelu",
  epsilon: float = 1e-6,
  dropout: float = 0.0,
  drop_path: float = 0.0,
  scan: bool | None = None,
  remat: str = "none",
  dtype: str = "float32",
) -> TextEncoder:
  """Builds a text encoder.

  Args:
    variant: a size of `VARIANTS`, or None. What is given beside it goes
      before it.
    vocab_size: V.
    width: D. depth: blocks. heads: N. mlp: F. length: the longest text.
    pool: "last" token that is no padding (the very last one if mask_pad is
      False, as SigLIP's), "eot" end-of-text token, "mean", "map" attention
      head, "cls" first token.
    causal: a token sees only those before it, and itself.
    pad_id: fills texts up, on the right.
    mask_pad: padding is not seen, nor counted by the pool.
    eot_id: where pool "eot" reads, at its first place; None is the greatest
      id in the text, as in OpenAI's vocabulary.
    norm_pooled: the last norm comes after the pool. Tokens then count by
      their length, so that words seen seldom, whose embeddings are still
      short, count little.
    act: "gelu" (tanh), "gelu_exact", "quick_gelu".
    epsilon: of the norms; 1e-6 in Google's models, 1e-5 in CLIP.
    dropout: rate. drop_path: rate of stochastic depth of the last block.
    scan: whether to loop over the blocks, see `layers.loop`.
    remat: "none", "full", "dots": see `layers.transformer.Stack`.
    dtype: of the computation; parameters are float32.

  Raises:
    InputError: an unknown name, or a size that is not given.
  """
  given = dict(width=width, depth=depth, heads=heads, mlp=mlp)
  sizes = sized("models.text_encoder", variant, given)
  for field, value, known in (("pool", pool, POOLS), ("remat", remat, REMAT)):
    if value not in known:
      raise errors.unknown(f"models.text_encoder {field}", value, known)
  activation(act)
  return TextEncoder(
    vocab_size=vocab_size,
    **sizes,
    length=length,
    pool=pool,
    causal=causal,
    pad_id=pad_id,
    mask_pad=mask_pad,
    eot_id=eot_id,
    norm_pooled=norm_pooled,
    act=act,
    epsilon=epsilon,
    dropout=dropout,
    drop_path=drop_path,
    scan=scan,
    remat=remat,
    dtype=jnp.dtype(dtype),
  )
