"""Residual blocks of convolutions, and stages of them.

"Deep residual learning for image recognition", He et al. 2016; "Identity
mappings in deep residual networks", He et al. 2016 (norms come first).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers.convolution import Conv, avg_pool, batch_norm, group_norm
from mmjax.layers.mlp import activation

# Where a block with a stride takes it: in its first or second convolution, or
# in an average over squares after the second one, which aliases less.
STRIDES = ("first", "second", "average")


class Block(nn.Module):
  """x + f(x), f of two or three convolutions with norms.

  Attributes:
    width: D.
    inner: channels within f of three convolutions, 1x1, 3x3, 1x1; None is f
      of two, 3x3 each.
    stride: of the block.
    project: the way past f is a 1x1 convolution; else it is x itself.
    stride_in: see `STRIDES`.
    norms_first: norm and activation before each convolution, none at the end.
    groups: of GroupNorm; None is BatchNorm.
    epsilon: of the norms.
    momentum: of BatchNorm's statistics.
    act: name of the activation.
    inner_act: of the one between convolutions; None is `act`.
    padding: of the convolutions.
    standardise: see `convolution.Conv`.
    dilation: of the second of three convolutions.
    dtype: of the computation.
  """

  width: int
  inner: int | None = None
  stride: int = 1
  project: bool = False
  stride_in: str = "second"
  norms_first: bool = False
  groups: int | None = None
  epsilon: float = 1e-5
  momentum: float = 0.9
  act: str = "relu"
  inner_act: str | None = None
  padding: str = "half"
  standardise: float | None = None
  dilation: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> tuple[Any, None]:
    """Maps [B Y X C] to [B Y' X' D].

    Returns:
      The features, and None: the carry and output that `scan` wants.
    """
    act = activation(self.act)
    inner_act = activation(self.inner_act or self.act)
    shortcut = x
    if self.norms_first:
      x = act(self._norm("norm1", train)(x))
      if self.project:  # with the norm that f begins with, too
        shortcut = self._project(x)
    elif self.project:
      shortcut = self._project(x)
      shortcut = self._norm("project_norm", train)(shortcut)
    layers = self._layers()
    for i, (features, size, stride) in enumerate(layers, 1):
      if i == len(layers) and self.stride_in == "average":
        x = avg_pool(x, self.stride)
      dilation = self.dilation if i == 2 and self.inner is not None else 1
      x = self._conv(f"conv{i}", features, size, stride, dilation)(x)
      if self.norms_first:
        if i < len(layers):
          x = inner_act(self._norm(f"norm{i + 1}", train)(x))
      else:
        x = self._norm(f"norm{i}", train)(x)
        if i < len(layers):
          x = inner_act(x)
    x = x + shortcut
    return x if self.norms_first else act(x), None

  def _layers(self) -> list[tuple[int, int, int]]:
    """Returns (features, size, stride) of each convolution of f."""
    first = self.stride if self.stride_in == "first" else 1
    second = self.stride if self.stride_in == "second" else 1
    if self.inner is None:
      # Of two it is the first that has a neighbourhood to choose from.
      return [(self.width, 3, self.stride), (self.width, 3, 1)]
    return [
      (self.inner, 1, first),
      (self.inner, 3, second),
      (self.width, 1, 1),
    ]

  def _project(self, x: jax.Array) -> jax.Array:
    stride = self.stride
    if self.stride_in == "average":
      x, stride = avg_pool(x, stride), 1
    return self._conv("project", self.width, 1, stride)(x)

  def _conv(
    self, name: str, features: int, size: int, stride: int, dilation: int = 1
  ) -> Conv:
    return Conv(
      features,
      size,
      stride,
      self.padding,
      self.standardise,
      self.dtype,
      dilation,
      name=name,
    )

  def _norm(self, name: str, train: bool) -> nn.Module:
    args: dict[str, Any] = dict(
      epsilon=self.epsilon, dtype=self.dtype, name=name
    )
    if self.groups is not None:
      return group_norm(groups=self.groups, **args)
    return batch_norm(train=train, momentum=self.momentum, **args)


class Stage(nn.Module):
  """Blocks of one resolution and width.

  The first, which may change both, has parameters of its own ("first"); those
  of the others, which are alike, are stacked [depth-1 ...] ("rest").

  Attributes:
    depth: number of blocks, at least 1.
    width: D.
    inner: of each block.
    stride: of the first block.
    project: the first block's way past f is a convolution; None is where
      width or resolution change.
    dilation: of the first block, and of the others.
    block: further attributes of each `Block`.
    scan: a loop over the blocks instead of unrolling them. It compiles faster,
      but XLA on a CPU does not see through the loop: gradients of convolutions
      take 30 times as long.
  """

  depth: int
  width: int
  inner: int | None = None
  stride: int = 1
  project: bool | None = None
  dilation: tuple[int, int] = (1, 1)
  block: Mapping[str, Any] = nn.FrozenDict()
  scan: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps [B Y X C] to [B Y' X' D]."""
    project = self.project
    if project is None:
      project = self.stride != 1 or x.shape[-1] != self.width
    x, _ = Block(
      self.width,
      self.inner,
      self.stride,
      project,
      dilation=self.dilation[0],
      **self.block,
      name="first",
    )(x, train)
    rest = self.depth - 1
    if not rest:
      return x  # a scan of length 0 would make arrays of size 0
    in_axes: Any = nn.broadcast
    x, _ = nn.scan(
      Block,
      variable_axes={"params": 0, "batch_stats": 0},
      split_rngs={"params": True},
      in_axes=in_axes,
      length=rest,
      # One more than there are: a loop of one turn would still be a loop.
      unroll=1 if self.scan else rest + 1,
      metadata_params={nn.PARTITION_NAME: "layers"},
      check_constancy_invariants=False,  # or it traces the body twice
    )(
      self.width,
      self.inner,
      dilation=self.dilation[1],
      **self.block,
      name="rest",
    )(x, train)
    return x


def checked(
  model: str, depths: Sequence[int], **per_stage: Sequence[int] | None
) -> list[tuple[int, ...] | None]:
  """Returns what stages are given by, as tuples.

  Args:
    model: for messages, "models.resnet".
    depths: blocks of each stage.
    **per_stage: fields with a value for each stage, or None.

  Raises:
    InputError: a stage without a block, or a field of another length.
  """
  if not depths or min(depths) < 1:
    raise errors.InputError(
      f"{model} depths = {list(depths)}: give each stage at least 1 block."
    )
  for field, values in per_stage.items():
    if values is not None and len(values) != len(depths):
      raise errors.InputError(
        f"{model} {field} = {list(values)}: {len(values)} values for the "
        f"{len(depths)} stages of depths = {list(depths)}; give one for each."
      )
  return [
    None if v is None else tuple(v) for v in (depths, *per_stage.values())
  ]
