"""Whisper: speech to text, or the audio encoder of it alone.

"Robust speech recognition via large-scale weak supervision", Radford et al.
2022: two convolutions over log-mel frames, the second of stride 2, a pre-norm
encoder, and a decoder that reads it by cross-attention. Projections to keys
have no bias. The features are those of `data.audio_ops.whisper_mel`.

The encoder's positions are sinusoids that are stored, and not trained by the
paper: freeze "encoder/posemb" to do so too.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax import errors
from mmjax.layers.block import Cache, Spec, make_cache
from mmjax.layers.generate import generate
from mmjax.layers.mlp import activation
from mmjax.layers.speech import Decoder, Encoder
from mmjax.layers.transformer import REMAT


def _variants() -> dict[str, dict[str, Any]]:
  found: dict[str, dict[str, Any]] = {}
  for name, width, depth, heads in (
    ("tiny", 384, 4, 6),
    ("base", 512, 6, 8),
    ("small", 768, 12, 12),
    ("medium", 1024, 24, 16),
    ("large", 1280, 32, 20),
  ):
    sizes = dict(width=width, depth=depth, heads=heads, mlp=4 * width)
    found[name] = dict(sizes, mels=80, vocab_size=51_865)
    if name != "large":
      found[f"{name}.en"] = dict(sizes, mels=80, vocab_size=51_864)
  found["large-v3"] = dict(found["large"], mels=128, vocab_size=51_866)
  found["large-v3-turbo"] = dict(found["large-v3"], decoder_depth=4)
  return found


# The published sizes; large-v2 is as large.
VARIANTS = _variants()
PARTS = ("whole", "encoder", "decoder")

# What half of it does without.
_UNREAD = dict(encoder="vocab_size", decoder="mels")

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(
  mels=6,
  vocab_size=64,
  width=32,
  depth=2,
  heads=4,
  mlp=64,
  audio_length=7,
  length=8,
)
TINY_INPUTS = dict(audio=((13, 6), "float32"), decoder_tokens=((5,), "int32"))


class Whisper(nn.Module):
  """Encoder and decoder; see `build` for the attributes."""

  encoder_spec: Spec
  decoder_spec: Spec
  mels: int
  vocab_size: int
  width: int
  depth: int
  decoder_depth: int
  audio_length: int
  length: int
  tied: bool = True
  prompt: tuple[int, ...] = ()
  languages: tuple[int, ...] = ()
  eos_ids: tuple[int, ...] = ()
  pad_id: int = 0
  suppress: tuple[int, ...] = ()
  begin_suppress: tuple[int, ...] = ()
  dtype: Any = jnp.float32
  scan: bool | None = None
  remat: str = "none"

  def setup(self):
    shared: dict[str, Any] = dict(
      width=self.width, dtype=self.dtype, scan=self.scan, remat=self.remat
    )
    sizes: Any = dict(depth=self.depth, audio_length=self.audio_length)
    self.encoder = Encoder(self.encoder_spec, self.mels, **sizes, **shared)
    self.decoder = Decoder(
      self.decoder_spec,
      self.vocab_size,
      depth=self.decoder_depth,
      length=self.length,
      tied=self.tied,
      **shared,
    )

  def __call__(
    self,
    audio: jax.Array,
    decoder_tokens: jax.Array,
    decoder_mask: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the logits of each next token.

    Args:
      audio: float [B A F], log-mel frames.
      decoder_tokens: int32 [B T].
      decoder_mask: bool or int [B T], 0 at tokens that are not seen.
      train: dropout on; needs the rng "dropout" if its rate is above 0.

    Returns:
      Logits [B T V], and {"encoded": [B ceil(A/2) D], "pre_logits": [B T D]}.
    """
    memory = self.encoder(audio, train=train)
    logits, x = self.decoder(decoder_tokens, memory, decoder_mask, train=train)
    return logits, {"encoded": memory, "pre_logits": x}

  def encode(self, audio: jax.Array) -> jax.Array:
    """Returns the encoder's output [B ceil(A/2) D] for audio [B A F]."""
    return self.encoder(audio)

  def start(
    self, prompt: jax.Array, *, slots: int, audio: jax.Array
  ) -> tuple[jax.Array, Cache]:
    """Encodes sounds and reads the prompt; see `layers.generate`.

    Args:
      prompt: int32 [B P].
      slots: the longest text, prompt included.
      audio: [B A F].

    Returns:
      Logits [B V] after the prompt, and the cache.

    Raises:
      InputError: more slots than the decoder has positions.
    """
    if slots > self.length:
      raise errors.InputError(
        f"decoding length = {slots}: the model has positions for "
        f"{self.length}; lower it."
      )
    memory = self.encoder(audio)
    cache = make_cache(
      self.decoder_spec,
      self.decoder_depth,
      width=self.width,
      batch=audio.shape[0],
      slots=slots,
      memory=memory.shape[1],
      dtype=self.dtype,
    )
    logits, _, cache = self.decoder(
      prompt, memory, cache=cache, slot=jnp.int32(0)
    )
    return logits[:, -1], cache

  def step(
    self, cache: Cache, tokens: jax.Array, slot: jax.Array
  ) -> tuple[jax.Array, Cache]:
    """Reads the next tokens int32 [B T]; see `layers.generate`."""
    logits, _, cache = self.decoder(tokens, cache=cache, slot=slot)
    return logits[:, -1], cache


