"""Arrays that a batch may pad to the largest among them.

An operation that makes arrays of any size says with `mark` how they are padded;
`stack` does it where a batch is made. Elsewhere they are arrays as others.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


class Ragged(np.ndarray):
  """An array that says how it is padded; see `mark`."""

  padding: Any = 0
  left: bool = False


def mark(array: Any, fill: Any = 0, left: bool = False) -> Ragged:
  """Returns the array, which a batch may pad.

  Args:
    array: of any shape.
    fill: what it is padded with.
    left: in front; else behind, on the right and below for an image.
  """
  found = np.array(array).view(Ragged)
  found.padding, found.left = fill, left
  return found


def grow(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
  """Returns the array padded to a shape, as its mark says.

  Raises:
    ValueError: it is larger than the shape, or has other axes.
  """
  more = [n - m for n, m in zip(shape, array.shape, strict=True)]
  if min(more, default=0) < 0:
    raise ValueError(f"{array.shape} is larger than {tuple(shape)}")
  left = getattr(array, "left", False)
  return np.pad(
    np.asarray(array),
    [(n, 0) if left else (0, n) for n in more],
    constant_values=getattr(array, "padding", 0),
  )


def stack(rows: Sequence[Any]) -> np.ndarray:
  """Stacks arrays; if all are marked, each is padded to the largest.

  Raises:
    ValueError: there are none, or they differ in shape and are not marked, or
      in their number of axes.
  """
  shapes = [np.shape(row) for row in rows]
  if len({len(shape) for shape in shapes}) == 1 and all(
    isinstance(row, Ragged) for row in rows
  ):
    largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
    rows = [grow(row, largest) for row in rows]
  return np.stack([np.asarray(row) for row in rows])
