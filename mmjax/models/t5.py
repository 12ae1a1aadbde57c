"""T5: an encoder-decoder with relative positions.

"Exploring the limits of transfer learning with a unified text-to-text
Transformer", Raffel et al. 2020. Every layer adds the bias of distances that
the first one has; scores are not divided by the root of H; norms subtract no
mean; nothing has a bias. Version 1.1 ("GLU variants improve Transformer",
Shazeer 2020) gates its hidden units and has a head of its own. In umT5
("UniMax", Chung et al. 2023) each layer has its own bias of distances. By its
options the heads that the model hub adds: classes of a text, for which the
decoder reads it once more, or of each token; the ends of an answer.
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
from mmjax.layers.block import Each, Spec, make_cache
from mmjax.layers.embed import TokenEmbed
from mmjax.layers.mlp import activation
from mmjax.layers.norm import norm
from mmjax.layers.position import RelativeBias
from mmjax.layers.seq2seq import State
from mmjax.layers.transformer import REMAT, Stack
from mmjax.ops import masks
from mmjax.parallel import rules

_V1_0 = dict(act="relu", gated=False, tied=True, scale_head=True)
_V1_1 = dict(act="gelu", gated=True, tied=False, scale_head=False)
VARIANTS: dict[str, dict[str, Any]] = {
  name: dict(
    width=width, depth=depth, heads=heads, head_dim=head_dim, mlp=mlp, **more
  )
  for name, width, depth, heads, head_dim, mlp, more in (
    ("small", 512, 6, 8, 64, 2048, {}),
    ("base", 768, 12, 12, 64, 3072, {}),
    ("large", 1024, 24, 16, 64, 4096, {}),
    ("3b", 1024, 24, 32, 128, 16384, {}),
    ("11b", 1024, 24, 128, 128, 65536, {}),
    ("v1.1-small", 512, 8, 6, 64, 1024, _V1_1),
    ("v1.1-base", 768, 12, 12, 64, 2048, _V1_1),
    ("v1.1-large", 1024, 24, 16, 64, 2816, _V1_1),
    ("v1.1-xl", 2048, 24, 32, 64, 5120, _V1_1),
    ("v1.1-xxl", 4096, 24, 64, 64, 10240, _V1_1),
  )
}

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(vocab_size=64, width=32, depth=2, heads=4, head_dim=8, mlp=64)
TINY_INPUTS = dict(tokens=((9,), "int32"), decoder_tokens=((7,), "int32"))


class T5(nn.Module):
  """Encoder and decoder; see `build` for the attributes."""

  vocab_size: int
  width: int
  depth: int
  decoder_depth: int
  heads: int
  head_dim: int
  mlp: int
  act: str = "relu"
  gated: bool = False
  tied: bool = True
  scale_head: bool = True
  buckets: int = 32
  max_distance: int = 128
  layer_bias: bool = False
  classes: int | None = None
  each_token: bool = False
  spans: bool = False
  start_id: int = 0
  eos_id: int = 1
  epsilon: float = 1e-6
  dropout: float = 0.0
  scan: bool | None = None
  remat: str = "none"
  dtype: Any = jnp.float32

  def setup(self):
    self.embedding = TokenEmbed(
      self.vocab_size, self.width, scale=1.0, dtype=self.dtype
    )
    stack = dict(dtype=self.dtype, scan=self.scan, remat=self.remat)
    self.encoder = Stack(self._spec(False), self.depth, **stack)
    self.decoder = Stack(self._spec(True), self.decoder_depth, **stack)
    distances = (self.heads, self.buckets, self.max_distance)
    own = (self.depth, self.decoder_depth) if self.layer_bias else (None, None)
    self.encoder_bias = RelativeBias(*distances, True, own[0])
    self.decoder_bias = RelativeBias(*distances, False, own[1])
    rms = functools.partial(norm, "rms", epsilon=self.epsilon, dtype=self.dtype)
    self.encoder_norm, self.decoder_norm = rms(), rms()
    self.drop = nn.Dropout(self.dropout)
    if self.classes is not None:
      if not self.each_token:
        self.classes_dense = dense(self.width, name=None, dtype=self.dtype)
      self.classes_head = dense(
        self.classes, name=None, axis="classes", dtype=self.dtype
      )
    if self.spans:
      self.spans_head = dense(2, name=None, dtype=self.dtype)
    if not self.tied:
      init = rules.with_axes(nn.initializers.normal(1.0), ("embed", "vocab"))
      self.head = nn.Dense(
        self.vocab_size, use_bias=False, dtype=self.dtype, kernel_init=init
      )

  def _spec(self, cross: bool) -> Spec:
    return Spec(
      self.heads,
      self.mlp,
      head_dim=self.head_dim,
      scale=1.0,
      act=self.act,
      gated=self.gated,
      norm="rms",
      epsilon=self.epsilon,
      biases="",
      mlp_bias=False,
      cross=cross,
      dropout=self.dropout,
    )

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
        token (0) and so is shifted to the right. None is the encoder alone,
        or with a head of text or spans the source so shifted.
      mask: int or bool [B M], 0 where the source is padding; None is nowhere.
      train: dropout on; needs the rng "dropout" if its rate is above 0.

    Returns:
      Logits float32 [B T V]; without a target, the encoder's features [B M D].
      With classes their logits [B C], read at the last end of the source, or
      of each of its tokens [B M C]; with spans {"start": [B T], "end": [B T]}.
    """
    reads_again = self.spans or (self.classes is not None)
    if self.each_token or (decoder_tokens is None and not reads_again):
      memory = self.encode(tokens, mask, train=train)
      return self.classes_head(memory) if self.each_token else memory
    if decoder_tokens is None:
      decoder_tokens = seq2seq.shifted(tokens, self.start_id)
    x = self.hidden(tokens, decoder_tokens, mask, train=train)
    if self.spans:
      return seq2seq.ends(self.spans_head(x))
    if self.classes is None:
      return self._logits(x)
    x = pooling.at(x, seq2seq.last_end(tokens, self.eos_id))
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
    x = self.drop(self.embedding(decoder_tokens), deterministic=not train)
    x = self.decoder(
      x,
      masks.Causal(),
      not train,
      **self._biased(self.decoder_bias.spec()),
      memory=memory,
      memory_mask=seq2seq.keys(mask),
    )
    return self.drop(self.decoder_norm(x), deterministic=not train)

  def _biased(self, bias: Any) -> dict[str, Any]:
    return {"each": Each(bias=bias)} if self.layer_bias else {"bias": bias}

  def encode(
    self,
    tokens: jax.Array,
    mask: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Returns the encoder's features [B M D]; see `__call__`."""
    tokens = rules.constrain(tokens, "batch", None)
    x = self.drop(self.embedding(tokens), deterministic=not train)
    bias = self._biased(self.encoder_bias.spec())
    x = self.encoder(x, seq2seq.keys(mask), not train, **bias)
    return self.drop(self.encoder_norm(x), deterministic=not train)

  def start(
    self,
    prompt: jax.Array,
    *,
    slots: int,
    tokens: jax.Array,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, State]:
    """Encodes a source and begins a target; see `layers.generate`."""
    memory = self.encode(tokens, mask)
    layers = make_cache(
      self._spec(True),
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
    seen = masks.cached(batch, slots, slot, length)
    bias = self.decoder_bias(seen.q_positions[:1], seen.kv_positions[:1])
    x, layers = self.decoder(
      self.embedding(tokens),
      seen,
      **self._biased(bias),
      memory=memory,
      memory_mask=masks.Keys(state.mask),
      cache=state.layers,
      slot=slot,
    )
    x = self._logits(self.decoder_norm(x[:, -1:]))
    return x[:, 0], State(layers, state.mask)

  def _logits(self, x: jax.Array) -> jax.Array:
    if self.scale_head:
      x = x * self.width**-0.5
    x = self.embedding.attend(x) if self.tied else self.head(x)
    return rules.constrain(x.astype(jnp.float32), "batch", "length", "vocab")


def build(
  variant: str | None = None,
  *,
  vocab_size: int = 32128,
  width: int | None = None,
  depth: int | None = None,
  decoder_depth: int | None = None,
  heads: int | None = None,
  head_dim: int | None = None,
  mlp: int | None = None,
  act: str | None = None,
  gated: bool | None = None,
  tied: bool | None = None,
  scale_head: bool | None = None,
  buckets: int = 32,
  max_distance: int = 128,
  layer_bias: bool = False,
  classes: int | None = None,
  each_token: bool = False,
  spans: bool = False,
  start_id: int = 0,
  eos_id: int = 1,
  epsilon: float = 1e-6,
  dropout: float = 0.0,
  scan: bool | None = None,
  remat: str = "none",
  dtype: str = "float32",
) -> T5:
  """Builds an encoder-decoder.

  Args:
    variant: a size of `VARIANTS`, or None. What is given beside it goes
      before it.
    vocab_size: V.
    width: D. depth: blocks of the encoder. decoder_depth: of the decoder, None
      is as many. heads: N. head_dim: H, N H need not be D. mlp: F.
    act: "relu" in version 1.0, "gelu" (tanh) in 1.1. gated: as in 1.1.
    tied: the head is the table of embeddings, as in 1.0.
    scale_head: features are multiplied by D**-0.5 before the head, as in 1.0.
    buckets, max_distance: see `ops.bias.relative_buckets`. layer_bias: each
      layer has its own, as in umT5.
    classes: C of a head of the whole text, or with each_token of each token;
      None is none. spans: a head that says where an answer begins and ends.
    start_id, eos_id: what the decoder begins with where it is not given, and
      the end of text where classes are read.
    epsilon: of the norms. dropout: rate.
    scan: whether to loop over the blocks, see `layers.loop`.
    remat: "none", "full", "dots": see `layers.transformer.Stack`.
    dtype: of the computation; parameters and logits are float32.

  Raises:
    InputError: an unknown name, or a size that is not given.
  """
  sizes = dict(
    width=width, depth=depth, heads=heads, head_dim=head_dim, mlp=mlp
  )
  ways = dict(act=act, gated=gated, tied=tied, scale_head=scale_head)
  given: dict[str, Any] = sizes | ways
  known: dict[str, Any] = dict(_V1_0)
  if variant is not None:
    if variant not in VARIANTS:
      raise errors.unknown("models.t5 variant", variant, VARIANTS)
    known |= VARIANTS[variant]
  given = {k: known.get(k) if v is None else v for k, v in given.items()}
  missing = [name for name, value in given.items() if value is None]
  if missing:
    raise errors.InputError(
      f"models.t5: {', '.join(missing)} not given; give them, or a variant such "
      "as 'small'."
    )
  if remat not in REMAT:
    raise errors.unknown("models.t5 remat", remat, REMAT)
  activation(given["act"])
  return T5(
    vocab_size=vocab_size,
    decoder_depth=given["depth"] if decoder_depth is None else decoder_depth,
    **given,
    buckets=buckets,
    max_distance=max_distance,
    layer_bias=layer_bias,
    classes=classes,
    each_token=each_token,
    spans=spans,
    start_id=start_id,
    eos_id=eos_id,
    epsilon=epsilon,
    dropout=dropout,
    scan=scan,
    remat=remat,
    dtype=jnp.dtype(dtype),
  )
