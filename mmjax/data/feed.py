"""Host batches to global arrays, one step ahead of the device."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from mmjax.parallel import rules
from mmjax.typing import Batch


def put(batch: Mapping[str, np.ndarray], layout: rules.Layout) -> Batch:
  """Makes global arrays of this process's part of a batch.

  Args:
    batch: arrays whose first axis is the batch.
    layout: its `batch_sharding` says where each row lives.
  """
  return {
    key: jax.make_array_from_process_local_data(
      layout.batch_sharding(value.ndim), value
    )
    for key, value in batch.items()
  }


def padded(
  arrays: Mapping[str, np.ndarray], size: int
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
  """Yields (batch of exactly `size` rows, number of rows that count).

  The last batch repeats its last row, so that one program serves all.
  """
  total = len(next(iter(arrays.values())))
  for start in range(0, total, size):
    valid = min(size, total - start)
    rows = np.minimum(np.arange(start, start + size), total - 1)
    yield {key: value[rows] for key, value in arrays.items()}, valid


class Feed:
  """An iterator of global batches that a thread prepares ahead of time.

  Errors of the thread are raised by the next `next`. Close it (or use it as a
  context) to end the thread and the iterator below.

  Attributes:
    waited: seconds that all calls of `next` together had to wait.
  """

  def __init__(
    self,
    batches: Iterable[Mapping[str, np.ndarray]],
    layout: rules.Layout,
    prefetch: int = 1,
  ):
    """Starts the thread.

    Args:
      batches: of this process, on the host; nothing else may read them.
      layout: see `put`.
      prefetch: batches that lie ready beside the one being made.
    """
    self.waited = 0.0
    self._ready: queue.Queue[Any] = queue.Queue(max(1, prefetch))
    self._stop = threading.Event()
    self._ended: BaseException | None = None
    self._thread = threading.Thread(
      target=self._work, args=(batches, layout), name="feed", daemon=True
    )
    self._thread.start()

  def _work(self, batches: Iterable[Any], layout: rules.Layout) -> None:
    end: BaseException = StopIteration()
    try:
      for batch in batches:
        if not self._offer(put(batch, layout)):
          break
    except BaseException as error:
      end = error
    finally:
      close = getattr(batches, "close", None)
      if close is not None:
        close()
      self._offer(end)

  def _offer(self, item: Any) -> bool:
    while not self._stop.is_set():
      try:
        self._ready.put(item, timeout=0.1)
        return True
      except queue.Full:
        continue
    return False

  def __iter__(self) -> "Feed":
    return self

  def __next__(self) -> Batch:
    if self._ended is None:
      if self._stop.is_set():
        raise StopIteration
      start = time.perf_counter()
      item = self._ready.get()
      self.waited += time.perf_counter() - start
      if not isinstance(item, BaseException):
        return item
      self._ended = item
    raise self._ended

  def close(self) -> None:
    """Ends the thread; safe to call twice."""
    self._stop.set()
    self._thread.join()

  def __enter__(self) -> "Feed":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()
