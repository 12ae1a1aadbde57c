"""BART's decoder as a language model of its own, without an encoder to read.

"BART: Denoising sequence-to-sequence pre-training", Lewis et al. 2020; with
norms first that of mBART, Liu et al. 2020. Attention to a memory is left out.
Positions count from the first place, be it padding or not, as in the model
hub's; see `models.bart`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers import seq2seq
from mmjax.layers.bert import dense
from mmjax.layers.block import Spec, make_cache
from mmjax.layers.embed import TokenEmbed, add_rows
from mmjax.layers.mlp import activation
from mmjax.layers.norm import layer_norm
from mmjax.layers.position import LearnedSequence
from mmjax.layers.seq2seq import State
from mmjax.layers.transformer import REMAT, Stack
from mmjax.ops import masks
from mmjax.parallel import rules

_EPSILON = 1e-5
# Rows of the table of positions before that of the first token.
_OFFSET = 2

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(vocab_size=64, width=32, depth=2, heads=4, mlp=64, length=12)
TINY_INPUTS = dict(tokens=((9,), "int32"), mask=((9,), "int32"))


class BARTDecoder(nn.Module):
  """Causal blocks over tokens; see `build` for the attributes."""

  vocab_size: int
  width: int
  depth: int
  heads: int
  mlp: int
  length: int = 1024
  act: str = "gelu_exact"
  scale_embedding: bool = False
  norms_first: bool = False
  tied: bool = True
  dropout: float = 0.0
  scan: bool | None = None
  remat: str = "none"
  dtype: Any = jnp.float32

  def setup(self):
    args: Any = dict(epsilon=_EPSILON, dtype=self.dtype)
    self.embedding = TokenEmbed(self.vocab_size, self.width, dtype=self.dtype)
    self.places = LearnedSequence(self.length, 0.02, _OFFSET)
    self.embedding_norm = layer_norm(**args)
    self.decoder = Stack(
      self._spec,
      self.depth,
      dtype=self.dtype,
      scan=self.scan,
      remat=self.remat,
    )
    if self.norms_first:
      self.last_norm = layer_norm(**args)
    self.drop = nn.Dropout(self.dropout)
    if not self.tied:
      own: Any = dict(axis="vocab", use_bias=False, dtype=self.dtype)
      self.head = dense(self.vocab_size, name=None, **own)

  @property
  def _spec(self) -> Spec:
    return Spec(
      self.heads,
      self.mlp,
      act=self.act,
      epsilon=_EPSILON,
      order="pre" if self.norms_first else "post",
      dropout=self.dropout,
    )

  def __call__(
    self,
    tokens: jax.Array,
    mask: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Computes the logits of the token after each.

    Args:
      tokens: int32 [B T].
      mask: bool or int [B T], 0 where there is no token; None is nowhere.
      train: dropout on; needs the rng "dropout" if its rate is above 0.

    Returns:
      float32 [B T V].

    Raises:
      InputError: more tokens than there are positions.
    """
    seen, there = masks.Causal(), seq2seq.keys(mask)
    x = self.drop(self._embed(tokens, 0), deterministic=not train)
    x = self.decoder(x, seen if there is None else seen & there, not train)
    return self._logits(x)

  def start(
    self, prompt: jax.Array, *, slots: int, mask: jax.Array | None = None
  ) -> tuple[jax.Array, State]:
    """Computes a prompt, padded on the left; see `layers.generate`.

    Raises:
      InputError: more slots than there are positions.
    """
    seq2seq.check_slots(slots, self.length)
    batch, length = prompt.shape
    unwritten = ((0, 0), (0, slots - length))
    there = seq2seq.there(prompt, mask)
    there = jnp.pad(there, unwritten, constant_values=True)
    layers = make_cache(
      self._spec,
      self.depth,
      width=self.width,
      batch=batch,
      slots=slots,
      dtype=self.dtype,
    )
    return self.step(State(layers, there), prompt, jnp.int32(0))

  def step(
    self, cache: State, tokens: jax.Array, slot: jax.Array
  ) -> tuple[jax.Array, State]:
    """Continues a text; see `layers.generate`."""
    batch, slots = cache.mask.shape
    seen = masks.cached(batch, slots, slot, tokens.shape[1])
    x, layers = self.decoder(
      self._embed(tokens, slot),
      seen & masks.Keys(cache.mask),
      cache=cache.layers,
      slot=slot,
    )
    return self._logits(x[:, -1:])[:, 0], State(layers, cache.mask)

  def _embed(self, tokens: jax.Array, first: Any) -> jax.Array:
    x = self.embedding(rules.constrain(tokens, "batch", None))
    if self.scale_embedding:
      x = x * self.width**0.5
    table = self.places(tokens.shape[1], self.width, first)
    return self.embedding_norm(add_rows(x, table))

  def _logits(self, x: jax.Array) -> jax.Array:
    x = self.last_norm(x) if self.norms_first else x
    x = self.embedding.attend(x) if self.tied else self.head(x)
    return rules.constrain(x.astype(jnp.float32), "batch", "length", "vocab")


def build(
  *,
  vocab_size: int = 50265,
  width: int,
  depth: int,
  heads: int,
  mlp: int,
  length: int = 1024,
  act: str = "gelu_exact",
  scale_embedding: bool = False,
  norms_first: bool = False,
  tied: bool = True,
  dropout: float = 0.0,
  scan: bool | None = None,
  remat: str = "none",
  dtype: str = "float32",
) -> BARTDecoder:
  """Builds a decoder.

  Args:
    vocab_size: V. width: D. depth: blocks. heads: N. mlp: F.
    length: the longest text.
    act: "gelu" (tanh), "gelu_exact", ...
    scale_embedding: embeddings are multiplied by the root of D.
    norms_first: of the branches, and one more at the end, as in mBART.
    tied: the head is the table of embeddings.
    dropout: rate.
    scan: whether to loop over the blocks, see `layers.loop`.
    remat: "none", "full", "dots": see `layers.transformer.Stack`.
    dtype: of the computation; parameters and logits are float32.

  Raises:
    InputError: an unknown name.
  """
  if remat not in REMAT:
    raise errors.unknown("models.bart_decoder remat", remat, REMAT)
  activation(act)
  return BARTDecoder(
    vocab_size,
    width,
    depth,
    heads,
    mlp,
    length,
    act=act,
    scale_embedding=scale_embedding,
    norms_first=norms_first,
    tied=tied,
    dropout=dropout,
    scan=scan,
    remat=remat,
    dtype=jnp.dtype(dtype),
  )
