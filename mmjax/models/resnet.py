"""ResNet v1.5 with BatchNorm: a convolutional encoder of images.

"Deep residual learning for image recognition", He et al. 2016; with the stride
of a bottleneck in its 3x3 convolution (v1.5), as everyone trains it since
"Accurate, large minibatch SGD", Goyal et al. 2017. Running statistics are the
collection "batch_stats".
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers import pool as pooling
from mmjax.layers.convolution import Conv, batch_norm, max_pool
from mmjax.layers.embed import normalised
from mmjax.layers.mlp import activation
from mmjax.layers.residual import Stage, checked
from mmjax.parallel import rules

VARIANTS: dict[str, dict[str, Any]] = {
  "18": dict(block="basic", depths=(2, 2, 2, 2)),
  "34": dict(block="basic", depths=(3, 4, 6, 3)),
  "50": dict(block="bottleneck", depths=(3, 4, 6, 3)),
  "101": dict(block="bottleneck", depths=(3, 4, 23, 3)),
  "152": dict(block="bottleneck", depths=(3, 8, 36, 3)),
}
# Block -> how many times its inner channels it gives out.
BLOCKS = {"basic": 1, "bottleneck": 4}
STRIDES = ("first", "second")

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(
  block="bottleneck", depths=(2, 1), stem=8, widths=(16, 32), num_classes=8
)
TINY_INPUTS = dict(image=((21, 16, 3), "float32"))


class ResNet(nn.Module):
  """Image encoder; see `build` for the attributes."""

  depths: tuple[int, ...]
  widths: tuple[int, ...]
  inner: tuple[int | None, ...]
  stem: int
  stem_kernel: int = 7
  stem_pool: bool = True
  first_stride: int = 1
  stride_in: str = "second"
  num_classes: int | None = None
  act: str = "relu"
  inner_act: str | None = None
  epsilon: float = 1e-5
  momentum: float = 0.9
  scan: bool = False
  dtype: Any = jnp.float32

  @property
  def width(self) -> int:
    """Returns D of the features."""
    return self.widths[-1]

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Encodes images.

    Args:
      image: [B Y X C] of any Y and X, float in [-1, 1], or uint8, which is
        brought there.
      train: normalises by the batch, and moves the running statistics: apply
        with mutable=["batch_stats"].

    Returns:
      Features [B D], or logits [B C] if there are classes; and {"pre_logits":
      the features, "tokens": [B Y/32*X/32 D] whose mean they are, row by row}.
    """
    norm: dict[str, Any] = dict(epsilon=self.epsilon, momentum=self.momentum)
    x = rules.constrain(normalised(image), "batch", None, None, None)
    x = Conv(self.stem, self.stem_kernel, 2, dtype=self.dtype, name="stem")(x)
    x = batch_norm(train=train, dtype=self.dtype, name="stem_norm", **norm)(x)
    x = activation(self.act)(x)
    x = max_pool(x) if self.stem_pool else x
    block = nn.FrozenDict(
      stride_in=self.stride_in,
      act=self.act,
      inner_act=self.inner_act,
      dtype=self.dtype,
      **norm,
    )
    for i, (depth, width, inner) in enumerate(
      zip(self.depths, self.widths, self.inner, strict=True)
    ):
      x = Stage(
        depth,
        width,
        inner,
        stride=2 if i else self.first_stride,
        block=block,
        scan=self.scan,
        name=f"stage{i}",
      )(x, train)
    x = x.reshape(x.shape[0], -1, self.width)
    out = {"tokens": rules.constrain(x, "batch", "length", "embed")}
    x = out["pre_logits"] = pooling.mean(x)
    if self.num_classes is not None:
      x = nn.Dense(
        self.num_classes,
        dtype=self.dtype,
        kernel_init=rules.with_axes(
          nn.initializers.zeros, ("embed", "classes")
        ),
        bias_init=rules.with_axes(nn.initializers.zeros, ("classes",)),
        name="head",
      )(x)
    return x, out


def build(
  variant: str | None = None,
  *,
  block: str | None = None,
  depths: Sequence[int] | None = None,
  stem: int = 64,
  stem_kernel: int = 7,
  stem_pool: bool = True,
  widths: Sequence[int] | None = None,
  inner: Sequence[int] | None = None,
  first_stride: int = 1,
  stride_in: str = "second",
  num_classes: int | None = None,
  act: str = "relu",
  inner_act: str | None = None,
  epsilon: float = 1e-5,
  momentum: float = 0.9,
  scan: bool = False,
  dtype: str = "float32",
) -> ResNet:
  """Builds a ResNet.

  Args:
    variant: "50": one of `VARIANTS`, or None. What is given beside it goes
      before it.
    block: "basic", two 3x3 convolutions, or "bottleneck", 1x1, 3x3, 1x1.
    depths: blocks of each stage.
    stem: channels of the first convolution.
    stem_kernel: its side; 3 for small images.
    stem_pool: halve the image once more after it; False for small images.
    widths: D of each stage; None doubles from that of the stem, four times it
      with bottlenecks.
    inner: channels within the bottlenecks of each stage; None is a quarter of
      their width.
    first_stride: of the first stage, 2 on top of the stem's 4.
    stride_in: convolution of a bottleneck that has the stride, "second" or
      "first", as in the paper (v1).
    num_classes: width of a linear head that starts at zero; None is none.
    act: "relu", or another name of `layers.mlp`.
    inner_act: of the activations between the convolutions of a block; None is
      `act`. The hub's are "relu" whatever its config says.
    epsilon: of the norms.
    momentum: how much of the running statistics stays, each step.
    scan: loop over the blocks of a stage instead of unrolling them, see
      `layers.residual.Stage`.
    dtype: of the computation; parameters and statistics are float32.

  Raises:
    InputError: an unknown name, a size that is not given, or values that are
      not one for each stage.
  """
  if variant is not None:
    if variant not in VARIANTS:
      raise errors.unknown("models.resnet variant", variant, VARIANTS)
    known = VARIANTS[variant]
    block = known["block"] if block is None else block
    depths = known["depths"] if depths is None else depths
  if block is None or depths is None:
    raise errors.InputError(
      "models.resnet: block and depths must be given, or a variant such as "
      "'50'."
    )
  if block not in BLOCKS:
    raise errors.unknown("models.resnet block", block, BLOCKS)
  if stride_in not in STRIDES:
    raise errors.unknown("models.resnet stride_in", stride_in, STRIDES)
  if block == "basic" and (inner is not None or stride_in != "second"):
    raise errors.InputError(
      "models.resnet block = 'basic': it has no inner channels, and its stride "
      "in the first convolution; leave inner and stride_in out."
    )
  activation(act)
  activation(inner_act or act)
  if widths is None:
    widths = [stem * BLOCKS[block] * 2**i for i in range(len(depths))]
  if inner is None and block == "bottleneck":
    inner = [width // BLOCKS[block] for width in widths]
  depths_, widths_, inner_ = checked(
    "models.resnet", depths, widths=widths, inner=inner
  )
  assert depths_ is not None and widths_ is not None
  return ResNet(
    depths_,
    widths_,
    inner_ or (None,) * len(depths_),
    stem,
    stem_kernel=stem_kernel,
    stem_pool=stem_pool,
    first_stride=first_stride,
    stride_in=stride_in,
    num_classes=num_classes,
    act=act,
    inner_act=inner_act,
    epsilon=epsilon,
    momentum=momentum,
    scan=scan,
    dtype=jnp.dtype(dtype),
  )
