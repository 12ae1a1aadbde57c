"""Where a token stands: learned and sine-cosine position embeddings."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax import errors
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


class LearnedGrid(nn.Module):
  """A learned embedding for each place of a grid, and for tokens before it.

  The parameter "grid" [Y X D] is declared by the first input: a model made
  for 14 x 14 patches takes no others. "extra" [extra D] belongs to tokens
  that stand before the grid, such as a class token.

  Attributes:
    extra: number of tokens before the grid.
  """

  extra: int = 0

  @nn.compact
  def __call__(self, rows: int, columns: int, width: int) -> jax.Array:
    """Returns float32 [extra + Y*X D].

    Raises:
      InputError: the grid is not the declared one.
    """
    shape = (rows, columns, width)
    init = nn.initializers.normal(width**-0.5)
    if self.has_variable("params", "grid"):
      declared = self.get_variable("params", "grid")
      declared = nn.meta.unbox(declared).shape
      if declared != shape:
        raise errors.InputError(
          f"posemb = 'learn': the parameters are for a grid of {declared[:2]} "
          f"patches of width {declared[2]}, the input has {shape[:2]} of "
          f"width {width}; resize the image or the embedding, or take "
          "posemb = 'sincos2d'."
        )
    grid = self.param(
      "grid",
      rules.with_axes(init, ("positions", "positions", "embed")),
      shape,
    )
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
  """

  length: int
  scale: float = 0.01

  @nn.compact
  def __call__(self, length: int, width: int) -> jax.Array:
    """Returns float32 [T D], the first T = length places.

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
      (self.length, width),
    )
    return table[:length]
