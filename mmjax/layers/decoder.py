"""A causal language model of blocks, with a cache to decode by.

A sequence may be padded on either side: `mask` says which tokens are there,
and the first of them stands at position 0. To decode, `start` computes a
prompt that is padded on the left, and `step` the tokens after it: see
`layers/generate.py`.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers import norm as norms
from mmjax.layers.block import Cache, Each, Spec, make_cache
from mmjax.layers.embed import TokenEmbed, add_rows, word_logits
from mmjax.layers.position import LearnedSequence, RelativeBias
from mmjax.layers.transformer import Stack
from mmjax.ops import masks
from mmjax.parallel import rules


class State(NamedTuple):
  """What decoding keeps of S slots.

  Attributes:
    layers: keys and values, each [depth B S K H].
    valid: which slots hold a token, or will, bool [B S].
    positions: of the tokens, int32 [B S].
  """

  layers: Cache
  valid: jax.Array
  positions: jax.Array


class DecoderLM(nn.Module):
  """A causal language model.

  Attributes:
    vocab_size: V. width: D. depth: blocks. heads: N. mlp: F.
    head_dim: H, None is D / N. kv_heads: K, None is N.
    length: the longest sequence, where positions are learned.
    posemb: "learn"; "rotary", by theta; "relative", a bias of the scores that
      all layers share, as in T5.
    theta: of rotary positions.
    pattern: what the blocks see, in turn: "g" all before, "b" a band.
    window: of a band: a token sees itself and window - 1 before it.
    scale: of the products of queries and keys, None is H**-0.5.
    scale_falls: it is divided by the number of the block, from 1.
    softcap: of these scores, logits_cap: of the logits, cap * tanh(x / cap)
      ("Gemma 2", 2024); None is none. norm_after: branches end in a norm, too.
    biases: of the attention, letters of "qkvo". mlp_bias: of the MLP.
    act, gated: of the MLP. norm, epsilon: see `layers.norm`.
    embed_scale: embeddings are multiplied by the root of D.
    tied: the head is the table of embeddings.
    pad_vocab: the table has a multiple of this many rows, so that devices can
      share them; the logits of the rows past V are -1e30.
    std: standard deviation of the kernels at the start; those at the end of
      a branch have it divided by the root of 2 * depth.
    embed_dropout, attention_dropout, dropout: rates, on embeddings, weights of
      attention and branches.
    scan: whether to loop over the blocks, see `layers.loop`.
    remat: "none", "full", "dots": see `layers.transformer.Stack`.
    dtype: of the computation; parameters and logits are float32.
  """

  vocab_size: int
  width: int
  depth: int
  heads: int
  mlp: int
  head_dim: int | None = None
  kv_heads: int | None = None
  length: int = 1024
  posemb: str = "learn"
  theta: float = 10_000.0
  pattern: str = "g"
  window: int | None = None
  scale: float | None = None
  scale_falls: bool = False
  softcap: float | None = None
  logits_cap: float | None = None
  norm_after: bool = False
  biases: str = "qkvo"
  mlp_bias: bool = True
  act: str = "gelu"
  gated: bool = False
  norm: str = "layer"
  epsilon: float = 1e-5
  embed_scale: bool = False
  tied: bool = True
  pad_vocab: int = 1
  std: float = 0.02
  embed_dropout: float = 0.0
  attention_dropout: float = 0.0
  dropout: float = 0.0
  scan: bool | None = None
  remat: str = "none"
  dtype: Any = jnp.float32

  def setup(self):
    rows = -(-self.vocab_size // self.pad_vocab) * self.pad_vocab
    self.embedding = TokenEmbed(rows, self.width, self.std, self.dtype)
    if self.posemb == "learn":
      self.places = LearnedSequence(self.length)
    if self.posemb == "relative":
      self.relative = RelativeBias(self.heads, bidirectional=False)
    self.embed_drop = nn.Dropout(self.embed_dropout)
    stack = dict(dtype=self.dtype, scan=self.scan, remat=self.remat)
    self.decoder = Stack(self.spec, self.depth, **stack)
    self.final_norm = norms.norm(
      self.norm, epsilon=self.epsilon, dtype=self.dtype
    )
    if not self.tied:
      init = rules.with_axes(
        nn.initializers.normal(self.std), ("embed", "vocab")
      )
      self.head = self.param("head", init, (self.width, rows))

  @property
  def spec(self) -> Spec:
    """Returns what the blocks are made of."""
    after = self.norm if self.norm_after else None
    return Spec(
      self.heads,
      self.mlp,
      head_dim=self.head_dim,
      kv_heads=self.kv_heads,
      scale=self.scale,
      softcap=self.softcap,
      rotary=self.theta if self.posemb == "rotary" else None,
      act=self.act,
      gated=self.gated,
      norm=self.norm,
      norm_after=after,
      norm_after_mlp=after,
      epsilon=self.epsilon,
      biases=self.biases,
      mlp_bias=self.mlp_bias,
      dropout=self.dropout,
      attention_dropout=self.attention_dropout,
      hidden_dropout=0.0,
      std=self.std,
      out_std=self.std / (2 * max(self.depth, 1)) ** 0.5,
    )

  def __call__(
    self,
    tokens: jax.Array,
    mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Computes the logits of the token after each.

    Args:
      tokens: int32 [B T].
      mask: bool or int [B T], 0 where there is no token; None is all. What
        comes out there means nothing.
      positions: int32 [B T]; None counts the tokens of the mask from 0.
      train: dropout on; needs the rng "dropout" if any rate is above 0.

    Returns:
      float32 [B T V].
    """
    return self.logits(self.hidden(tokens, mask, positions, train=train))

  def hidden(
    self,
    tokens: jax.Array,
    mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Returns the tokens that the head reads, [B T D]; as `__call__`."""
    if positions is None and mask is not None:
      positions = _counted(mask)
    seen = self.by_letter(masks.Causal(), masks.Banded)
    if mask is not None:
      seen = tuple(m & masks.Keys(mask) for m in seen)
    x = self.embed(tokens, positions, train=train)
    return self.decode(x, seen, positions, train=train)

  def by_letter(self, causal: masks.Mask, band: Any) -> tuple[masks.Mask, ...]:
    """Returns the mask of each letter of the pattern."""
    return tuple(
      causal if letter == "g" else causal & band(self.window)
      for letter in self.pattern
    )

  def embed(
    self,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Returns what the first block reads, [B T D], of tokens [B T]."""
    tokens = rules.constrain(tokens, "batch", None)
    x = self.embedding(tokens)
    if self.embed_scale:
      x = x * jnp.asarray(self.width**0.5, x.dtype)
    if self.posemb == "learn":
      T = tokens.shape[1]
      if positions is None:
        x = add_rows(x, self.places(T, self.width))
      else:
        table = self.places(max(self.length, T), self.width).astype(x.dtype)
        x = x + jnp.take(table, positions, axis=0, mode="clip")
    x = rules.constrain(x, "batch", "length", "embed")
    return self.embed_drop(x, deterministic=not train)

  def decode(
    self,
    x: jax.Array,
    mask: tuple[masks.Mask, ...],
    positions: jax.Array | None = None,
    *,
    cache: Cache | None = None,
    slot: jax.Array | None = None,
    train: bool = False,
  ) -> Any:
    """Maps [B T D], of `embed`, to what the head reads.

    Args:
      x: tokens; images may stand among them.
      mask: one for each letter of the pattern.
      positions: int32 [B|1 T], for rotary positions; None is 0, 1, ...
      cache, slot: see `layers.transformer.Stack`.
      train: dropout on.

    Returns:
      [B T D]; with a cache, also the new cache.
    """
    bias = None
    if self.posemb == "relative":
      bias = self.relative.spec()
      if cache is not None:
        first = 0 if slot is None else slot
        queries = first + jnp.arange(x.shape[1], dtype=jnp.int32)[None]
        keys = jnp.arange(cache.own.k.shape[2], dtype=jnp.int32)[None]
        bias = self.relative(queries, keys)
    each = None
    if self.scale_falls:
      each = Each(1.0 / jnp.arange(1, self.depth + 1, dtype=jnp.float32))
    out = self.decoder(
      x,
      mask,
      not train,
      bias=bias,
      each=each,
      positions=positions,
      cache=cache,
      slot=slot,
    )
    if cache is None:
      return self.final_norm(out)
    return self.final_norm(out[0]), out[1]

  def logits(self, x: jax.Array) -> jax.Array:
    """Maps [B T D], of `decode`, to logits float32 [B T V]."""
    if self.tied:
      table = nn.meta.unbox(self.embedding.get_variable("params", "table"))
    else:
      table = self.head
    return word_logits(x, table, self.tied, self.vocab_size, self.logits_cap)

  def start(
    self,
    prompt: jax.Array,
    mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    *,
    slots: int,
  ) -> tuple[jax.Array, State]:
    """Computes a prompt.

    Args:
      prompt: int32 [B T], padded on the left.
      mask, positions: see `__call__`.
      slots: S, the longest sequence, prompt included.

    Returns:
      The logits [B V] after the prompt, and the state for `step`.

    Raises:
      InputError: slots for less than the prompt, or more than positions.
    """
    B, T = prompt.shape
    if slots < T or (self.posemb == "learn" and slots > self.length):
      raise errors.InputError(
        f"decoding slots = {slots}: the prompt has {T} tokens, the model has "
        f"positions for length = {self.length}; give a number between."
      )
    mask = jnp.ones((B, T), bool) if mask is None else mask != 0
    valid = jnp.pad(mask, ((0, 0), (0, slots - T)), constant_values=True)
    counted = _counted(valid)
    if positions is not None:
      more = counted - counted[:, T - 1 : T] + positions[:, -1:]
      counted = jnp.concatenate([positions, more[:, T:]], 1)
    layers = make_cache(
      self.spec,
      self.depth,
      width=self.width,
      batch=B,
      slots=slots,
      dtype=self.dtype,
    )
    return self.step(State(layers, valid, counted), prompt, jnp.int32(0))

  def step(
    self, state: State, tokens: jax.Array, slot: jax.Array
  ) -> tuple[jax.Array, State]:
    """Computes the next tokens.

    Args:
      state: of `start`.
      tokens: int32 [B T].
      slot: int32 scalar, where the first of them stands.

    Returns:
      The logits [B V] after the last of them, and the new state.
    """
    B, T = tokens.shape
    places = jnp.arange(state.valid.shape[1], dtype=jnp.int32)[None]
    keys = jnp.where(state.valid & (places < slot + T), places, -1)
    queries = jnp.tile(slot + jnp.arange(T, dtype=jnp.int32)[None], (B, 1))
    seen = self.by_letter(
      masks.Positions(queries, keys),
      lambda w: masks.Positions(queries, keys, w - 1),
    )
    positions = jax.lax.dynamic_slice_in_dim(state.positions, slot, T, axis=1)
    x, layers = self.decode(
      self.embed(tokens, positions),
      seen,
      positions,
      cache=state.layers,
      slot=slot,
    )
    return self.logits(x[:, -1:])[:, 0], state._replace(layers=layers)


def _counted(mask: jax.Array) -> jax.Array:
  """Returns positions int32 [B T] that count from 0 where the mask is set."""
  return jnp.maximum(jnp.cumsum(mask != 0, 1, dtype=jnp.int32) - 1, 0)
