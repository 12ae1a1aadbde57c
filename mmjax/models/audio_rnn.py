"""Recurrent encoders of sound: LSTM or GRU over log-mel frames.

"Speech recognition with deep recurrent neural networks", Graves et al. 2013,
whose sizes are the variants (theirs had peephole connections, 3 H more weights
a layer and direction); frames side by side and subsampled as in "Fast and
accurate recurrent neural network acoustic models", Sak et al. 2015.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers import pool as pooling
from mmjax.layers.recurrent import GATES, Recurrent
from mmjax.parallel import rules

VARIANTS: dict[str, dict[str, Any]] = {
  name: dict(depth=depth, width=width, bidirectional=both)
  for name, depth, width, both in (
    ("1l-250h", 1, 250, True),
    ("2l-250h", 2, 250, True),
    ("3l-250h", 3, 250, True),
    ("5l-250h", 5, 250, True),
    ("1l-622h", 1, 622, True),
    ("3l-421h-uni", 3, 421, False),
  )
}
POOLS = ("mean", "last", "none")

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(width=16, depth=3, stack=2, stride=2)
TINY_INPUTS = dict(audio=((9, 8), "float32"))


class AudioRNN(nn.Module):
  """Audio encoder; see `build` for the attributes."""

  width: int
  depth: int
  cell: str = "lstm"
  bidirectional: bool = True
  stack: int = 1
  stride: int = 1
  pool: str = "mean"
  num_classes: int | None = None
  dropout: float = 0.0
  scan: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    audio: jax.Array,
    lengths: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Encodes sounds.

    Args:
      audio: float [B A F], log-mel frames.
      lengths: int [B]; frames from lengths[b] on are padding, and may hold
        anything. None is A.
      train: dropout on; needs the rng "dropout" if its rate is above 0.

    Returns:
      Features [B E] ([B T E] with pool "none"), E = width or, of both
      directions, twice that; or logits [B C] ([B T C]) if there are classes;
      and {"pre_logits": the features, "tokens": [B T E], 0 at padding}, and if
      lengths are given "lengths": int [B], those of the tokens. T is
      ceil(A / stride).
    """
    audio = rules.constrain(audio, "batch", None, None)
    x, lengths = stacked(audio, lengths, self.stack, self.stride)
    x, lasts = Recurrent(
      self.cell,
      self.width,
      self.depth,
      bidirectional=self.bidirectional,
      dropout=self.dropout,
      dtype=self.dtype,
      scan=self.scan,
      name="encoder",
    )(x, lengths, not train)
    x = rules.constrain(x, "batch", "length", "embed")
    out = {"tokens": x}
    if lengths is not None:
      out["lengths"] = lengths
    if self.pool == "mean":
      x = pooling.mean(x, lengths)
    elif self.pool == "last":
      x = lasts[-1]
    out["pre_logits"] = x
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


def stacked(
  audio: jax.Array, lengths: jax.Array | None, stack: int, stride: int
) -> tuple[jax.Array, jax.Array | None]:
  """Puts frames side by side, from each stride-th frame on.

  Args:
    audio: [B A F].
    lengths: int [B] or None.
    stack: number of frames; what is beyond the end, or padding, is 0.
    stride: frames from one to the next.

  Returns:
    [B ceil(A / stride) stack*F], the earliest frame first, and the lengths
    ceil(lengths / stride).
  """
  if lengths is not None:
    keep = jnp.arange(audio.shape[1])[None, :] < lengths[:, None]
    audio = jnp.where(keep[:, :, None], audio, 0)
    lengths = -(-lengths // stride)
  frames = -(-audio.shape[1] // stride)
  last = (frames - 1) * stride + 1
  padding = max(0, last + stack - 1 - audio.shape[1])
  audio = jnp.pad(audio, ((0, 0), (0, padding), (0, 0)))
  parts = [audio[:, i : i + last : stride] for i in range(stack)]
  return jnp.concatenate(parts, axis=-1), lengths


def build(
  variant: str | None = None,
  *,
  width: int | None = None,
  depth: int | None = None,
  cell: str = "lstm",
  bidirectional: bool | None = None,
  stack: int = 1,
  stride: int = 1,
  pool: str = "mean",
  num_classes: int | None = None,
  dropout: float = 0.0,
  scan: bool = True,
  dtype: str = "float32",
) -> AudioRNN:
  """Builds a recurrent audio encoder.

  Args:
    variant: a size of `VARIANTS`, or None. What is given beside it goes
      before it.
    width: H, of one direction. depth: layers.
    cell: "lstm" or "gru".
    bidirectional: forward and backward side by side; None is the variant's,
      else True.
    stack: frames that are put side by side. stride: from one such to the next.
    pool: "mean" over frames; "last", the top layer's output at the last frame
      and, of the way back, at the first; "none".
    num_classes: width of a linear head that starts at zero; None is none.
      With pool "none" it judges each frame.
    dropout: rate between the layers.
    scan: loop over the layers above the first instead of unrolling them.
    dtype: of the products with weights; parameters, gates and states are
      float32.

  Raises:
    InputError: an unknown name, or a size that is missing or below 1.
  """
  sizes: dict[str, Any] = dict(
    width=width, depth=depth, bidirectional=bidirectional
  )
  if variant is not None:
    if variant not in VARIANTS:
      raise errors.unknown("models.audio_rnn variant", variant, VARIANTS)
    known = VARIANTS[variant]
    sizes = {k: known[k] if v is None else v for k, v in sizes.items()}
  if sizes["bidirectional"] is None:
    sizes["bidirectional"] = True
  missing = [name for name, value in sizes.items() if value is None]
  if missing:
    raise errors.InputError(
      f"models.audio_rnn: {', '.join(missing)} not given; give them, or a "
      "variant such as '3l-250h'."
    )
  for field, value in (
    ("width", sizes["width"]),
    ("depth", sizes["depth"]),
    ("stack", stack),
    ("stride", stride),
  ):
    if value < 1:
      raise errors.InputError(
        f"models.audio_rnn {field} = {value}: must be at least 1."
      )
  for field, value, known in (("cell", cell, GATES), ("pool", pool, POOLS)):
    if value not in known:
      raise errors.unknown(f"models.audio_rnn {field}", value, known)
  return AudioRNN(
    **sizes,
    cell=cell,
    stack=stack,
    stride=stride,
    pool=pool,
    num_classes=num_classes,
    dropout=dropout,
    scan=scan,
    dtype=jnp.dtype(dtype),
  )
