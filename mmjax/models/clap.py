"""CLAP: sounds and texts in one space.

"Large-scale contrastive language-audio pretraining with feature fusion and
keyword-to-caption augmentation", Wu et al. 2023. Released models have HTS-AT,
fused or not, and RoBERTa of size base, each with a projection of two layers.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.build import build as build_plugin
from mmjax.layers import pool as pooling
from mmjax.layers.mlp import MLP, activation
from mmjax.parallel import rules

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(
  audio=dict(
    name="htsat",
    width=8,
    depths=(1, 1),
    heads=(2, 4),
    bins=4,
    side=16,
    patch=2,
    window=4,
  ),
  text=dict(
    name="bert",
    vocab_size=64,
    width=16,
    depth=1,
    heads=2,
    mlp=32,
    length=10,
    types=1,
    offset=1,
    pad_id=1,
    pool="pooler",
  ),
  embed_dim=16,
)
TINY_INPUTS = dict(audio=((50, 4), "float32"), text=((8,), "int32"))


class Scales(NamedTuple):
  """How cosines become logits, by what looks for its like; float32 scalars.

  Attributes:
    audio: times cosines [audio text], of a sound that looks for its text.
    text: times cosines [text audio].
  """

  audio: jax.Array
  text: jax.Array


class Clap(nn.Module):
  """An audio and a text encoder; see `build` for the attributes."""

  audio: nn.Module
  text: nn.Module
  embed_dim: int
  act: str
  temperature_init: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    audio: jax.Array | None = None,
    text: jax.Array | None = None,
    mask: jax.Array | None = None,
    is_longer: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array | None, jax.Array | None, Scales]:
    """Embeds sounds, texts or both.

    Args:
      audio: what the audio encoder takes, [B A F] or fused [B 4 A F], or None.
      text: int32 [B T], or None.
      mask: int or bool [B T], where it is 0 no token looks; None is where
        there is padding.
      is_longer: bool or int [B], with audio [B 4 A F]: whether its parts are
        read.
      train: dropout on; see the audio encoder for running statistics.

    Returns:
      The embeddings of the sounds and of the texts, float32 [B E] of length 1,
      None for what was not given; and the scales of the logits.
    """
    audio_BE, text_BE = None, None
    if audio is not None:
      given = {} if is_longer is None else dict(is_longer=is_longer)
      found = self.audio(audio, train=train, **given)
      x = found[0] if isinstance(found, tuple) else found
      audio_BE = self._joint(x, "audio_projection")
    if text is not None:
      given = {} if mask is None else dict(mask=mask)
      text_BE = self._joint(
        self.text(text, train=train, **given), "text_projection"
      )
    scales = (self._scale(f"log_t_{x}") for x in Scales._fields)
    return audio_BE, text_BE, Scales(*scales)

  def _joint(self, x: jax.Array, name: str) -> jax.Array:
    x = MLP(
      self.embed_dim,
      act=self.act,
      out_width=self.embed_dim,
      dtype=self.dtype,
      name=name,
    )(x[:, None])[:, 0]
    return rules.constrain(pooling.unit(x), "batch", "joint")

  def _scale(self, name: str) -> jax.Array:
    # Learned as a logarithm, so that steps are relative and t stays positive.
    init = nn.initializers.constant(math.log(self.temperature_init))
    return jnp.exp(self.param(name, rules.with_axes(init, ()), ()))


def build(
  *,
  audio: Mapping[str, Any],
  text: Mapping[str, Any],
  embed_dim: int = 512,
  act: str = "relu",
  temperature_init: float = 1 / 0.07,
  dtype: str = "float32",
) -> Clap:
  """Builds a CLAP.

  Args:
    audio: name and keywords of the audio encoder, {"name": "htsat", ...}.
    text: name and keywords of a text encoder that gives one vector a text,
      {"name": "bert", "pool": "pooler", ...}.
    embed_dim: E, width of both layers of the projections.
    act: between them.
    temperature_init: of both scales at the start.
    dtype: of the computation, also of encoders that do not say theirs.

  Raises:
    InputError: an encoder without a name, or that cannot be built; a
      temperature that is not above 0; an unknown activation.
  """
  if not temperature_init > 0:
    raise errors.InputError(
      f"models.clap temperature_init = {temperature_init}: must be above 0; "
      "CLAP has 1 / 0.07."
    )
  activation(act)
  towers = {}
  for field, spec in (("audio", audio), ("text", text)):
    if "name" not in spec:
      raise errors.InputError(
        f"models.clap {field} = {dict(spec)}: has no name; add the model's, "
        "for example name='htsat'."
      )
    towers[field] = build_plugin("models", **{"dtype": dtype, **spec})
  return Clap(
    **towers,
    embed_dim=embed_dim,
    act=act,
    temperature_init=temperature_init,
    dtype=jnp.dtype(dtype),
  )
