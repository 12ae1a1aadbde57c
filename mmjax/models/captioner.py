"""Cap and CapPa: an image encoder that learns by writing captions.

"Image captioners are scalable vision learners too", Tschannen et al. 2023
(github google-research/big_vision, proj/cappa). An encoder's tokens are read
by cross-attention of a decoder, whose attentions have no biases and whose
norms and MLPs have none either but for the last norm. The decoder writes a
caption in one of two ways:

  causal    each token from those before it, shifted by one, as in any decoder
  parallel  all tokens at once: every input is one learned embedding, and
            nothing but its position is known of any token. Three quarters of
            the examples of a CapPa are trained so, those of a Cap never.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.build import build as build_plugin
from mmjax.layers.block import Cache, Spec, make_cache
from mmjax.layers.embed import TokenEmbed
from mmjax.layers.norm import layer_norm
from mmjax.layers.position import LearnedSequence, sincos2d
from mmjax.layers.transformer import REMAT, SIZES, Stack
from mmjax.ops import masks
from mmjax.parallel import rules

POSEMBS = ("learn", "sincos2d")
# The decoder is as wide as the encoder and half as deep: so is the config that
# was published, of B/16 (12 and 6 blocks), and the others follow it.
VARIANTS: dict[str, dict[str, Any]] = {
  f"{size}/{patch}": dict(
    SIZES[size],
    image=dict(name="vit", variant=f"{size}/{patch}"),
    depth=SIZES[size]["depth"] // 2,
  )
  for size, patch in (
    ("S", 16),
    ("M", 16),
    ("B", 32),
    ("B", 16),
    ("L", 16),
    ("L", 14),
  )
}
# What the decoder reads before the first token of a caption.
START = 0

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(
  image=dict(name="vit", width=32, depth=2, heads=4, mlp=64, patch=8),
  vocab_size=64,
  width=32,
  depth=2,
  heads=4,
  mlp=64,
  length=8,
  head_std=0.1,  # else no other parameter has a gradient at the start
)
TINY_INPUTS = dict(
  image=((16, 16, 3), "float32"),
  tokens=((8,), "int32"),
  parallel=((), "bool"),
)


class Captioner(nn.Module):
  """An image encoder and a decoder; see `build` for the attributes."""

  image: nn.Module
  vocab_size: int
  width: int
  depth: int
  length: int
  spec: Spec
  posemb: str = "learn"
  masked: bool = True
  head_std: float = 0.0
  scan: bool | None = None
  remat: str = "none"
  dtype: Any = jnp.float32

  def setup(self):
    D, V = self.width, self.vocab_size
    normal, zeros = nn.initializers.normal, nn.initializers.zeros
    self.embedding = TokenEmbed(V, D, scale=1.0, dtype=self.dtype)
    if self.masked:
      self.mask = self.param(
        "mask", rules.with_axes(normal(1.0), ("positions", "embed")), (1, D)
      )
    if self.posemb == "learn":
      self.places = LearnedSequence(self.length, D**-0.5)
    self.decoder = Stack(
      self.spec,
      self.depth,
      dtype=self.dtype,
      scan=self.scan,
      remat=self.remat,
    )
    self.norm = layer_norm(epsilon=self.spec.epsilon, dtype=self.dtype)
    start = normal(self.head_std) if self.head_std else zeros
    self.head = self.param(
      "head", rules.with_axes(start, ("embed", "vocab")), (D, V)
    )
    self.head_bias = self.param(
      "head_bias", rules.with_axes(zeros, ("vocab",)), (V,)
    )

  def __call__(
    self,
    image: jax.Array,
    tokens: jax.Array,
    parallel: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Predicts each token of a caption.

    Args:
      image: [B Y X C], see `models.vit`.
      tokens: int32 [B T], the caption as it is to be predicted, without the
        start token: it is shifted to the right here. Padding, id 0, is read as
        any other token.
      parallel: bool [B], which rows are predicted in parallel: of their tokens
        nothing is read. None is none of them.
      train: dropout on; needs the rng "dropout" if any rate is above 0.

    Returns:
      Logits float32 [B T V], of token t at place t; and what the encoder says:
      {"image": all its tokens [B M D'], "pre_logits": its features [B D']}.

    Raises:
      InputError: more tokens than there are positions; rows in parallel of a
        model that has no embedding for them.
    """
    memory, features = self.see(image, train=train)
    tokens = rules.constrain(tokens, "batch", None)
    T = tokens.shape[1]
    shifted = jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=START)[:, :T]
    x = self._embed(shifted, 0)
    seen: masks.Mask = masks.Causal()
    if parallel is not None:
      if not self.masked:
        raise errors.InputError(
          "models.captioner parallel: the model was built with masked = False, "
          "as a Cap; leave it out, or build with masked = True."
        )
      x = jnp.where(parallel[:, None, None], self._hidden(T), x)
      seen = seen | masks.KeyPadding(jnp.where(parallel, T, 0))
    x = rules.constrain(x, "batch", "length", "embed")
    x = self.decoder(x, seen, not train, memory=memory)
    return self._logits(x), {"image": memory, "pre_logits": features}

  def see(
    self, image: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Maps images to what is attended to [B M D'], and to features [B D']."""
    features, out = self.image(image, train=train)
    return out["tokens"], features

  def start(
    self, prompt: jax.Array, *, slots: int, image: jax.Array
  ) -> tuple[jax.Array, Cache]:
    """Computes a prompt, for `layers.generate`.

    Args:
      prompt: int32 [B P], `START` and perhaps the begin of a caption.
      slots: the longest text, prompt included: the start and `length` tokens.
      image: as in `__call__`.

    Returns:
      Logits [B V] and the cache.

    Raises:
      InputError: more slots than positions.
    """
    # The last token that is written is never read.
    if slots > self.length + 1:
      raise errors.InputError(
        f"models.captioner length = {self.length}: the start and as many "
        f"tokens are all that it writes, not {slots}; decode less."
      )
    memory, _ = self.see(image)
    cache = make_cache(
      self.spec,
      self.depth,
      width=self.width,
      batch=prompt.shape[0],
      slots=slots,
      memory=memory.shape[1],
      dtype=self.dtype,
    )
    return self._step(cache, prompt, jnp.int32(0), memory)

  def step(
    self, cache: Cache, tokens: jax.Array, slot: jax.Array
  ) -> tuple[jax.Array, Cache]:
    """Continues by tokens int32 [B T] from a slot on; see `start`."""
    return self._step(cache, tokens, slot, None)

  def _step(self, cache, tokens, slot, memory):
    B, T = tokens.shape
    x, cache = self.decoder(
      self._embed(tokens, slot),
      masks.cached(B, cache.own.k.shape[2], slot, T),
      memory=memory,
      cache=cache,
      slot=slot,
    )
    return self._logits(x[:, -1:])[:, 0], cache

  def _embed(self, tokens: jax.Array, first: Any) -> jax.Array:
    """Returns [B T D] of tokens that stand from `first` on."""
    T = tokens.shape[1]
    x = self.embedding(tokens) + self._table(first, T)
    return rules.constrain(x, "batch", "length", "embed")

  def _hidden(self, length: int) -> jax.Array:
    """Returns [1 T D] of tokens that are not known."""
    return self.mask.astype(self.dtype)[None] + self._table(0, length)

  def _table(self, first: Any, length: int) -> jax.Array:
    """Returns positions [1 T D]."""
    if length > self.length:
      raise errors.InputError(
        f"a caption of {length} tokens, but the model has positions for "
        f"length = {self.length}; shorten the text or raise length."
      )
    if self.posemb == "learn":
      table = self.places(self.length, self.width)
    else:  # of a grid with one row
      table = jnp.asarray(sincos2d(1, self.length, self.width))
    table = jax.lax.dynamic_slice_in_dim(table, first, length)
    return table.astype(self.dtype)[None]

  def _logits(self, x: jax.Array) -> jax.Array:
    x = jnp.einsum(
      "btd,dv->btv",
      self.norm(x),
      self.head.astype(self.dtype),
      preferred_element_type=jnp.float32,
    )
    x = x + self.head_bias[None, None]
    return rules.constrain(x, "batch", "length", "vocab")


def build(
  variant: str | None = None,
  *,
  image: Mapping[str, Any] | None = None,
  vocab_size: int = 32_000,
  width: int | None = None,
  depth: int | None = None,
  heads: int | None = None,
  mlp: int | None = None,
  length: int = 64,
  posemb: str = "learn",
  masked: bool = True,
  bias: bool = False,
  head_std: float = 0.0,
  dropout: float = 0.0,
  scan: bool | None = None,
  remat: str = "none",
  dtype: str = "float32",
) -> Captioner:
  """Builds a Cap or a CapPa.

  Args:
    variant: of `VARIANTS`, or None. What is given beside it goes before it.
    image: name and keywords of the image encoder.
    vocab_size: V. width: D of the decoder. depth: its blocks. heads: N. mlp: F.
    length: T of the longest caption, without the start token.
    posemb: of the decoder, "learn" or "sincos2d".
    masked: an embedding stands for tokens that are not known, as parallel
      prediction wants: CapPa. False is Cap.
    bias: the decoder's MLPs and the norms of its blocks have biases.
    head_std: standard deviation of the head's kernel at the start.
    dropout: rate, in the decoder.
    scan, remat: of the decoder, see `layers.transformer.Stack`.
    dtype: of the computation, also of an image encoder that does not say its;
      parameters and logits are float32.

  Raises:
    InputError: an unknown name, or a size that is not given.
  """
  sizes: dict[str, Any] = dict(
    image=image, width=width, depth=depth, heads=heads, mlp=mlp
  )
  if variant is not None:
    if variant not in VARIANTS:
      raise errors.unknown("models.captioner variant", variant, VARIANTS)
    known = VARIANTS[variant]
    sizes = {k: known[k] if v is None else v for k, v in sizes.items()}
  missing = [name for name, value in sizes.items() if value is None]
  if missing:
    raise errors.InputError(
      f"models.captioner: {', '.join(missing)} not given; give them, or a "
      "variant such as 'B/16'."
    )
  if posemb not in POSEMBS:
    raise errors.unknown("models.captioner posemb", posemb, POSEMBS)
  if remat not in REMAT:
    raise errors.unknown("models.captioner remat", remat, REMAT)
  return Captioner(
    image=build_plugin("models", **{"dtype": dtype, **sizes["image"]}),
    vocab_size=vocab_size,
    width=sizes["width"],
    depth=sizes["depth"],
    length=length,
    spec=Spec(
      sizes["heads"],
      sizes["mlp"],
      norm="layer" if bias else "layer_no_bias",
      biases="",
      mlp_bias=bias,
      cross=True,
      dropout=dropout,
    ),
    posemb=posemb,
    masked=masked,
    head_std=head_std,
    scan=scan,
    remat=remat,
    dtype=jnp.dtype(dtype),
  )
