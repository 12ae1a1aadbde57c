"""Where a token stands: learned, sine-cosine, rotary and relative positions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax import errors
from mmjax.layers.interpolate import resize
from mmjax.ops.bias import Buckets, relative_buckets
from mmjax.parallel import rules


def sincos2d(
  rows: int, columns: int, width: int, temperature: float = 10_000.0
) -> np.ndarray:
  """Computes fixed embeddings of a grid, row by row.

  A quarter of the width each for sin and cos of the column and of the row, at
  geometrically falling frequencies ("An empirical study of training
  self-supervised vision transformers", Chen et al. 2021).

  Args:
    rows: Y.
    columns: X.
    width: D, a multiple of 4.
    temperature: ratio of the highest to the lowest frequency, nearly.

  Returns:
    float32 [Y*X D].

  Raises:
    InputError: width is no multiple of 4.
  """
  if width % 4:
    raise errors.InputError(
      f"width = {width}: sincos2d needs a multiple of 4; change it or take "
      "posemb='learn'."
    )
  # At width 4 there is one frequency, 1.
  exponents = np.arange(width // 4) / max(width // 4 - 1, 1)
  frequencies = 1.0 / temperature**exponents
  y, x = np.mgrid[:rows, :columns]
  x = x.reshape(-1, 1) * frequencies.reshape(1, -1)
  y = y.reshape(-1, 1) * frequencies.reshape(1, -1)
  table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
  return table.astype(np.float32)


def sincos1d(length: int, width: int) -> np.ndarray:
  """Computes Whisper's fixed embeddings of a sequence, float32 [T D].

  Half of the width each for sin and cos, at D/2 frequencies that fall from 1
  to 1/10,000 ("Robust speech recognition", Radford et al. 2022).

  Raises:
    InputError: width is no multiple of 2, or below 4.
  """
  if width % 2 or width < 4:
    raise errors.InputError(
      f"width = {width}: sincos1d needs a multiple of 2 from 4 on; change it."
    )
  half = width // 2
  frequencies = np.exp(-np.log(10_000.0) / (half - 1) * np.arange(half))
  angles = np.arange(length)[:, None] * frequencies[None]
  table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
  return table.astype(np.float32)


def rotate(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
  """Turns queries or keys by their positions ("RoFormer", Su et al. 2021).

  Entry h of the first half and of the second half are a pair, turned by
  positions / theta**(2h/H), in float32.

  Args:
    x: [B T N H], H even.
    positions: int32 [B|1 T].
    theta: 10,000 in most models.

  Returns:
    [B T N H] in the dtype of x.
  """
  half = x.shape[-1] // 2
  frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles = positions[:, :, None, None].astype(jnp.float32)
  angles = angles * frequencies[None, None, None, :]
  sin, cos = jnp.sin(angles), jnp.cos(angles)
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return out.astype(x.dtype)


class RelativeBias(nn.Module):
  """A learned bias of the scores for each bucket of distance and each head.

  Attributes:
    heads: N.
    buckets, max_distance, bidirectional: see `ops.bias.relative_buckets`.
    depth: number of layers, if each has its own: what is returned then has
      the layers first. None is one for all.
  """

  heads: int
  buckets: int = 32
  max_distance: int = 128
  bidirectional: bool = True
  depth: int | None = None

  def setup(self):
    lead = () if self.depth is None else (self.depth,)
    self.table = self.param(
      "table",
      rules.with_axes(
        nn.initializers.normal(0.02),
        (*("layers" for _ in lead), None, "heads"),
      ),
      (*lead, self.buckets, self.heads),
    )

  def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns the bias, float32 [B|1 N T S].

    Args:
      queries: positions, int32 [B|1 T].
      keys: positions, int32 [B|1 S].
    """
    found = relative_buckets(
      keys[:, None, :] - queries[:, :, None],
      self.buckets,
      self.max_distance,
      self.bidirectional,
    )
    if self.depth is None:
      return jnp.moveaxis(jnp.take(self.table, found, axis=0), 3, 1)
    return jnp.moveaxis(jnp.take(self.table, found, axis=1), 4, 2)

  def spec(self) -> Buckets:
    """Returns the bias of whole sequences, whose positions count from 0."""
    table = self.table.swapaxes(-1, -2)
    return Buckets(table, self.max_distance, self.bidirectional)


class LearnedGrid(nn.Module):
  """A learned embedding for each place of a grid, and for tokens before it.

  The parameter "grid" [Y X D] is declared by the first input: a model made
  for 14 x 14 patches takes no others, unless it may stretch its grid. "extra"
  [extra D] belongs to tokens that stand before the grid, such as a class token.

  Attributes:
    extra: number of tokens before the grid.
    interpolate: how the grid is stretched to another size, a method of
      `layers.interpolate`; None refuses other sizes.
  """

  extra: int = 0
  interpolate: str | None = None

  @nn.compact
  def __call__(self, rows: int, columns: int, width: int) -> jax.Array:
    """Returns float32 [extra + Y*X D].

    Raises:
      InputError: the grid is not the declared one, and cannot be stretched.
    """
    shape = (rows, columns, width)
    init = nn.initializers.normal(width**-0.5)
    if self.has_variable("params", "grid"):
      declared = self.get_variable("params", "grid")
      declared = nn.meta.unbox(declared).shape
      if self.interpolate is not None and declared[2] == width:
        shape = declared
      elif declared != shape:
        raise errors.InputError(
          f"posemb = 'learn': the parameters are for a grid of {declared[:2]} "
          f"patches of width {declared[2]}, the input has {shape[:2]} of "
          f"width {width}; resize the image, or take "
          "interpolate = 'bicubic' or posemb = 'sincos2d'."
        )
    grid = self.param(
      "grid",
      rules.with_axes(init, ("positions", "positions", "embed")),
      shape,
    )
    if self.interpolate is not None:
      grid = resize(grid, rows, columns, self.interpolate)
    table = grid.reshape(rows * columns, width)
    if self.extra:
      extra = self.param(
        "extra",
        rules.with_axes(init, ("positions", "embed")),
        (self.extra, width),
      )
      table = jnp.concatenate([extra, table])
    return table


class LearnedSequence(nn.Module):
  """A learned embedding for each place of a sequence.

  Attributes:
    length: the longest sequence.
    scale: standard deviation at the start.
    offset: rows of no place, before that of the first.
  """

  length: int
  scale: float = 0.01
  offset: int = 0

  @nn.compact
  def __call__(
    self, length: int, width: int, first: int | jax.Array = 0
  ) -> jax.Array:
    """Returns float32 [T D], T = length places from `first` on.

    Raises:
      InputError: the sequence is longer than the table.
    """
    if length > self.length:
      raise errors.InputError(
        f"a sequence of {length} tokens, but the model has positions for "
        f"length = {self.length}; shorten the text or raise length."
      )
    table = self.param(
      "table",
      rules.with_axes(
        nn.initializers.normal(self.scale), ("positions", "embed")
      ),
      (self.length + self.offset, width),
    )
    first = first + self.offset
    if isinstance(first, int):
      return table[first : first + length]
    return jax.lax.dynamic_slice_in_dim(table, first, length)
