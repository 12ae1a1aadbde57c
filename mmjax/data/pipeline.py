"""From sources to batches: one recipe, whose only state is the step.

Each source is shuffled anew every epoch and repeated for ever; the sources are
mixed, preprocessed, dealt out to the processes and batched. Batch k depends on
the seed and k alone, not on the number of workers; the batches of all
processes together do not depend on their number either. Hence resuming is
starting at another step.
"""

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from mmjax import errors
from mmjax.data.image_ops import TOLERATED, CorruptRecord
from mmjax.data.preprocess import Preprocess
from mmjax.typing import Example, Source

HostBatch = dict[str, np.ndarray]

CORRUPT = "_corrupt"  # int32 [B]: index of the corrupt record drawn, or -1

_TRIES = 100  # successive corrupt records before giving up


class _Draw:
  """Reads and preprocesses a record; the next good one if it is corrupt."""

  def __init__(
    self, sources: Sequence[Source], functions: Sequence[Preprocess]
  ):
    self._sources, self._functions = sources, functions
    self._ends = list(itertools.accumulate(map(len, sources)))

  def __call__(self, key: int, rng: np.random.Generator) -> Example:
    number = bisect.bisect_right(self._ends, key)
    first = key - (self._ends[number - 1] if number else 0)
    source, function = self._sources[number], self._functions[number]
    for offset in range(min(_TRIES, len(source))):
      try:
        example = function(source[(first + offset) % len(source)], rng)
      except CorruptRecord as error:
        last = error
        continue
      return {**example, CORRUPT: np.int32(first if offset else -1)}
    raise errors.DataError(
      f"data source {source.name!r}: {min(_TRIES, len(source))} records from "
      f"number {first} on are all corrupt; the last: {last}"
    )


def batches(
  sources: Sequence[Source],
  preprocess: Preprocess | Sequence[Preprocess],
  *,
  weights: Sequence[float] | None = None,
  seed: int = 0,
  global_batch: int,
  process_index: int = 0,
  process_count: int = 1,
  start_step: int = 0,
  workers: int = 0,
) -> Iterator[HostBatch]:
  """Yields this process's part of each batch, for ever.

  A batch holds what preprocessing keeps, stacked, and `CORRUPT`, which
  `CorruptLedger.watch` takes out.

  Args:
    sources: at least one.
    preprocess: one for all sources, or one for each; all must give the same
      keys, shapes and dtypes.
    weights: how often each source is drawn, relative to the others; None
      draws all alike.
    seed: of the order and of preprocessing.
    global_batch: examples in a batch of all processes together.
    process_index: of this process.
    process_count: number of processes.
    start_step: number of the first batch.
    workers: processes that prepare batches; 0 does it in the caller.

  Raises:
    InputError: a batch that cannot be dealt out, weights that do not fit, or
      examples that cannot be stacked (when it runs).
    DataError: (when it runs) no good record is found.
  """
  if global_batch < 1 or global_batch % process_count:
    raise errors.InputError(
      f"batch_size = {global_batch}: cannot be dealt out evenly to "
      f"{process_count} processes; make it a multiple of {process_count}."
    )
  if not isinstance(preprocess, Sequence):
    preprocess = [preprocess] * len(sources)
  if weights is None:
    weights = [1.0] * len(sources)
  if not len(sources) == len(preprocess) == len(weights) > 0:
    raise errors.InputError(
      f"data: {len(sources)} sources, {len(preprocess)} preprocess specs and "
      f"{len(weights)} weights; give one of each per source."
    )
  for source, weight in zip(sources, weights, strict=True):
    if not weight > 0:
      raise errors.InputError(
        f"data weight of {source.name!r} = {weight}: must be positive; leave "
        "the source out instead."
      )
    if not len(source):
      raise errors.InputError(
        f"data source {source.name!r}: has no records; check its split."
      )

  # Numbers travel, not records: all records are numbered through, source by
  # source, and read in the last moment.
  ends = [0, *itertools.accumulate(map(len, sources))]
  parts = [
    grain.MapDataset.range(start, end)
    .seed(_seed(seed, i))
    .shuffle()
    .repeat(None)
    for i, (start, end) in enumerate(itertools.pairwise(ends))
  ]
  data = parts[0]
  if len(parts) > 1:
    data = grain.MapDataset.mix(parts, [float(w) for w in weights])
  data = data.random_map(
    _Draw(list(sources), list(preprocess)), seed=_seed(seed, len(sources))
  )
  # Blocks of rows are dealt out, not single rows, so that row i of the global
  # batch, and what dropout takes from it, does not depend on who reads it.
  data = data.batch(global_batch // process_count, batch_fn=_stack)
  data = data[process_index::process_count]
  # Threads would only fight with the step for the interpreter.
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  result = data[start_step:].to_iter_dataset(options)
  if workers:
    _parse_flags()
    result = result.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers),
      worker_init_fn=lambda index, count: _parse_flags(),
    )
  return _iterate(result)


def _iterate(data: Any) -> Iterator[HostBatch]:
  iterator = iter(data)
  try:
    yield from iterator
  finally:
    iterator.close()  # ends the worker processes


def _parse_flags() -> None:
  # Grain reads absl flags, which fails where nobody has parsed any.
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def _seed(*entropy: int) -> int:
  return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _stack(examples: Sequence[Example]) -> HostBatch:
  batch = {}
  for key in examples[0]:
    try:
      batch[key] = np.stack([np.asarray(e[key]) for e in examples])
    except (ValueError, KeyError) as error:
      shapes = {np.shape(e[key]) if key in e else None for e in examples}
      raise errors.InputError(
        f"preprocess: {key!r} differs in shape within a batch "
        f"({', '.join(map(str, sorted(shapes, key=str)))}); resize, crop or "
        "tokenize it to one shape, or leave it out with keep(...)."
      ) from error
  return batch


class CorruptLedger:
  """Counts corrupt records and stops the run when they are too many.

  Attributes:
    draws: examples seen.
    corrupt: how many of them were corrupt, hence replaced.
    records: numbers of the corrupt records, each once.
  """

  def __init__(self, tolerated: float = TOLERATED, at_least: int = 200):
    """Starts at zero.

    Args:
      tolerated: part of the draws that may be corrupt.
      at_least: draws before it judges.
    """
    self._tolerated, self._at_least = tolerated, at_least
    self.draws = 0
    self.corrupt = 0
    self.records: set[int] = set()

  def take(self, batch: HostBatch) -> HostBatch:
    """Counts a batch and returns it without `CORRUPT`.

    Raises:
      DataError: more than the tolerated part is corrupt.
    """
    batch = dict(batch)
    found = batch.pop(CORRUPT)
    found = found[found >= 0]
    self.draws += len(next(iter(batch.values())))
    self.corrupt += len(found)
    self.records.update(found.tolist())
    enough = self.draws >= self._at_least
    if enough and self.corrupt > self._tolerated * self.draws:
      some = ", ".join(map(str, itertools.islice(sorted(self.records), 10)))
      raise errors.DataError(
        f"data: {self.corrupt} of {self.draws} examples "
        f"({self.corrupt / self.draws:.1%}) are corrupt, more than the "
        f"{self._tolerated:.0%} that is tolerated; repair or remove the "
        f"records, among them numbers {some}."
      )
    return batch

  def watch(self, batches: Iterable[HostBatch]) -> Iterator[HostBatch]:
    """Yields the batches through `take`, and closes them when closed."""
    try:
      for batch in batches:
        yield self.take(batch)
    finally:
      close = getattr(batches, "close", None)
      if close is not None:
        close()
