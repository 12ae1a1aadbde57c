"""PaliGemma 1 and 2: a language model that reads an image before a text.

"PaliGemma: a versatile 3B VLM for transfer", Beyer et al. 2024, and "PaliGemma
2: a family of versatile VLMs for transfer", Steiner et al. 2024: the patches of
SigLIP's image encoder, without its pooling head, are projected to the width of
Gemma and stand before the text. Image and prompt see each other (prefix-LM),
from end to end also in Gemma 2's layers that see a band; what follows, the
suffix, is causal. Positions start at 1.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.build import build as build_plugin
from mmjax.layers import decoder
from mmjax.layers.block import make_cache
from mmjax.ops import masks
from mmjax.parallel import rules

VARIANTS: dict[str, dict[str, Any]] = {
  name: dict(
    image=dict(name="vit", variant="So400m/14"),
    language=dict(name="decoder_lm", variant=gemma, vocab_size=257_216),
  )
  for name, gemma in (
    ("3b", "gemma-2b"),
    ("2-3b", "gemma2-2b"),
    ("2-10b", "gemma2-9b"),
    ("2-28b", "gemma2-27b"),
  )
}

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(
  image=dict(name="vit", width=32, depth=1, heads=4, mlp=64, patch=8),
  language=dict(
    name="decoder_lm",
    vocab_size=64,
    width=32,
    depth=2,
    heads=4,
    kv_heads=1,
    mlp=64,
    posemb="rotary",
    norm="rms_plus_one",
    gated=True,
    biases="",
    mlp_bias=False,
    embed_scale=True,
  ),
)
TINY_INPUTS = dict(
  image=((16, 16, 3), "float32"),
  tokens=((8,), "int32"),
  suffix=((8,), "int32"),
)


class State(NamedTuple):
  """What decoding keeps.

  Attributes:
    language: of the language model, image and text.
    first: int32 [B], tokens of the image, which stand before the text.
  """

  language: decoder.State
  first: jax.Array


class PaliGemma(nn.Module):
  """An image encoder, a projection and a language model; see `build`."""

  image: nn.Module
  language: decoder.DecoderLM
  dtype: Any = jnp.float32

  def setup(self):
    self.projection = nn.Dense(
      self.language.width,
      dtype=self.dtype,
      kernel_init=rules.with_axes(
        nn.initializers.lecun_normal(), ("embed", None)
      ),
      bias_init=rules.with_axes(nn.initializers.zeros, ("norm",)),
    )

  def __call__(
    self,
    image: jax.Array,
    tokens: jax.Array,
    mask: jax.Array | None = None,
    suffix: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the logits of the token after each.

    Args:
      image: [B Y X C], see `models.vit`.
      tokens: int32 [B T], the text without places for the image: prompt, then
        suffix.
      mask: [B T], 0 where there is no token, on either side; None is all.
      suffix: [B T], 0 in the prompt and 1 after it; None is all prompt, which
        tokens see to its end.
      train: dropout on; needs the rng "dropout" if any rate is above 0.

    Returns:
      Logits float32 [B T V], and {"image": the projected patches [B M D],
      "tokens": what the head reads [B T D]}. Both mean nothing where there is
      no token.
    """
    seen = self.see(image, train=train)
    B, M, _ = seen.shape
    valid = _present(tokens, mask)
    prompt = valid if suffix is None else valid & (suffix == 0)
    front = jnp.ones((B, M), bool)
    valid = jnp.concatenate([front, valid], 1)
    prompt = jnp.concatenate([front, prompt], 1).astype(jnp.int32)
    prefix = masks.Segments(prompt, prompt)
    causal = self.language.by_letter(masks.Causal(), masks.Banded)
    rule = tuple((mask | prefix) & masks.Keys(valid) for mask in causal)
    positions = _positions(valid)
    x = self._joined(seen, tokens, positions[:, M:], train)
    x = self.language.decode(x, rule, positions, train=train)
    x = x[:, M:]
    return self.language.logits(x), {"image": seen, "tokens": x}

  def see(self, image: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps images to tokens of the language model [B M D]."""
    x = self.projection(self.image(image, train=train)[1]["tokens"])
    return rules.constrain(x, "batch", "length", "embed")

  def _joined(self, seen, tokens, positions, train):
    # Words are multiplied by the root of the width, and patches are not.
    words = self.language.embed(tokens, positions, train=train)
    x = jnp.concatenate([seen.astype(words.dtype), words], 1)
    return rules.constrain(x, "batch", "length", "embed")

  def start(
    self,
    prompt: jax.Array,
    *,
    slots: int,
    image: jax.Array,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, State]:
    """Computes image and prompt, for `layers.generate`.

    Args:
      prompt: int32 [B P], padded on the left.
      slots: the longest text, prompt included.
      image: as in `__call__`.
      mask: [B P], 0 where there is no token.

    Returns:
      Logits [B V] after the prompt, and the state.

    Raises:
      InputError: fewer slots than the prompt has tokens.
    """
    B, P = prompt.shape
    if slots < P:
      raise errors.InputError(
        f"decoding slots = {slots}: the prompt has {P} tokens; raise it."
      )
    seen = self.see(image)
    M = seen.shape[1]
    present = jnp.pad(_present(prompt, mask), ((0, 0), (M, 0)), mode="constant")
    present = present | (jnp.arange(M + P) < M)[None]
    valid = jnp.pad(present, ((0, 0), (0, slots - P)), constant_values=True)
    prefix = present.astype(jnp.int32)
    keys = jnp.pad(prefix, ((0, 0), (0, slots - P)))
    positions = _positions(valid)
    layers = make_cache(
      self.language.spec,
      self.language.depth,
      width=self.language.width,
      batch=B,
      slots=M + slots,
      dtype=self.language.dtype,
    )
    x, layers = self.language.decode(
      self._joined(seen, prompt, positions[:, M : M + P], False),
      (masks.Segments(prefix, keys),) * len(self.language.pattern),
      positions[:, : M + P],
      cache=layers,
      slot=jnp.int32(0),
    )
    state = State(
      decoder.State(layers, valid, positions), jnp.full((B,), M, jnp.int32)
    )
    return self.language.logits(x[:, -1:])[:, 0], state

  def step(
    self, state: State, tokens: jax.Array, slot: jax.Array
  ) -> tuple[jax.Array, State]:
    """Continues by tokens int32 [B T] of the suffix; see `start`."""
    x, language = self.language.step(
      state.language, tokens, slot + state.first[0]
    )
    return x, state._replace(language=language)


def _present(tokens: jax.Array, mask: jax.Array | None) -> jax.Array:
  return jnp.ones(tokens.shape, bool) if mask is None else mask != 0


def _positions(valid: jax.Array) -> jax.Array:
  """Counts tokens from 1; padding on the left has what follows it."""
  return jnp.maximum(jnp.cumsum(valid, 1, dtype=jnp.int32), 1)


def build(
  variant: str | None = None,
  *,
  image: Mapping[str, Any] | None = None,
  language: Mapping[str, Any] | None = None,
  dtype: str = "float32",
) -> PaliGemma:
  """Builds a PaliGemma.

  Args:
    variant: of `VARIANTS`, or None. What is given beside it goes before it.
    image: name and keywords of the image encoder, {"name": "vit", ...}; its
      tokens are read, and it has no pool.
    language: name and keywords of the language model.
    dtype: of the computation, also of parts that do not say theirs.

  Raises:
    InputError: an unknown variant, a part without a name, or one that cannot
      be built.
  """
  parts: dict[str, Any] = dict(image=image, language=language)
  if variant is not None:
    if variant not in VARIANTS:
      raise errors.unknown("models.paligemma variant", variant, VARIANTS)
    known = VARIANTS[variant]
    parts = {k: known[k] if v is None else v for k, v in parts.items()}
  for name, spec in parts.items():
    if not spec or "name" not in spec:
      raise errors.InputError(
        f"models.paligemma {name} = {spec!r}: has no name; add the model's, "
        "for example name='vit' or name='decoder_lm', or give a variant, '3b'."
      )
  tower = {"dtype": dtype, **parts["image"], "pool": "none"}
  model = build_plugin("models", **{"dtype": dtype, **parts["language"]})
  if not isinstance(model, decoder.DecoderLM):
    raise errors.InputError(
      f"models.paligemma language = {dict(parts['language'])!r}: must be a "
      "decoder_lm."
    )
  return PaliGemma(
    image=build_plugin("models", **tower),
    language=model,
    dtype=jnp.dtype(dtype),
  )
