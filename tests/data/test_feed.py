import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.data import feed


class Layout:
  """What a feed needs of `parallel.rules.Layout`, over four devices."""

  def __init__(self):
    devices = np.array(jax.devices()[:4]).reshape(2, 2)
    self.mesh = jax.sharding.Mesh(devices, ("data", "fsdp"))

  def batch_sharding(self, ndim):
    spec = PartitionSpec(("data", "fsdp"), *(None,) * (ndim - 1))
    return NamedSharding(self.mesh, spec)


def numbers(count, closed=None):
  try:
    for step in range(count):
      yield {
        "x": np.full((8, 3), step, np.uint8),
        "y": np.arange(8, dtype=np.int32) + step,
      }
  finally:
    if closed is not None:
      closed.append(threading.current_thread().name)


def test_batches_come_in_order_and_sharded():
  with feed.Feed(numbers(5), Layout()) as batches:
    found = list(batches)
  assert [int(b["x"][0, 0]) for b in found] == list(range(5))
  np.testing.assert_array_equal(found[2]["y"], np.arange(8) + 2)
  x = found[0]["x"]
  assert x.dtype == np.uint8
  assert {s.data.shape for s in x.addressable_shards} == {(2, 3)}
  assert len(x.sharding.device_set) == 4


def test_it_works_ahead_but_not_far():
  made = []

  def count():
    for batch in numbers(100):
      made.append(1)
      yield batch

  with feed.Feed(count(), Layout(), prefetch=1) as batches:
    next(batches)
    time.sleep(0.5)
    # One taken, one ready, one in the thread's hand.
    assert len(made) == 3


def test_errors_surface_in_the_consumer():
  def broken():
    yield from numbers(2)
    raise KeyError("no such record")

  with feed.Feed(broken(), Layout()) as batches:
    next(batches)
    next(batches)
    for _ in range(2):
      with pytest.raises(KeyError, match="no such record"):
        next(batches)


def test_the_end_stays_the_end():
  with feed.Feed(numbers(1), Layout()) as batches:
    assert len(list(batches)) == 1
    assert list(batches) == []


def test_close_ends_the_thread_and_the_iterator():
  closed = []
  before = threading.active_count()
  batches = feed.Feed(numbers(100, closed), Layout())
  next(batches)
  assert threading.active_count() == before + 1
  batches.close()
  assert threading.active_count() == before and closed == ["feed"]
  batches.close()
  with pytest.raises(StopIteration):
    next(batches)


def test_waiting_is_measured():
  def slow():
    for batch in numbers(3):
      time.sleep(0.1)
      yield batch

  with feed.Feed(slow(), Layout()) as batches:
    list(batches)
    assert 0.2 < batches.waited < 5
  with feed.Feed(numbers(3), Layout()) as batches:
    time.sleep(0.3)  # time for the first
    next(batches)
    assert batches.waited < 0.1


def test_padded():
  arrays = {"x": np.arange(10).reshape(5, 2), "y": np.arange(5)}
  found = list(feed.padded(arrays, 3))
  assert [valid for _, valid in found] == [3, 2]
  np.testing.assert_array_equal(found[1][0]["y"], [3, 4, 4])
  again = np.concatenate([b["x"][:n] for b, n in found])
  np.testing.assert_array_equal(again, arrays["x"])
