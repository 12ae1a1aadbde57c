"""Reads rows and embeds them with one compiled program; not an evaluator.

Batches have one fixed size, the last one is filled up with copies of a row
that are dropped again. Each process reads only the rows of its own devices;
every process gets all embeddings.

`read_examples` goes through a source first, and leaves corrupt records out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mmjax import errors
from mmjax.data import image_ops, preprocess
from mmjax.parallel.rules import Layout
from mmjax.typing import Batch, Example, Source

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


class Examples(NamedTuple):
  """What `read_examples` finds.

  numbers: the records whose image can be read; the rest counts these only.
  columns: {key: values}. images: preprocessed, [] unless kept. metrics:
  {"corrupt_records": how many were left out}, or {} if none was.
  """

  numbers: list[int]
  columns: dict[str, list[Any]]
  images: list[np.ndarray]
  metrics: dict[str, float]


def read_examples(
  source: Source,
  pp: preprocess.Preprocess,
  seed: int,
  keys: Mapping[str, str],
  *,
  field: str = "evals data",
  keep_images: bool = False,
) -> Examples:
  """Reads fields of all examples of a source, but for corrupt ones.

  Each image is preprocessed once, only to see whether it can be: what is
  ranked must be known, and the same in every process, before any process
  embeds its part.

  Args:
    source: examples with `image`.
    pp: makes `image`.
    seed: of `pp`, as in `image_row`.
    keys: {config field, for the error message: key of the examples}.
    field: config field of the source, likewise.
    keep_images: whether to return the preprocessed images.

  Raises:
    InputError: no examples, or one without one of the keys.
    DataError: more than 1 % of the records are corrupt.
  """
  total = len(source)
  if not total:
    raise errors.InputError(
      f"{field} = {source.name}: there are no examples; choose a split that "
      "has some."
    )
  found = Examples([], {key: [] for key in keys.values()}, [], {})
  corrupt: dict[int, image_ops.CorruptRecord] = {}
  for i in range(total):
    try:
      example = source[i]
      for name, key in keys.items():
        if key not in example:
          raise errors.unknown(name, key, example)
      image = _image(example, pp, seed, i)
    except image_ops.CorruptRecord as error:
      corrupt[i] = error
      continue
    found.numbers.append(i)
    for key, values in found.columns.items():
      values.append(example[key])
    if keep_images:
      found.images.append(image)
  if len(corrupt) > image_ops.TOLERATED * total:
    some = ", ".join(map(str, [*corrupt][:10]))
    raise errors.DataError(
      f"{field} = {source.name}: {len(corrupt)} of {total} records "
      f"({len(corrupt) / total:.1%}) are corrupt, more than the "
      f"{image_ops.TOLERATED:.0%} that is tolerated; repair or remove the "
      f"records, among them numbers {some}. The first: "
      f"{next(iter(corrupt.values()))}"
    )
  if corrupt:
    found.metrics["corrupt_records"] = float(len(corrupt))
  return found


def image_row(
  source: Source,
  pp: preprocess.Preprocess,
  seed: int,
  numbers: Sequence[int] | None = None,
) -> Callable[[int], Row]:
  """Returns row(i): a preprocessed image, the same each time.

  Args:
    source: examples with `image`.
    pp: makes `image`.
    seed: of `pp`, together with the number of the record.
    numbers: row i is record numbers[i]; None: record i.
  """

  def row(i: int) -> Row:
    number = i if numbers is None else numbers[i]
    return {"image": _image(source[number], pp, seed, number)}

  return row


def _image(
  example: Example, pp: preprocess.Preprocess, seed: int, number: int
) -> np.ndarray:
  done = pp(example, np.random.default_rng((seed, number)))
  return np.asarray(done["image"])


def text_row(
  texts: Sequence[str], pp: preprocess.Preprocess, seed: int
) -> Callable[[int], Row]:
  """Returns row(i): the preprocessed text i, which `pp` finds in key "text"."""

  def row(i: int) -> Row:
    example = pp({"text": texts[i]}, np.random.default_rng((seed, i)))
    return {"text": np.asarray(example["text"])}

  return row
