"""Two encoders into one space: CLIP, SigLIP, LiT.

"Learning transferable visual models from natural language supervision",
Radford et al. 2021; "Sigmoid loss for language image pre-training", Zhai et
al. 2023.
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
from mmjax.parallel import rules

# Which encoders get a projection, where there is a joint width.
PROJECTED = {"both": ("image", "text"), "image": ("image",), "text": ("text",)}

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(
  image=dict(name="vit", width=32, depth=2, heads=4, mlp=64, patch=4),
  text=dict(
    name="text_encoder",
    vocab_size=64,
    width=32,
    depth=2,
    heads=4,
    mlp=64,
    length=8,
  ),
  embed_dim=16,
  temperature_init=10.0,
  bias_init=-10.0,
)
TINY_INPUTS = dict(image=((16, 16, 3), "float32"), text=((8,), "int32"))


class Scale(NamedTuple):
  """How cosines become logits: t cosine + b; float32 scalars."""

  t: jax.Array
  b: jax.Array


class DualEncoder(nn.Module):
  """An image and a text encoder; see `build` for the attributes."""

  image: nn.Module
  text: nn.Module
  embed_dim: int | None
  temperature_init: float
  bias_init: float | None
  temperature_max: float | None
  projected: str = "both"
  projection_bias: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    image: jax.Array | None = None,
    text: jax.Array | None = None,
    *,
    image_mask: jax.Array | None = None,
    image_shapes: jax.Array | None = None,
    train: bool = False,
  ) -> tuple[jax.Array | None, jax.Array | None, Scale]:
    """Embeds images, texts or both.

    Args:
      image: what the image encoder takes, [B Y X C], or None.
      text: what the text encoder takes, int32 [B T], or None.
      image_mask, image_shapes: mask and shapes of patches, for an image
        encoder that takes them, see `models.naflex`.
      train: dropout on; needs the rng "dropout" if any rate is above 0.

    Returns:
      The embeddings of the images and of the texts, float32 [B E] of length
      1, None for what was not given; and the scale of the logits.
    """
    image_BD, text_BD = None, None
    if image is not None:
      given = dict(mask=image_mask, shapes=image_shapes)
      given = {k: v for k, v in given.items() if v is not None}
      image_BD, _ = self.image(image, train=train, **given)
      image_BD = self._joint(image_BD, "image")
    if text is not None:
      text_BD = self.text(text, train=train)
      text_BD = self._joint(text_BD, "text")
    return image_BD, text_BD, self._scale()

  def _joint(self, x: jax.Array, name: str) -> jax.Array:
    if self.embed_dim is not None and name in PROJECTED[self.projected]:
      x = nn.Dense(
        self.embed_dim,
        use_bias=self.projection_bias,
        dtype=self.dtype,
        kernel_init=rules.with_axes(
          nn.initializers.lecun_normal(), ("embed", "joint")
        ),
        bias_init=rules.with_axes(nn.initializers.zeros, ("joint",)),
        name=f"{name}_projection",
      )(x)
    return rules.constrain(pooling.unit(x), "batch", "joint")

  def _scale(self) -> Scale:
    # Learned as a logarithm, so that steps are relative and t stays positive.
    init = nn.initializers.constant(math.log(self.temperature_init))
    log_t = self.param("log_t", rules.with_axes(init, ()), ())
    t = jnp.exp(log_t)
    if self.temperature_max is not None:
      t = jnp.minimum(t, self.temperature_max)
    b = jnp.zeros((), jnp.float32)
    if self.bias_init is not None:
      init = nn.initializers.constant(self.bias_init)
      b = self.param("b", rules.with_axes(init, ()), ())
    return Scale(t, b)


def build(
  *,
  image: Mapping[str, Any],
  text: Mapping[str, Any],
  embed_dim: int | None = None,
  projected: str = "both",
  projection_bias: bool = False,
  temperature_init: float = 1 / 0.07,
  bias_init: float | None = None,
  temperature_max: float | None = None,
  dtype: str = "float32",
) -> DualEncoder:
  """Builds a dual encoder.

  Args:
    image: name and keywords of the image encoder, {"name": "vit", ...}.
    text: name and keywords of the text encoder.
    embed_dim: E, encoders get a projection to it; None is no projection, for
      encoders of one width.
    projected: the encoders with a projection, "both", "image" or "text"; the
      other one is of width E.
    projection_bias: the projections have a bias, as in SigLIP.
    temperature_init: t at the start: 10 in SigLIP, 1 / 0.07 in CLIP.
    bias_init: b at the start, -10 in SigLIP; None fixes it at 0, as in CLIP.
    temperature_max: t is cut there, 100 in CLIP; None is no limit.
    dtype: of the computation, also of encoders that do not say theirs.

  Raises:
    InputError: an encoder without a name, or that cannot be built; a
      temperature that is not above 0; widths that differ, or that are not E
      where there is no projection; an unknown name.
  """
  if not temperature_init > 0:
    raise errors.InputError(
      f"models.dual_encoder temperature_init = {temperature_init}: must be "
      "above 0; SigLIP has 10."
    )
  if projected not in PROJECTED:
    raise errors.unknown("models.dual_encoder projected", projected, PROJECTED)
  towers = {}
  for field, spec in (("image", image), ("text", text)):
    if "name" not in spec:
      raise errors.InputError(
        f"models.dual_encoder {field} = {dict(spec)}: has no name; add the "
        "model's, for example name='vit'."
      )
    towers[field] = build_plugin("models", **{"dtype": dtype, **spec})
  widths = {k: getattr(v, "width", None) for k, v in towers.items()}
  if embed_dim is None and widths["image"] != widths["text"]:
    raise errors.InputError(
      f"models.dual_encoder embed_dim = None: the encoders are of widths "
      f"{widths['image']} and {widths['text']}; give an embed_dim."
    )
  for side, tower_width in widths.items():
    if embed_dim is None or side in PROJECTED[projected]:
      continue
    if tower_width != embed_dim:
      raise errors.InputError(
        f"models.dual_encoder projected = {projected!r}: the {side} encoder "
        f"is of width {tower_width}, embed_dim = {embed_dim}, and nothing "
        "leads from one to the other; make them equal, or project both."
      )
  return DualEncoder(
    **towers,
    embed_dim=embed_dim,
    projected=projected,
    projection_bias=projection_bias,
    temperature_init=temperature_init,
    bias_init=bias_init,
    temperature_max=temperature_max,
    dtype=jnp.dtype(dtype),
  )
