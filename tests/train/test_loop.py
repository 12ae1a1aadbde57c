"""The loop on a tiny run; killing and moving it is tested in test_resume."""

import importlib.util
import json
import pathlib
import signal
import types

import numpy as np
import pytest

from mmjax import errors
from mmjax.train import cadence, checkpoint, loop, throughput
from mmjax.train import workdir as workdirs

TINY = pathlib.Path(__file__).parent / "tiny_run.py"
spec = importlib.util.spec_from_file_location("tiny_run", TINY)
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)


def short(**changes):
  return tiny.config(
    **{
      "steps": 6,
      "evals": {},
      "checkpoint": {"every": 3, "keep": 2},
      **changes,
    }
  )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("finished")
  evals = {
    "often": {"name": "norm", "every": 2},
    "last": {"name": "norm"},
  }
  c = short(evals=evals)
  return c, folder, tiny.fit(c, folder)


def test_what_a_run_leaves(finished):
  _, folder, found = finished
  names = {path.name for path in folder.iterdir()}
  assert names == {
    "config.json",
    "metrics.jsonl",
    "results.json",
    "results.md",
    "curves.png",
    "tensorboard",
    "checkpoints",
  }
  assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
    "3",
    "6",
  ]
  assert json.loads((folder / "results.json").read_text()) == found
  assert found["often/norm"] == found["last/norm"] > 0


def test_the_rows(finished):
  _, folder, _ = finished
  rows = tiny.rows(folder)
  assert [(r["step"], r["kind"]) for r in rows] == [
    (2, "train"),
    (2, "eval"),
    (4, "train"),
    (4, "eval"),
    (6, "train"),
    (6, "eval"),
    (6, "eval"),
  ]
  assert rows[0].keys() == {
    "step",
    "kind",
    "loss",
    "grad_norm",
    "lr",
    "largest",
  }
  assert rows[0]["loss"] > rows[4]["loss"]


def test_time_is_in_every_row_of_training(finished):
  _, folder, _ = finished
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  for row in map(json.loads, lines):
    if row["kind"] == "train":
      assert row["time/step_s"] > 0 and 0 <= row["time/host_share"] <= 1
      # Two products of [16 16] x [16 32], three times, on eight devices.
      flops = 3 * 2 * (2 * 16 * 16 * 32)
      assert row["time/tflops_per_chip"] * 8e12 * row["time/step_s"] == (
        pytest.approx(flops)
      )


def test_a_finished_run_is_not_run_again(finished, monkeypatch):
  c, folder, found = finished
  before = (folder / "metrics.jsonl").read_bytes()
  monkeypatch.setattr(tiny.Feed, "__next__", None)
  assert tiny.fit(c, folder) == found
  assert (folder / "metrics.jsonl").read_bytes() == before


def test_killed_in_the_last_evaluation(finished):
  c, folder, found = finished
  path = folder / "metrics.jsonl"
  before = tiny.rows(folder)
  path.write_text("".join(path.read_text().splitlines(True)[:-1]))
  assert tiny.fit(c, folder) == found
  assert tiny.rows(folder) == before


def test_divergence_stops_before_it_is_saved(tmp_path):
  # Step 5 is bad, 6 is saved and logged: neither may happen.
  with pytest.raises(errors.DivergedError) as caught:
    tiny.fit(short(), tmp_path, poison=5)
  assert "step 5: loss = nan" in str(caught.value)
  assert "of step 3, is kept" in str(caught.value)
  assert [r["step"] for r in tiny.rows(tmp_path)] == [2, 4]
  with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
    assert saved.latest() == 3


def test_divergence_may_be_skipped(tmp_path):
  tiny.fit(short(nan="skip", log_every=1), tmp_path, poison=5)
  rows = tiny.rows(tmp_path)
  assert [r["skipped"] for r in rows] == [0, 0, 0, 0, 1, 0]
  assert rows[4]["loss"] is None and rows[5]["loss"] < rows[0]["loss"]


def test_a_signal_in_the_last_step_lets_the_run_finish(tmp_path):
  def hook(step):
    if step == 6:
      signal.raise_signal(signal.SIGINT)

  tiny.fit(short(), tmp_path, hook=hook)
  assert (tmp_path / "results.json").exists()


def test_errors_of_the_data_pass_and_the_feed_is_closed(tmp_path, monkeypatch):
  closed = []

  def hook(step):
    if step == 5:
      raise errors.DataError("too many")

  monkeypatch.setattr(tiny.Feed, "close", lambda self: closed.append(1))
  with pytest.raises(errors.DataError, match="too many"):
    tiny.fit(short(), tmp_path, hook=hook)
  assert closed == [1]
  with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
    assert saved.latest() == 3  # the save that was under way is whole


def _corrupt(run, *records):
  run.input.ledger = types.SimpleNamespace(
    corrupt=len(records), draws=100, records=set(records)
  )
  return run


def test_corrupt_records_are_told_when_stopped_and_after_a_resume(
  tmp_path, capsys
):
  def stop(step):
    if step == 4:
      signal.raise_signal(signal.SIGTERM)

  c = short()
  workdirs.claim(tmp_path, c)
  with pytest.raises(errors.Preempted):
    loop.train(_corrupt(tiny.make(c, hook=stop), 7, 3), tmp_path, c)
  assert "data: 2 of 100 examples were corrupt" in capsys.readouterr().out
  loop.train(_corrupt(tiny.make(c), 5), tmp_path, c)
  said = capsys.readouterr().out
  assert "data: 1 of 100 examples since step 4 were corrupt" in said
  assert "their records: [5]" in said


def test_corrupt_records_of_all_processes_are_told(monkeypatch):
  def both(tree):  # the other process has found twelve, 20 to 31
    other = {
      "counts": np.asarray([12, 50], np.int32),
      "records": np.arange(20, 30, dtype=np.int32),
    }
    return {k: np.stack([tree[k], other[k]]) for k in tree}

  monkeypatch.setattr(loop.hosts, "allgather", both)
  said = []
  run = types.SimpleNamespace(input=types.SimpleNamespace())
  log = types.SimpleNamespace(say=said.append)
  loop._tell_corrupt(_corrupt(run), log, 0)
  loop._tell_corrupt(_corrupt(run, 40, 2), log, 0)
  assert "12 of 150" in said[0] and f"{list(range(20, 30))}" in said[0]
  assert "14 of 150" in said[1] and f"{[2, *range(20, 29)]}" in said[1]


def test_the_formula_is_told_once(tmp_path, capsys):
  tiny.fit(short(), tmp_path)
  said = capsys.readouterr().out
  assert said.count(throughput.FORMULA) == 1
  assert said.count(" examples/s/chip  MFU n/a") == 3  # eight devices
  tiny.fit(short(), tmp_path)  # it is done: there is nothing to measure
  assert throughput.FORMULA not in capsys.readouterr().out


def test_fit_refuses_before_it_works(tmp_path):
  with pytest.raises(errors.InputError, match="'stepz'"):
    loop.fit({"stepz": 1}, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_an_evaluation_every_so_many_examples():
  every, evals = loop._cadences(
    {
      "checkpoint": {"every": 3},
      "evals": {"a": {"every": "64 examples"}, "b": {}},
    },
    batch_size=32,
  )
  assert every == cadence.Cadence(3, "steps", 32, every.last)
  assert [evals["a"].due(i) for i in (1, 2, 3, 4)] == [False, True] * 2
  assert not evals["b"].due(10**6)
