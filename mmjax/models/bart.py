"""BART: an encoder-decoder whose norms come after each branch.

"BART: Denoising sequence-to-sequence pre-training", Lewis et al. 2020.
Positions are learned, and the first two rows of their tables are of no token;
embeddings are normalised; the head is the table of embeddings, and adds a bias
that is not learned. By its options mBART ("Multilingual denoising pre-training
for neural machine translation", Liu et al. 2020), norms first; and heads that
classify a text or find an answer, for which the decoder reads it once more.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers import pool as pooling
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

VARIANTS: dict[str, dict[str, int]] = {
  "base": dict(width=768, depth=6, heads=12, mlp=3072),
  "large": dict(width=1024, depth=12, heads=16, mlp=4096),
}
# Rows of the tables of positions before that of the first token.
OFFSET = 2

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(
  vocab_size=64, width=32, depth=2, heads=4, mlp=64, length=12, bias=False
)
TINY_INPUTS = dict(tokens=((9,), "int32"), decoder_tokens=((7,), "int32"))


class BART(nn.Module):
  """Encoder and decoder; see `build` for the attributes."""

  vocab_size: int
  width: int
  depth: int
  decoder_depth: int
  heads: int
  decoder_heads: int
  mlp: int
  decoder_mlp: int
  length: int = 1024
  act: str = "gelu_exact"
  scale_embedding: bool = False
  bias: bool = True
  norms_first: bool = False
  two_tables: bool = False
  tied: bool = True
  classes: int | None = None
  spans: bool = False
  start_id: int | None = 2
  eos_id: int = 2
  dropout: float = 0.0
  scan: bool | None = None
  remat: str = "none"
  dtype: Any = jnp.float32

  def setup(self):
    sizes = (self.vocab_size, self.width)
    self.embedding = TokenEmbed(*sizes, dtype=self.dtype)
    self.decoder_embedding = self.embedding
    if self.two_tables:
      self.decoder_embedding = TokenEmbed(*sizes, dtype=self.dtype)
    linear = functools.partial(dense, name=None, dtype=self.dtype)
    if not self.tied:
      self.head = linear(self.vocab_size, axis="vocab", use_bias=False)
    stack = dict(dtype=self.dtype, scan=self.scan, remat=self.remat)
    spec = self._spec(self.heads, self.mlp, False)
    self.encoder = Stack(spec, self.depth, **stack)
    self.decoder = Stack(self._decoder_spec, self.decoder_depth, **stack)
    self.encoder_places = LearnedSequence(self.length, 0.02, OFFSET)
    self.decoder_places = LearnedSequence(self.length, 0.02, OFFSET)
    norm = functools.partial(layer_norm, epsilon=1e-5, dtype=self.dtype)
    self.encoder_norm, self.decoder_norm = norm(), norm()
    if self.norms_first:
      self.encoder_last, self.decoder_last = norm(), norm()
    if self.classes is not None:
      self.classes_dense = linear(self.width)
      self.classes_head = linear(self.classes, axis="classes")
    if self.spans:
      self.spans_head = linear(2)
    self.drop = nn.Dropout(self.dropout)
    if self.bias:
      # A constant of the model, which no gradient reaches.
      self.head_bias = self.variable(
        "constants", "head_bias", jnp.zeros, (self.vocab_size,)
      )

  def _spec(self, heads: int, mlp: int, cross: bool) -> Spec:
    return Spec(
      heads,
      mlp,
      act=self.act,
      epsilon=1e-5,
      order="pre" if self.norms_first else "post",
      cross=cross,
      dropout=self.dropout,
    )

  @property
  def _decoder_spec(self) -> Spec:
    return self._spec(self.decoder_heads, self.decoder_mlp, True)

  def __call__(
    self,
    tokens: jax.Array,
    decoder_tokens: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> Any:
    """Predicts each token of a target from a source and those before it.

    Args:
      tokens: of the source, int32 [B M].
      decoder_tokens: of the target, int32 [B T], which begins with the start
        token (2) and so is shifted to the right; None is the source so
        shifted.
      mask: int or bool [B M], 0 where the source is padding; None is nowhere.
      train: dropout on; needs the rng "dropout" if its rate is above 0.

    Returns:
      Logits float32 [B T V]. With classes their logits [B C], read at the last
      end of text of the source; with spans {"start": [B T], "end": [B T]}.

    Raises:
      InputError: more tokens than there are positions, or no start.
    """
    if decoder_tokens is None:
      if self.start_id is None:
        raise errors.InputError(
          "models.bart decoder_tokens: not given; give them, or start_id."
        )
      decoder_tokens = seq2seq.shifted(tokens, self.start_id)
    x = self.hidden(tokens, decoder_tokens, mask, train=train)
    if self.spans:
      return seq2seq.ends(self.spans_head(x))
    if self.classes is None:
      return self._logits(x)
    x = pooling.at(x, seq2seq.last_end(tokens, self.eos_id))
    x = self.drop(x, deterministic=not train)
    x = self.drop(jnp.tanh(self.classes_dense(x)), deterministic=not train)
    return rules.constrain(self.classes_head(x), "batch", "classes")

  def hidden(
    self,
    tokens: jax.Array,
    decoder_tokens: jax.Array,
    mask: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Returns what the heads read, [B T D]; see `__call__`."""
    memory = self.encode(tokens, mask, train=train)
    x = self.decoder(
      self._embed(decoder_tokens, "decoder", 0, train),
      masks.Causal(),
      not train,
      memory=memory,
      memory_mask=seq2seq.keys(mask),
    )
    return self.decoder_last(x) if self.norms_first else x

  def encode(
    self,
    tokens: jax.Array,
    mask: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Returns the encoder's features [B M D]; see `__call__`."""
    x = self.encoder(
      self._embed(tokens, "encoder", 0, train),
      seq2seq.keys(mask),
      not train,
    )
    return self.encoder_last(x) if self.norms_first else x

  def start(
    self,
    prompt: jax.Array,
    *,
    slots: int,
    tokens: jax.Array,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, State]:
    """Encodes a source and begins a target; see `layers.generate`.

    Raises:
      InputError: more slots than there are positions.
    """
    seq2seq.check_slots(slots, self.length)
    memory = self.encode(tokens, mask)
    layers = make_cache(
      self._decoder_spec,
      self.decoder_depth,
      width=self.width,
      batch=prompt.shape[0],
      slots=slots,
      memory=tokens.shape[1],
      dtype=self.dtype,
    )
    state = State(layers, seq2seq.there(tokens, mask))
    return self._continue(state, prompt, jnp.zeros((), jnp.int32), memory)

  def step(
    self, cache: State, tokens: jax.Array, slot: jax.Array
  ) -> tuple[jax.Array, State]:
    """Continues a target; see `layers.generate`."""
    return self._continue(cache, tokens, slot, None)

  def _continue(self, state, tokens, slot, memory):
    batch, length = tokens.shape
    slots = state.layers.own.k.shape[2]
    x, layers = self.decoder(
      self._embed(tokens, "decoder", slot, False),
      masks.cached(batch, slots, slot, length),
      memory=memory,
      memory_mask=masks.Keys(state.mask),
      cache=state.layers,
      slot=slot,
    )
    x = self.decoder_last(x[:, -1:]) if self.norms_first else x[:, -1:]
    return self._logits(x)[:, 0], State(layers, state.mask)

  def _embed(self, tokens, side: str, first, train: bool) -> jax.Array:
    tokens = rules.constrain(tokens, "batch", None)
    tables = dict(encoder=self.embedding, decoder=self.decoder_embedding)
    x = tables[side](tokens)
    if self.scale_embedding:
      x = x * self.width**0.5
    places = getattr(self, f"{side}_places")
    rows = places(tokens.shape[1], self.width, first)
    x = getattr(self, f"{side}_norm")(add_rows(x, rows))
    return self.drop(x, deterministic=not train)

  def _logits(self, x: jax.Array) -> jax.Array:
    x = self.decoder_embedding.attend(x) if self.tied else self.head(x)
    x = x.astype(jnp.float32)
    if self.bias:
      x = x + self.head_bias.value[None, None]
    return rules.constrain(x, "batch", "length", "vocab")


def build(
  variant: str | None = None,
  *,
  vocab_size: int = 50265,
  width: int | None = None,
  depth: int | None = None,
  decoder_depth: int | None = None,
  heads: int | None = None,
  decoder_heads: int | None = None,
  mlp: int | None = None,
  decoder_mlp: int | None = None,
  length: int = 1024,
  act: str = "gelu_exact",
  scale_embedding: bool = False,
  bias: bool = True,
  norms_first: bool = False,
  two_tables: bool = False,
  tied: bool = True,
  classes: int | None = None,
  spans: bool = False,
  start_id: int | None = 2,
  eos_id: int = 2,
  dropout: float = 0.0,
  scan: bool | None = None,
  remat: str = "none",
  dtype: str = "float32",
) -> BART:
  """Builds an encoder-decoder.

  Args:
    variant: a size of `VARIANTS`, or None. What is given beside it goes
      before it.
    vocab_size: V. width: D. depth: blocks of the encoder. heads: N. mlp: F.
    decoder_depth, decoder_heads, decoder_mlp: of the decoder; None is as the
      encoder.
    length: the longest source and the longest target.
    act: "gelu" (tanh), "gelu_exact", ...
    scale_embedding: embeddings are multiplied by the root of D.
    bias: the head adds the collection "constants", "head_bias" [V].
    norms_first: of the branches, and one more after each stack, as in mBART.
    two_tables: source and target have a table each, not one for both.
    tied: the head is the table of the target.
    classes: C of a head of the whole text; None is none. spans: a head that
      says where an answer begins and ends.
    start_id, eos_id: what the decoder begins with where it is not given, and
      the end of text where classes are read.
    dropout: rate. scan: whether to loop over the blocks, see `layers.loop`.
    remat: "none", "full", "dots": see `layers.transformer.Stack`.
    dtype: of the computation; parameters and logits are float32.

  Raises:
    InputError: an unknown name, or a size that is not given.
  """
  sizes: dict[str, Any] = dict(width=width, depth=depth, heads=heads, mlp=mlp)
  if variant is not None:
    if variant not in VARIANTS:
      raise errors.unknown("models.bart variant", variant, VARIANTS)
    known = VARIANTS[variant]
    sizes = {k: known[k] if v is None else v for k, v in sizes.items()}
  missing = [name for name, value in sizes.items() if value is None]
  if missing:
    raise errors.InputError(
      f"models.bart: {', '.join(missing)} not given; give them, or a variant "
      "such as 'base'."
    )
  if remat not in REMAT:
    raise errors.unknown("models.bart remat", remat, REMAT)
  activation(act)
  return BART(
    vocab_size=vocab_size,
    **sizes,
    decoder_depth=sizes["depth"] if decoder_depth is None else decoder_depth,
    decoder_heads=decoder_heads or sizes["heads"],
    decoder_mlp=decoder_mlp or sizes["mlp"],
    length=length,
    act=act,
    scale_embedding=scale_embedding,
    bias=bias,
    norms_first=norms_first,
    two_tables=two_tables,
    tied=tied,
    classes=classes,
    spans=spans,
    start_id=start_id,
    eos_id=eos_id,
    dropout=dropout,
    scan=scan,
    remat=remat,
    dtype=jnp.dtype(dtype),
  )
