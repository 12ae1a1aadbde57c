"""CLIP's ResNet: antialiased, and read by attention.

"Learning transferable visual models from natural language supervision",
Radford et al. 2021: a ResNet-50 with three convolutions for a stem, averages
before what has a stride ("Making convolutional networks shift-invariant
again", Zhang 2019), and one layer of attention whose query is the mean token
for the pool. It gives the joint embedding itself, without a projection: in a
`dual_encoder`, projected="text". Running statistics are "batch_stats".
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers.attention import Attention
from mmjax.layers.convolution import Conv, avg_pool, batch_norm
from mmjax.layers.embed import add_rows, normalised
from mmjax.layers.position import LearnedGrid
from mmjax.layers.residual import Stage, checked
from mmjax.parallel import rules

# `width` is that of the embedding; beside them the pixels they are made for.
VARIANTS: dict[str, dict[str, Any]] = {
  "RN50": dict(depths=(3, 4, 6, 3), stem=64, width=1024),  # 224
  "RN101": dict(depths=(3, 4, 23, 3), stem=64, width=512),  # 224
  "RN50x4": dict(depths=(4, 6, 10, 6), stem=80, width=640),  # 288
  "RN50x16": dict(depths=(6, 8, 18, 8), stem=96, width=768),  # 384
  "RN50x64": dict(depths=(3, 15, 36, 10), stem=128, width=1024),  # 448
}
HEAD_WIDTH = 64

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(depths=(2, 1), stem=8, width=24, heads=4)
TINY_INPUTS = dict(image=((25, 16, 3), "float32"))


class AttentionPool(nn.Module):
  """Reads a feature map by its mean, with one layer of attention.

  Attributes:
    width: E of what is returned.
    heads: N.
    dtype: of the computation.
  """

  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B Y X D] to [B E].

    Raises:
      InputError: a map of another size than the positions'.
    """
    B, rows, columns, D = x.shape
    x = x.reshape(B, rows * columns, D)
    mean = x.mean(1, keepdims=True, dtype=jnp.float32).astype(x.dtype)
    x = jnp.concatenate([mean, x], axis=1)
    x = add_rows(x, LearnedGrid(1, name="posemb")(rows, columns, D))
    x = rules.constrain(x, "batch", "length", "embed")
    attention = Attention(
      self.heads, dtype=self.dtype, out_width=self.width, name="attention"
    )
    return attention(x[:, :1], x)[:, 0]


class ClipResNet(nn.Module):
  """Image encoder; see `build` for the attributes."""

  depths: tuple[int, ...]
  stem: int
  width: int
  heads: int
  epsilon: float = 1e-5
  momentum: float = 0.9
  scan: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Encodes images.

    Args:
      image: [B Y X C] of one Y and X, which the first input declares; float
        in [-1, 1], or uint8, which is brought there.
      train: normalises by the batch, and moves the running statistics: apply
        with mutable=["batch_stats"].

    Returns:
      Embeddings [B E]; and {"pre_logits": the same, "tokens": [B Y/32*X/32 D]
      of which they are read, row by row}.

    Raises:
      InputError: an image of another size.
    """
    norm: dict[str, Any] = dict(epsilon=self.epsilon, momentum=self.momentum)
    x = rules.constrain(normalised(image), "batch", None, None, None)
    for i, features in enumerate((self.stem // 2, self.stem // 2, self.stem)):
      x = Conv(
        features, 3, 1 if i else 2, dtype=self.dtype, name=f"stem{i + 1}"
      )(x)
      name = f"stem_norm{i + 1}"
      x = batch_norm(train=train, dtype=self.dtype, name=name, **norm)(x)
      x = jax.nn.relu(x)
    x = avg_pool(x, 2)
    for i, depth in enumerate(self.depths):
      inner = self.stem * 2**i
      x = Stage(
        depth,
        4 * inner,
        inner,
        stride=2 if i else 1,
        block=nn.FrozenDict(stride_in="average", dtype=self.dtype, **norm),
        scan=self.scan,
        name=f"stage{i}",
      )(x, train)
    B, rows, columns, D = x.shape
    tokens = x.reshape(B, rows * columns, D)
    out = {"tokens": rules.constrain(tokens, "batch", "length", "embed")}
    x = AttentionPool(self.width, self.heads, dtype=self.dtype, name="pool")(x)
    out["pre_logits"] = x
    return x, out


def build(
  variant: str | None = None,
  *,
  depths: Sequence[int] | None = None,
  stem: int | None = None,
  width: int | None = None,
  heads: int | None = None,
  epsilon: float = 1e-5,
  momentum: float = 0.9,
  scan: bool = False,
  dtype: str = "float32",
) -> ClipResNet:
  """Builds CLIP's ResNet.

  Args:
    variant: "RN50": one of `VARIANTS`, or None. What is given beside it goes
      before it.
    depths: blocks of each stage.
    stem: channels after the stem, even; stages have 4, 8, ... times as many.
    width: E of the embedding.
    heads: N of the pool; None is one for each 64 channels.
    epsilon: of the norms.
    momentum: how much of the running statistics stays, each step.
    scan: loop over the blocks of a stage instead of unrolling them, see
      `layers.residual.Stage`.
    dtype: of the computation; parameters and statistics are float32.

  Raises:
    InputError: an unknown name, a size that is not given, or heads that do not
      divide the channels.
  """
  sizes: dict[str, Any] = dict(depths=depths, stem=stem, width=width)
  if variant is not None:
    if variant not in VARIANTS:
      raise errors.unknown("models.clip_resnet variant", variant, VARIANTS)
    known = VARIANTS[variant]
    sizes = {k: known[k] if v is None else v for k, v in sizes.items()}
  missing = [name for name, value in sizes.items() if value is None]
  if missing:
    raise errors.InputError(
      f"models.clip_resnet: {', '.join(missing)} not given; give them, or a "
      "variant such as 'RN50'."
    )
  (depths_,) = checked("models.clip_resnet", sizes["depths"])
  assert depths_ is not None
  if sizes["stem"] % 2:
    raise errors.InputError(
      f"models.clip_resnet stem = {sizes['stem']}: its first convolutions have "
      "half of these channels; give an even number."
    )
  channels = 2 * sizes["stem"] * 2 ** len(depths_)
  count = max(channels // HEAD_WIDTH, 1) if heads is None else heads
  if count < 1 or channels % count:
    raise errors.InputError(
      f"models.clip_resnet heads = {count}: they do not divide the {channels} "
      "channels of the pool; change heads or stem."
    )
  return ClipResNet(
    depths_,
    sizes["stem"],
    sizes["width"],
    count,
    epsilon=epsilon,
    momentum=momentum,
    scan=scan,
    dtype=jnp.dtype(dtype),
  )
