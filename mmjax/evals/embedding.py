"""Embeds any number of rows with one compiled program; not an evaluator.

Batches have one fixed size, the last one is filled up with copies of a row
that are dropped again. Each process reads only the rows of its own devices;
every process gets all embeddings.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmjax import errors
from mmjax.data import preprocess
from mmjax.parallel.rules import Layout
from mmjax.typing import Batch, Source

Row = Mapping[str, np.ndarray]


class Embedder:
  """Calls a task's predict function on rows, under a layout."""

  def __init__(
    self,
    predict: Callable[[Any, Batch], jax.Array],
    layout: Layout,
    batch_size: int,
  ):
    """Prepares the program.

    Args:
      predict: (variables, batch of B rows) -> [B D].
      layout: where it runs.
      batch_size: rows at a time over all devices, rounded up to what the mesh
        can share equally.

    Raises:
      InputError: batch_size below 1.
    """
    if batch_size < 1:
      raise errors.InputError(
        f"evals batch_size = {batch_size}: must be 1 or more; 256 is usual."
      )
    shards = layout.batch_shards
    self._size = -(-batch_size // shards) * shards
    self._layout = layout
    # Replicated, so that every process holds all rows without asking others.
    self._run = layout.jit(predict, out_shardings=layout.replicated)

  def __call__(
    self, variables: Any, count: int, row: Callable[[int], Row]
  ) -> np.ndarray:
    """Returns [count D]; `row(i)` gives the arrays of row i, without batch."""
    found = []
    for start in range(0, count, self._size):
      batch = self._batch(np.arange(start, start + self._size) % count, row)
      found.append(self._run(variables, batch))
    # Only now is anything waited for: rows are read while devices work.
    rows = np.concatenate([np.asarray(x) for x in found])
    return rows[:count]

  def _batch(self, indices: np.ndarray, row: Callable[[int], Row]) -> Batch:
    loaded = {}

    def load(i: int) -> Row:
      if i not in loaded:
        loaded[i] = row(int(i))
      return loaded[i]

    def place(key: str, like: np.ndarray) -> jax.Array:
      def part(index):
        rows = [load(i)[key] for i in indices[index[0]]]
        for x in rows:
          if x.shape != like.shape:
            raise errors.InputError(
              f"evals: rows of {key!r} have shapes {like.shape} and {x.shape}; "
              "make them equal in image_pp or text_pp, for example by "
              "resize(224)."
            )
        return np.stack(rows)

      shape = (self._size, *like.shape)
      sharding = self._layout.batch_sharding(len(shape))
      return jax.make_array_from_callback(shape, sharding, part)

    return {key: place(key, x) for key, x in load(indices[0]).items()}


def image_row(
  source: Source, pp: preprocess.Preprocess, seed: int
) -> Callable[[int], Row]:
  """Returns row(i): the preprocessed image of example i, the same each time."""

  def row(i: int) -> Row:
    example = pp(source[i], np.random.default_rng((seed, i)))
    return {"image": np.asarray(example["image"])}

  return row


def text_row(
  texts: Sequence[str], pp: preprocess.Preprocess, seed: int
) -> Callable[[int], Row]:
  """Returns row(i): the preprocessed text i, which `pp` finds in key "text"."""

  def row(i: int) -> Row:
    example = pp({"text": texts[i]}, np.random.default_rng((seed, i)))
    return {"text": np.asarray(example["text"])}

  return row
