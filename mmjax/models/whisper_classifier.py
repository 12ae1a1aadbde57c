"""Whisper's encoder with a head that classifies sounds, as the hub has it.

"Robust speech recognition via large-scale weak supervision", Radford et al.
2022, for the encoder. Its features, or a learned mean of what its blocks read
and return ("Deep contextualized word representations", Peters et al. 2018), are
projected, averaged over time and classified.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.build import build as build_plugin
from mmjax.layers import pool as pooling
from mmjax.layers.bert import dense
from mmjax.layers.speech import Encoder
from mmjax.parallel import rules

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(
  encoder=dict(
    name="whisper",
    part="encoder",
    mels=6,
    width=32,
    depth=2,
    heads=4,
    mlp=64,
    audio_length=7,
  ),
  classes=5,
  hidden=16,
  mixed=True,
)
TINY_INPUTS = dict(audio=((13, 6), "float32"))


class WhisperClassifier(nn.Module):
  """An encoder of sounds and its head; see `build` for the attributes."""

  encoder: Encoder
  classes: int
  hidden: int
  mixed: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, audio: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Classifies sounds.

    Args:
      audio: float [B A F], log-mel frames.
      train: dropout on; needs the rng "dropout" if its rate is above 0.

    Returns:
      Logits float32 [B C], and {"encoded": [B ceil(A/2) D], "pre_logits":
      [B hidden]}.
    """
    if not self.mixed:
      encoded = x = self.encoder(audio, train=train)
    else:
      encoded, others = self.encoder(audio, train=train, every=True)
      init = rules.with_axes(nn.initializers.zeros, (None,))
      shares = jax.nn.softmax(self.param("mix", init, (others.shape[0] + 1,)))
      shares = shares.astype(encoded.dtype)
      x = jnp.einsum("n,nbtd->btd", shares[:-1], others) + shares[-1] * encoded
    # The mean of projections is the projection of the mean.
    x = dense(self.hidden, name="projector", dtype=self.dtype)(pooling.mean(x))
    logits = dense(self.classes, name="head", axis="classes", dtype=self.dtype)(
      x
    ).astype(jnp.float32)
    logits = rules.constrain(logits, "batch", "classes")
    return logits, {"encoded": encoded, "pre_logits": x}


def build(
  *,
  encoder: Mapping[str, Any],
  classes: int,
  hidden: int = 256,
  mixed: bool = False,
  dtype: str = "float32",
) -> WhisperClassifier:
  """Builds an encoder of sounds with a head.

  Args:
    encoder: name and keywords of Whisper's encoder, {"name": "whisper",
      "part": "encoder", ...}.
    classes: C.
    hidden: width of the projection before the mean over time.
    mixed: what is projected is a learned mean of all layers, not the last.
    dtype: of the computation, also of an encoder that does not say its own.

  Raises:
    InputError: another encoder, or one that cannot be built.
  """
  if (encoder.get("name"), encoder.get("part")) != ("whisper", "encoder"):
    raise errors.InputError(
      f"models.whisper_classifier encoder = {dict(encoder)}: it is no encoder "
      "of Whisper; give name='whisper' and part='encoder'."
    )
  return WhisperClassifier(
    encoder=build_plugin("models", **{"dtype": dtype, **encoder}),
    classes=classes,
    hidden=hidden,
    mixed=mixed,
    dtype=jnp.dtype(dtype),
  )
