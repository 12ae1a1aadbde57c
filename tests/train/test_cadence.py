"""Cadences against counting by hand."""

import time

import pytest

from mmjax import errors
from mmjax.train import cadence


def steps(spec, upto, **keywords):
  every = cadence.parse(spec, "log_every", **keywords)
  return [step for step in range(upto + 1) if every.due(step)]


def test_steps():
  assert steps(3, 10) == [3, 6, 9]
  assert steps("4 steps", 10) == [4, 8]
  assert steps(None, 10) == []


def test_examples_need_not_be_multiples_of_the_batch():
  # 32 a step: step 4 makes 128 (>= 100), step 7 makes 224, step 10 makes 320.
  assert steps("100 examples", 10, batch_size=32) == [4, 7, 10]
  # Fewer examples than a step has: every step.
  assert steps("1e1 examples", 3, batch_size=32) == [1, 2, 3]


def test_seconds(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  every = cadence.parse("60 seconds", "checkpoint.every")
  every.last = now[0]
  due = []
  for step in range(1, 8):
    now[0] += 25
    due.append(every.due(step))
  assert due == [False, False, True, False, False, True, False]


@pytest.mark.parametrize("spec", [0, -3, 2.5, "often", "inf seconds", True, ""])
def test_nonsense_is_refused(spec):
  with pytest.raises(errors.InputError, match=r"config\.log_every = "):
    cadence.parse(spec, "log_every")


def test_unknown_unit():
  with pytest.raises(errors.InputError, match="Did you mean 'seconds'"):
    cadence.parse("3 second", "log_every")