def transcribe(
  model: Whisper,
  variables: Any,
  audio: jax.Array,
  *,
  prompt: Any = None,
  **settings: Any,
) -> jax.Array:
  """Writes down what is said.

  Args:
    model, variables: as `mmjax.load` returns them.
    audio: float [B A F], log-mel frames.
    prompt: int32 [P] or [B P], what the text starts with; None is what the
      checkpoint says: start, language and task if it has several, and no
      timestamps. -1 is the language that is heard.
    **settings: of `layers.generate`, in place of what the checkpoint says:
      the longest text, its end, and tokens that are no speech.

  Returns:
    ids int32 [B L]: the prompt, the text, its end, and padding.

  Raises:
    InputError: a wrong setting, or no prompt.
  """
  prompt = np.asarray(model.prompt if prompt is None else prompt, np.int32)
  if not prompt.size:
    raise errors.InputError(
      "whisper.transcribe prompt = None: the checkpoint does not say what "
      "texts start with; give the ids of its start token, of language and "
      "task if it has several, and of <|notimestamps|>."
    )
  prompt = np.broadcast_to(prompt, (audio.shape[0], prompt.shape[-1]))
  if (prompt < 0).any():
    if not model.languages:
      raise errors.InputError(
        "whisper.transcribe prompt: the checkpoint names no languages to hear; "
        "give the id of one in place of -1."
      )
    heard = _language(model, variables, audio, prompt[:, :1])
    prompt = np.where(prompt < 0, np.asarray(heard)[:, None], prompt)
  given: dict[str, Any] = dict(
    length=model.length,
    eos_ids=model.eos_ids,
    pad_id=model.pad_id,
    suppress=model.suppress,
    begin_suppress=model.begin_suppress,
  )
  return generate(
    model, variables, prompt, dict(audio=audio), **{**given, **settings}
  )


@functools.partial(jax.jit, static_argnums=0)
def _language(model: Whisper, variables, audio, start) -> jax.Array:
  """Returns the likeliest language after the start token [B 1]: ids [B]."""
  logits, _ = model.apply(
    variables, start, slots=1, audio=audio, method="start"
  )
  known = jnp.array(model.languages)
  return known[logits[:, known].argmax(-1)]


