"""BiT: ResNets without statistics of the batch.

"Big transfer (BiT): general visual representation learning", Kolesnikov et al.
2020: GroupNorm, standardised filters, norms before convolutions. "R50x3" is
three times as wide as "R50x1".
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers import pool as pooling
from mmjax.layers.convolution import Conv, group_norm, max_pool, pad
from mmjax.layers.embed import normalised
from mmjax.layers.mlp import activation
from mmjax.layers.residual import Stage, checked
from mmjax.parallel import rules

VARIANTS: dict[str, dict[str, Any]] = {
  f"R{layers}x{factor}": dict(
    depths=depths,
    stem=64 * factor,
    widths=tuple(256 * factor * 2**i for i in range(4)),
  )
  for layers, factor, depths in (
    (50, 1, (3, 4, 6, 3)),
    (50, 3, (3, 4, 6, 3)),
    (101, 1, (3, 4, 23, 3)),
    (101, 3, (3, 4, 23, 3)),
    (152, 2, (3, 8, 36, 3)),
    (152, 4, (3, 8, 36, 3)),
  )
}

PADDINGS = ("half", "same")  # of convolutions: without, x + f(x) have two sizes
POOL_PADDINGS = ("valid", "same")

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(depths=(2, 1), stem=8, widths=(16, 32), groups=4, num_classes=8)
TINY_INPUTS = dict(image=((21, 16, 3), "float32"))


class BiT(nn.Module):
  """Image encoder; see `build` for the attributes."""

  depths: tuple[int, ...]
  widths: tuple[int, ...]
  inner: tuple[int, ...]
  stem: int
  strides: tuple[int, ...] | None = None
  dilations: tuple[tuple[int, int], ...] | None = None
  groups: int = 32
  norms_first: bool = True
  padding: str = "half"
  pool_padding: str = "valid"
  zeros: bool = True
  num_classes: int | None = None
  act: str = "relu"
  epsilon: float = 1e-5
  standardise: float = 1e-8
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
      train: changes nothing.

    Returns:
      Features [B D], or logits [B C] if there are classes; and {"pre_logits":
      the features, "tokens": [B Y/32*X/32 D] whose mean they are, row by row};
      with other strides there are more of these.
    """
    act = activation(self.act)
    norm: dict[str, Any] = dict(groups=self.groups, epsilon=self.epsilon)
    x = rules.constrain(normalised(image), "batch", None, None, None)
    x = Conv(
      self.stem,
      7,
      2,
      self.padding,
      self.standardise,
      self.dtype,
      name="stem",
    )(x)
    # Zeros take part in the maximum, and in the norm where it comes here.
    framed = self.padding == "half"
    if framed and self.zeros:
      x = pad(x, 3, 2, "half")
    if not self.norms_first:
      x = act(group_norm(dtype=self.dtype, name="stem_norm", **norm)(x))
    x = pad(x, 3, 2, self.pool_padding)
    x = max_pool(x, how="valid" if self.zeros or not framed else "half")
    block = nn.FrozenDict(
      norms_first=self.norms_first,
      act=self.act,
      padding=self.padding,
      standardise=self.standardise,
      dtype=self.dtype,
      **norm,
    )
    for i, depth in enumerate(self.depths):
      stride = 2 if i else 1
      x = Stage(
        depth,
        self.widths[i],
        self.inner[i],
        stride=stride if self.strides is None else self.strides[i],
        project=True,
        dilation=(1, 1) if self.dilations is None else self.dilations[i],
        block=block,
        scan=self.scan,
        name=f"stage{i}",
      )(x, train)
    if self.norms_first:
      x = act(group_norm(dtype=self.dtype, name="norm", **norm)(x))
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
  depths: Sequence[int] | None = None,
  stem: int | None = None,
  widths: Sequence[int] | None = None,
  inner: Sequence[int] | None = None,
  strides: Sequence[int] | None = None,
  dilations: Sequence[tuple[int, int]] | None = None,
  groups: int = 32,
  norms_first: bool = True,
  padding: str = "half",
  pool_padding: str = "valid",
  zeros: bool = True,
  num_classes: int | None = None,
  act: str = "relu",
  epsilon: float = 1e-5,
  standardise: float = 1e-8,
  scan: bool = False,
  dtype: str = "float32",
) -> BiT:
  """Builds a BiT.

  Args:
    variant: "R50x1": one of `VARIANTS`, or None. What is given beside it goes
      before it.
    depths: blocks of each stage.
    stem: channels of the first convolution.
    widths: D of each stage.
    inner: channels within the blocks of each stage; None is a quarter of
      their width.
    strides: of the first block of each stage; None is 1, then 2.
    dilations: of the 3x3 convolutions of each stage, in its first block and in
      the others, where it stands for strides; None is none.
    groups: of the norms.
    norms_first: norms before convolutions; False is a ResNet v1.5 with the
      norms and convolutions of BiT, as in hybrids with ViT.
    padding: of convolutions, "half" of the window, or "same" as TensorFlow; see
      `layers.convolution`. With the first the stem's output gets a frame of
      zeros before the maximum, too.
    pool_padding: with zeros, of the maximum after that: "valid", none, or
      "same".
    zeros: those of the frame take part in the maximum; False leaves them out,
      as big_vision does.
    num_classes: width of a linear head that starts at zero; None is none.
    act: "relu", or another name of `layers.mlp`.
    epsilon: of the norms.
    standardise: epsilon of the standardised filters; 1e-10 in Google's
      releases, 1e-8 in the hub's.
    scan: loop over the blocks of a stage instead of unrolling them, see
      `layers.residual.Stage`.
    dtype: of the computation; parameters are float32.

  Raises:
    InputError: an unknown name, a size that is not given, values that are not
      one for each stage, or channels that the groups do not divide.
  """
  sizes: dict[str, Any] = dict(depths=depths, stem=stem, widths=widths)
  if variant is not None:
    if variant not in VARIANTS:
      raise errors.unknown("models.bit variant", variant, VARIANTS)
    known = VARIANTS[variant]
    sizes = {k: known[k] if v is None else v for k, v in sizes.items()}
  missing = [name for name, value in sizes.items() if value is None]
  if missing:
    raise errors.InputError(
      f"models.bit: {', '.join(missing)} not given; give them, or a variant "
      "such as 'R50x1'."
    )
  for field, value, known in (
    ("padding", padding, PADDINGS),
    ("pool_padding", pool_padding, POOL_PADDINGS),
  ):
    if value not in known:
      raise errors.unknown(f"models.bit {field}", value, known)
  activation(act)
  if inner is None:
    inner = [width // 4 for width in sizes["widths"]]
  depths_, widths_, inner_, strides_ = checked(
    "models.bit",
    sizes["depths"],
    widths=sizes["widths"],
    inner=inner,
    strides=strides,
  )
  if dilations is not None and len(dilations) != len(depths_ or ()):
    raise errors.InputError(
      f"models.bit dilations = {list(dilations)}: give a pair for each stage."
    )
  assert depths_ is not None and widths_ is not None and inner_ is not None
  for channels in (*widths_, *inner_, sizes["stem"]):
    if channels % groups:
      raise errors.InputError(
        f"models.bit groups = {groups}: they do not divide {channels} "
        "channels; change one of them."
      )
  return BiT(
    depths_,
    widths_,
    inner_,
    sizes["stem"],
    strides=strides_,
    dilations=None
    if dilations is None
    else tuple((first, rest) for first, rest in dilations),
    groups=groups,
    norms_first=norms_first,
    padding=padding,
    pool_padding=pool_padding,
    zeros=zeros,
    num_classes=num_classes,
    act=act,
    epsilon=epsilon,
    standardise=standardise,
    scan=scan,
    dtype=jnp.dtype(dtype),
  )
