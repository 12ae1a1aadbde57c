"""dalle-mini: a text is encoded, and an image's tokens are decoded.

github borisdayma/dalle-mini, Dayma et al. 2021: BART (Lewis et al. 2020) with
gated linear units, the norms of "NormFormer" (Shleifer et al. 2021), no
biases, positions that count from the first row of their table, and a table of
embeddings for texts and another for images. Norms before a dense layer have a
bias and no scale. The 256 tokens are those of a VQGAN, see `models.vqgan`; one
more id, the last, begins an image. Its code has variants: see `build`.

Texts steer more if one without words is decoded beside: logits are then those
without, plus `guidance` times the difference ("super conditioning").
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers.block import Cache, Spec, make_cache
from mmjax.layers.embed import TokenEmbed, add_rows
from mmjax.layers.mlp import activation
from mmjax.layers.norm import norm, placed
from mmjax.layers.position import LearnedSequence
from mmjax.layers.transformer import REMAT, Stack
from mmjax.ops import masks
from mmjax.parallel import rules

_VOCABS = ("vocab_size", "image_vocab_size")
VARIANTS: dict[str, dict[str, int]] = {
  name: dict(
    zip(("width", "depth", "heads", "mlp", *_VOCABS), row, strict=True)
  )
  for name, row in (
    ("mini", (1024, 12, 16, 2730, 50264, 16384)),
    ("mega", (2048, 24, 32, 4096, 50272, 16415)),
  )
}
_EPSILON = 1e-5

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(
  vocab_size=64,
  image_vocab_size=48,
  width=32,
  depth=2,
  heads=4,
  mlp=64,
  text_length=9,
  length=8,
)
TINY_INPUTS = dict(tokens=((9,), "int32"), decoder_tokens=((8,), "int32"))


class Side(NamedTuple):
  """What decoding keeps of a text: caches, and which tokens there are [B M]."""

  layers: Cache
  mask: jax.Array


class State(NamedTuple):
  """What decoding keeps of the text and of one without words (or None)."""

  given: Side
  free: Side | None
  guidance: jax.Array


class DalleMini(nn.Module):
  """Encoder of texts and decoder of images; see `build` for the attributes."""

  vocab_size: int
  image_vocab_size: int
  width: int
  depth: int
  decoder_depth: int
  spec: Spec
  decoder_spec: Spec
  text_length: int = 64
  length: int = 256
  norm: str = "layer"
  last_norm: bool = True
  scale_embedding: bool = False
  scan: bool | None = None
  remat: str = "none"
  dtype: Any = jnp.float32

  def setup(self):
    V, D, dtype = self.image_vocab_size + 1, self.width, self.dtype
    self.encoder_embedding = TokenEmbed(self.vocab_size, D, dtype=dtype)
    self.decoder_embedding = TokenEmbed(V, D, dtype=dtype)
    self.encoder_places = LearnedSequence(self.text_length)
    self.decoder_places = LearnedSequence(self.length)
    stack: Any = dict(dtype=dtype, scan=self.scan, remat=self.remat)
    self.encoder = Stack(self.spec, self.depth, **stack)
    self.decoder = Stack(self.decoder_spec, self.decoder_depth, **stack)
    args: Any = dict(epsilon=_EPSILON, dtype=dtype)
    self.encoder_norm = norm(self.norm, **args)
    self.decoder_norm = norm(self.norm, **args)
    if self.last_norm:
      self.encoder_final_norm = norm(self.spec.norm, **args)
    self.decoder_final_norm = norm(self.decoder_spec.norm, **args)
    self.drop = nn.Dropout(self.spec.dropout)
    init = nn.initializers.normal(0.02)
    init = rules.with_axes(init, ("embed", "vocab"))
    self.head = nn.Dense(V, use_bias=False, dtype=dtype, kernel_init=init)

  def __call__(
    self,
    tokens: jax.Array,
    decoder_tokens: jax.Array,
    mask: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Predicts each token of an image from a text and those before it.

    Args:
      tokens: of the text, int32 [B M].
      decoder_tokens: of the image, int32 [B T], which begins with the start
        token (`image_vocab_size`) and so is shifted to the right.
      mask: int or bool [B M], 0 where the text is padding; None is nowhere.
      train: dropout on; needs the rng "dropout" if its rate is above 0.

    Returns:
      Logits float32 [B T V+1].

    Raises:
      InputError: more tokens than there are positions.
    """
    memory = self.encode(tokens, mask, train=train)
    x = self.decoder(
      self._embed(decoder_tokens, "decoder", None, train),
      masks.Causal(),
      not train,
      memory=memory,
      memory_mask=None if mask is None else masks.Keys(mask != 0),
    )
    return self._logits(x)

  def encode(
    self,
    tokens: jax.Array,
    mask: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Returns the encoder's features [B M D]; see `__call__`."""
    x = self.encoder(
      self._embed(tokens, "encoder", None, train),
      None if mask is None else masks.Keys(mask != 0),
      not train,
    )
    return self.encoder_final_norm(x) if self.last_norm else x

  def start(
    self,
    prompt: jax.Array,
    *,
    slots: int,
    tokens: jax.Array,
    mask: jax.Array | None = None,
    free_tokens: jax.Array | None = None,
    free_mask: jax.Array | None = None,
    guidance: jax.Array | None = None,
  ) -> tuple[jax.Array, State]:
    """Encodes a text and begins an image; see `layers.generate`.

    Args:
      prompt, slots: see there; a prompt begins with the start token.
      tokens, mask: the text, see `__call__`.
      free_tokens, free_mask: the text without words, None is none.
      guidance: float [B], 10 in the published pictures; needs free_tokens.

    Raises:
      InputError: more slots than tokens of an image and the start; guidance
        without a text to go away from, or such a text without guidance.
    """
    if slots > self.length + 1:
      raise errors.InputError(
        f"slots = {slots}: an image has {self.length} tokens and one more that "
        f"begins it; decode to length = {self.length + 1}."
      )
    if (free_tokens is None) != (guidance is None):
      raise errors.InputError(
        "models.dalle_mini guidance and free_tokens: one of them is given and "
        "the other is not; give both, or none."
      )
    batch = prompt.shape[0]
    first = jnp.zeros((), jnp.int32)

    def begin(tokens, mask):
      layers = make_cache(
        self.decoder_spec,
        self.decoder_depth,
        width=self.width,
        batch=batch,
        slots=slots,
        memory=tokens.shape[1],
        dtype=self.dtype,
      )
      there = jnp.ones(tokens.shape, bool) if mask is None else mask != 0
      memory = self.encode(tokens, mask)
      return self._continue(Side(layers, there), prompt, first, memory)

    logits, given = begin(tokens, mask)
    if free_tokens is None or guidance is None:
      return logits, State(given, None, jnp.ones((batch,), jnp.float32))
    free_logits, free = begin(free_tokens, free_mask)
    state = State(given, free, jnp.asarray(guidance, jnp.float32))
    return _guided(logits, free_logits, state), state

  def step(
    self, cache: State, tokens: jax.Array, slot: jax.Array
  ) -> tuple[jax.Array, State]:
    """Continues an image; see `layers.generate`."""
    logits, given = self._continue(cache.given, tokens, slot, None)
    if cache.free is None:
      return logits, cache._replace(given=given)
    free_logits, free = self._continue(cache.free, tokens, slot, None)
    cache = State(given, free, cache.guidance)
    return _guided(logits, free_logits, cache), cache

  def _continue(self, side, tokens, slot, memory):
    batch, length = tokens.shape
    slots = side.layers.own.k.shape[2]
    x, layers = self.decoder(
      self._embed(tokens, "decoder", slot, False),
      masks.cached(batch, slots, slot, length),
      memory=memory,
      memory_mask=masks.Keys(side.mask),
      cache=side.layers,
      slot=slot,
    )
    return self._logits(x[:, -1:])[:, 0], Side(layers, side.mask)

  def _embed(self, tokens, side: str, slot, train: bool) -> jax.Array:
    tokens = rules.constrain(tokens, "batch", None)
    x = getattr(self, f"{side}_embedding")(tokens)
    if self.scale_embedding:
      x = x * self.width**0.5
    places = getattr(self, f"{side}_places")
    table = places(tokens.shape[1], self.width, 0 if slot is None else slot)
    x = getattr(self, f"{side}_norm")(add_rows(x, table))
    return self.drop(x, deterministic=not train)

  def _logits(self, x: jax.Array) -> jax.Array:
    x = self.head(self.decoder_final_norm(x)).astype(jnp.float32)
    return rules.constrain(x, "batch", "length", "vocab")


def _guided(given: jax.Array, free: jax.Array, state: State) -> jax.Array:
  return free + state.guidance[:, None] * (given - free)


def build(
  variant: str | None = None,
  *,
  vocab_size: int | None = None,
  image_vocab_size: int | None = None,
  width: int | None = None,
  depth: int | None = None,
  decoder_depth: int | None = None,
  heads: int | None = None,
  decoder_heads: int | None = None,
  mlp: int | None = None,
  decoder_mlp: int | None = None,
  text_length: int = 64,
  length: int = 256,
  act: str = "gelu_exact",
  gated: bool = True,
  bias: bool = False,
  norm: str = "layer",
  norms: str = "normformer",
  norm_scale: bool = False,
  last_norm: bool = True,
  scale_embedding: bool = False,
  dropout: float = 0.0,
  scan: bool | None = None,
  remat: str = "none",
  dtype: str = "float32",
) -> DalleMini:
  """Builds a model of an image's tokens given a text.

  Args:
    variant: "mini", "mega" or None. What is given beside it goes before it.
    vocab_size: of texts. image_vocab_size: V, of images without the start.
    width: D. depth: blocks of the encoder. heads: N. mlp: F.
    decoder_depth, decoder_heads, decoder_mlp: None is as the encoder.
    text_length: the longest text. length: tokens of an image.
    act: of the MLPs, see `layers.mlp`. gated: whether they have gates.
    bias: of attentions and MLPs.
    norm: its kind, "layer" or "rms". norms: see `layers.norm.PLACES`.
    norm_scale: those before a dense layer have a scale too.
    last_norm: of the encoder, the decoder has one always.
    scale_embedding: embeddings are multiplied by the root of D.
    dropout: rate. scan: whether to loop over the blocks, see `layers.loop`.
    remat: "none", "full", "dots": see `layers.transformer.Stack`.
    dtype: of the computation; parameters and logits are float32.

  Raises:
    InputError: an unknown name, or a size that is not given.
  """
  options = locals()
  sizes: dict[str, Any] = {name: options[name] for name in VARIANTS["mini"]}
  if variant is not None:
    if variant not in VARIANTS:
      raise errors.unknown("models.dalle_mini variant", variant, VARIANTS)
    known = VARIANTS[variant]
    sizes = {k: known[k] if v is None else v for k, v in sizes.items()}
  missing = [name for name, value in sizes.items() if value is None]
  if missing:
    raise errors.InputError(
      f"models.dalle_mini: {', '.join(missing)} not given; give them, or a "
      "variant such as 'mini'."
    )
  if remat not in REMAT:
    raise errors.unknown("models.dalle_mini remat", remat, REMAT)
  activation(act)
  spec = Spec(
    sizes.pop("heads"),
    sizes.pop("mlp"),
    act=act,
    gated=gated,
    **placed(norms, norm, norm_scale),
    epsilon=_EPSILON,
    biases="qkvo" if bias else "",
    mlp_bias=bias,
    dropout=dropout,
    std=0.02,
    out_std=0.02,
  )
  own = dict(heads=decoder_heads or spec.heads, mlp=decoder_mlp or spec.mlp)
  return DalleMini(
    **sizes,
    decoder_depth=sizes["depth"] if decoder_depth is None else decoder_depth,
    spec=spec,
    decoder_spec=dataclasses.replace(spec, **own, cross=True),
    text_length=text_length,
    length=length,
    norm=norm,
    last_norm=last_norm,
    scale_embedding=scale_embedding,
    scan=scan,
    remat=remat,
    dtype=jnp.dtype(dtype),
  )
