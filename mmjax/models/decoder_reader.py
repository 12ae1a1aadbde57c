"""A decoder language model that classifies a text or its tokens.

What the model hub makes of GPT-2, GPT-Neo and Gemma: a linear layer on the
decoder's features, of the last token for a text ("Improving language
understanding by generative pre-training", Radford et al. 2018), of each token
for tagging, and two scores a token for the ends of an answer.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.build import build as build_plugin
from mmjax.layers import pool as pooling
from mmjax.layers import seq2seq
from mmjax.layers.bert import dense
from mmjax.layers.decoder import DecoderLM
from mmjax.parallel import rules

READS = ("text", "tokens", "spans")

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(
  decoder=dict(
    name="decoder_lm",
    vocab_size=64,
    width=32,
    depth=2,
    heads=4,
    mlp=64,
    length=8,
  ),
  reads="text",
  classes=5,
)
TINY_INPUTS = dict(tokens=((8,), "int32"), mask=((8,), "int32"))


class DecoderReader(nn.Module):
  """A decoder and what reads its features; see `build` for the attributes."""

  decoder: DecoderLM
  reads: str
  classes: int = 2
  use_bias: bool = True
  pad_id: int | None = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> Any:
    """Classifies texts.

    Args:
      tokens, mask, positions: [B T], see `layers.decoder.DecoderLM`.
      train: dropout on; needs the rng "dropout" if any rate is above 0.

    Returns:
      The logits float32 [B C] of a text, read at its last token that is not
      `pad_id`; those of each token [B T C]; or {"start": [B T], "end": [B T]}.
    """
    x = self.decoder.hidden(tokens, mask, positions, train=train)
    x = nn.Dropout(self.decoder.dropout)(x, deterministic=not train)
    if self.reads == "spans":
      ends = dense(2, name="head", dtype=self.dtype)(x)
      return seq2seq.ends(ends.astype(jnp.float32))
    if self.reads == "text":
      x = pooling.at(x, self._last(tokens))
    head = dense(
      self.classes,
      name="head",
      axis="classes",
      use_bias=self.use_bias,
      dtype=self.dtype,
    )
    names = ("batch", "classes") if x.ndim == 2 else ("batch", None, "classes")
    return rules.constrain(head(x).astype(jnp.float32), *names)

  def _last(self, tokens: jax.Array) -> jax.Array:
    """Returns where each text is read, int32 [B]: 0 if it is but padding."""
    places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    if self.pad_id is None:
      return jnp.full(tokens.shape[:1], tokens.shape[1] - 1, jnp.int32)
    return jnp.where(tokens != self.pad_id, places, 0).max(1)


def build(
  *,
  decoder: Mapping[str, Any],
  reads: str = "text",
  classes: int = 2,
  use_bias: bool = True,
  pad_id: int | None = 0,
  dtype: str = "float32",
) -> DecoderReader:
  """Builds a decoder with a head that classifies.

  Args:
    decoder: name and keywords of the decoder, {"name": "decoder_lm", ...}; its
      head is not read, so that it must be tied.
    reads: "text", "tokens" or "spans", see the call.
    classes: C; spans have two scores whatever it is.
    use_bias: of the head.
    pad_id: of padding, which is not read; None reads the last place.
    dtype: of the computation, also of a decoder that does not say its own.

  Raises:
    InputError: an unknown name, a decoder without one, or with a head.
  """
  if reads not in READS:
    raise errors.unknown("models.decoder_reader reads", reads, READS)
  if decoder.get("name") != "decoder_lm" or decoder.get("tied") is False:
    raise errors.InputError(
      f"models.decoder_reader decoder = {dict(decoder)}: its features are "
      "read, and it has no head of its own; give name='decoder_lm' and leave "
      "out tied."
    )
  return DecoderReader(
    decoder=build_plugin("models", **{"dtype": dtype, **decoder}),
    reads=reads,
    classes=classes,
    use_bias=use_bias,
    pad_id=pad_id,
    dtype=jnp.dtype(dtype),
  )
