"""AST and AudioMAE's encoder: a ViT over the patches of a spectrogram.

"AST: audio spectrogram transformer", Gong et al. 2021: overlapping patches,
class and distillation token, a norm and a linear layer on their mean. "Masked
autoencoders that listen", Huang et al. 2022: patches side by side, the mean of
them. Both are of size B.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.build import build as build_plugin
from mmjax.layers import pool as pooling
from mmjax.layers.norm import layer_norm
from mmjax.layers.transformer import SIZES

VARIANTS = SIZES

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(width=32, depth=2, heads=4, mlp=64, patch=8, stride=5)
TINY_INPUTS = dict(audio=((23, 16), "float32"))


class AudioTransformer(nn.Module):
  """Audio encoder; see `build` for the attributes."""

  encoder: nn.Module
  time_first: bool = False
  num_classes: int | None = None
  head_norm: bool = True
  head_epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, audio: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Encodes sounds.

    Args:
      audio: float [B A F], log-mel frames as `data/audio_ops.py` gives them.
      train: dropout on; needs the rng "dropout" if any rate is above 0.

    Returns:
      Features [B D], or logits [B C] if there are classes; and {"pre_logits":
      the features, "tokens": [B T D]}.

    Raises:
      InputError: frames or mels that patches or positions do not fit.
    """
    image = audio if self.time_first else audio.swapaxes(1, 2)
    x, out = self.encoder(image[..., None], train=train)
    if self.num_classes is None:
      return x, out
    if self.head_norm:
      x = layer_norm(
        epsilon=self.head_epsilon, dtype=self.dtype, name="head_norm"
      )(x)
    return pooling.head(self.num_classes, self.dtype, "head")(x), out


def build(
  variant: str | None = None,
  *,
  num_classes: int | None = None,
  pool: str = "pair",
  time_first: bool = False,
  head_norm: bool = True,
  stride: int | tuple[int, int] | None = None,
  epsilon: float = 1e-6,
  head_epsilon: float | None = None,
  dtype: str = "float32",
  **encoder: Any,
) -> AudioTransformer:
  """Builds an audio encoder; its ViT is "encoder" in the parameters.

  AST is "B/16" with stride 10; AudioMAE "B/16" with pool "gap", class_token,
  last_norm "pooled" and time_first, without head_norm.

  Args:
    variant: a size of `VARIANTS`, and the patch; or None.
    num_classes: width of a linear head that starts at zero; None is none.
    pool: "pair", mean of class and distillation token; or another of
      `models.vit`.
    time_first: patches are counted frame by frame; False is mel by mel.
    head_norm: a norm before the head.
    stride: from patch to patch, of mels and frames alike, or (down, across) of
      the spectrogram as it is read; None is the patch.
    epsilon: of the norms.
    head_epsilon: of that before the head; None is the same. 1e-5 in AST's own
      files.
    dtype: of the computation; parameters are float32.
    **encoder: of `models.vit`.

  Raises:
    InputError: as of `models.vit`.
  """
  if isinstance(stride, int):
    stride = (stride, stride)
  if pool == "pair":
    encoder.setdefault("distilled", True)
  vit = build_plugin(
    "models",
    name="vit",
    variant=variant,
    pool=pool,
    stride=stride,
    epsilon=epsilon,
    dtype=dtype,
    **encoder,
  )
  return AudioTransformer(
    vit,
    time_first=time_first,
    num_classes=num_classes,
    head_norm=head_norm,
    head_epsilon=epsilon if head_epsilon is None else head_epsilon,
    dtype=jnp.dtype(dtype),
  )