def build(
  variant: str | None = None,
  *,
  mels: int | None = None,
  vocab_size: int | None = None,
  width: int | None = None,
  depth: int | None = None,
  heads: int | None = None,
  mlp: int | None = None,
  decoder_depth: int | None = None,
  decoder_heads: int | None = None,
  decoder_mlp: int | None = None,
  audio_length: int = 1500,
  length: int = 448,
  tied: bool = True,
  part: str = "whole",
  act: str = "gelu_exact",
  epsilon: float = 1e-5,
  dropout: float = 0.0,
  prompt: Sequence[int] = (),
  languages: Sequence[int] = (),
  eos_ids: Sequence[int] = (),
  pad_id: int = 0,
  suppress: Sequence[int] = (),
  begin_suppress: Sequence[int] = (),
  scan: bool | None = None,
  remat: str = "none",
  dtype: str = "float32",
) -> Whisper | Encoder | Decoder:
  """Builds a Whisper, or one half of it.

  Args:
    variant: a size of `VARIANTS`, or None. What is given beside it goes
      before it.
    mels: F, of the features. vocab_size: V. width: D. depth: blocks. heads: N.
    mlp: hidden units.
    decoder_depth, decoder_heads, decoder_mlp: of the decoder; None is as in
      the encoder.
    audio_length: the longest encoded sound, half as many as frames.
    length: the longest text.
    tied: the head is the table of tokens.
    part: "whole", "encoder", or "decoder", called with tokens and memory.
    act: of the blocks; between the convolutions it is the exact GELU.
    epsilon: of the norms. dropout: rate.
    prompt, languages, eos_ids, pad_id, suppress, begin_suppress: what
      `transcribe` takes if it is not told: ids that texts start with, that
      may stand for -1 there, that end them, that fill them up, that they
      never hold, that they do not start with.
    scan: whether to loop over the blocks, see `layers.loop`.
    remat: "none", "full", "dots": see `layers.transformer.Stack`.
    dtype: of the computation; parameters are float32.

  Raises:
    InputError: an unknown name, or a size that is missing.
  """
  sizes: dict[str, Any] = dict(
    mels=mels,
    vocab_size=vocab_size,
    width=width,
    depth=depth,
    heads=heads,
    mlp=mlp,
    decoder_depth=decoder_depth,
  )
  if variant is not None:
    if variant not in VARIANTS:
      raise errors.unknown("models.whisper variant", variant, VARIANTS)
    known = VARIANTS[variant]
    sizes = {k: known.get(k) if v is None else v for k, v in sizes.items()}
  if sizes["decoder_depth"] is None:
    sizes["decoder_depth"] = sizes["depth"]
  for field, value, known in (("part", part, PARTS), ("remat", remat, REMAT)):
    if value not in known:
      raise errors.unknown(f"models.whisper {field}", value, known)
  unread = _UNREAD.get(part)
  missing = [k for k, v in sizes.items() if v is None and k != unread]
  if missing:
    raise errors.InputError(
      f"models.whisper: {', '.join(missing)} not given; give them, or a "
      "variant such as 'tiny'."
    )
  activation(act)
  blocks: dict[str, Any] = dict(heads=sizes.pop("heads"), mlp=sizes.pop("mlp"))
  spec = Spec(**blocks, act=act, epsilon=epsilon, biases="qvo", dropout=dropout)
  shared: dict[str, Any] = dict(
    audio_length=audio_length, scan=scan, remat=remat, dtype=jnp.dtype(dtype)
  )
  if part == "encoder":
    own = (sizes["mels"], sizes["width"], sizes["depth"])
    return Encoder(spec, *own, **shared)
  halves = dict(heads=decoder_heads or spec.heads, mlp=decoder_mlp or spec.mlp)
  decoder_spec = dataclasses.replace(spec, **halves, cross=True)
  texts: Any = dict(length=length, tied=tied)
  if part == "decoder":
    own = (sizes["vocab_size"], sizes["width"], sizes["decoder_depth"])
    del shared["audio_length"]
    return Decoder(decoder_spec, *own, **texts, **shared)
  return Whisper(
    encoder_spec=spec,
    decoder_spec=decoder_spec,
    **sizes,
    **shared,
    **texts,
    pad_id=pad_id,
    prompt=tuple(prompt),
    languages=tuple(languages),
    eos_ids=tuple(eos_ids),
    suppress=tuple(suppress),
    begin_suppress=tuple(begin_suppress),
  )
