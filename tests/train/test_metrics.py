"""Rows in the file, on the board and on the screen."""

import io
import json
import os

import jax.numpy as jnp
import pytest
from rich.console import Console

from mmjax import errors
from mmjax.train import metrics


def row(step, **more):
  return {"step": step, "kind": "train", "loss": 1.0 / step, **more}


def log(folder, start=0, **keywords):
  return metrics.Log(folder, start=start, steps=10, **keywords)


def test_rows_come_back_as_written(tmp_path):
  rows = [row(1), row(2, x=float("nan")), row(3)]
  with log(tmp_path) as out:
    for r in rows:
      out.write(r)
  rows[1]["x"] = None  # JSON has no NaN
  assert metrics.read(tmp_path / "metrics.jsonl") == rows
  assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_resume_cuts_what_will_be_written_again(tmp_path):
  path = tmp_path / "metrics.jsonl"
  with log(tmp_path) as out:
    for step in range(1, 8):
      out.write(row(step))
  with path.open("a") as file:
    file.write('{"step": 8, "lo')  # killed while writing
  with log(tmp_path, start=5) as out:
    assert [r["step"] for r in out.rows] == [1, 2, 3, 4, 5]
    out.write(row(6))
  assert [json.loads(x)["step"] for x in path.read_text().splitlines()] == [
    *range(1, 7)
  ]


def test_pending_keeps_the_loss_of_all_and_the_rest_of_the_logged():
  pending = metrics.Pending()
  for step in range(1, 5):
    values = {"loss": jnp.float32(step), "lr": jnp.float32(0.5)}
    pending.push(step, values, logged=step % 2 == 0)
  assert list(pending.drain(3)) == [
    (1, False, {"loss": 1.0}),
    (2, True, {"loss": 2.0, "lr": 0.5}),
    (3, False, {"loss": 3.0}),
  ]
  pending.wait(4)
  assert [step for step, _, _ in pending.drain(9)] == [4]
  assert list(pending.drain(9)) == []


def test_plain_lines_without_a_terminal(tmp_path):
  screen = io.StringIO()
  with log(tmp_path, console=Console(file=screen, width=200)) as out:
    out.show(row(2, **timing()))
  assert screen.getvalue() == (
    "step 2/10  loss 0.5000  9.000 s/step  7 examples/s  MFU n/a  host 1.2%  "
    "left 1:12\n"
  )


def test_a_bar_on_a_terminal(tmp_path):
  screen = io.StringIO()
  console = Console(file=screen, width=120, force_terminal=True)
  with log(tmp_path, console=console) as out:
    out.progress(1)
    out.show(row(2, **timing(), **{"time/mfu": 0.25}))
    out.end_progress()
  shown = screen.getvalue()
  assert "step 2/10" in shown and "MFU 25.0%" in shown and "left 1:12" in shown


def timing():
  return {
    "time/step_s": 9.0,
    "time/examples_per_s": 7.0,
    "time/host_share": 0.012,
  }


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
  with log(tmp_path) as out:

    def full(_):
      raise OSError(28, "No space left on device")

    class File:
      write = staticmethod(full)
      close = staticmethod(out._file.close)

    monkeypatch.setattr(out, "_file", File())
    with pytest.raises(errors.StorageError, match=r"metrics.jsonl: no space"):
      out.write(row(1))


needs_full = pytest.mark.skipif(
  not os.path.exists("/dev/full"), reason="the device is that of Linux"
)


@needs_full
def test_a_full_disk_stays_a_storage_error_when_the_log_closes(tmp_path):
  # What could not be written is still in the buffer, and closing tries again.
  with (
    pytest.raises(errors.StorageError, match=r"metrics.jsonl: no space"),
    log(tmp_path) as out,
  ):
    out._file = open("/dev/full", "a")
    out.write(row(1))


@needs_full
def test_a_disk_that_is_full_only_when_the_log_closes(tmp_path):
  with (
    pytest.raises(errors.StorageError, match=r"metrics.jsonl: no space"),
    log(tmp_path) as out,
  ):
    out._file = open("/dev/full", "a")
    out._file.write("x")
  # An error that is under way is the one that is told.
  with pytest.raises(errors.DataError), log(tmp_path) as out:
    out._file = open("/dev/full", "a")
    out._file.write("x")
    raise errors.DataError("too many")


@needs_full
def test_a_board_that_cannot_be_closed_is_not_closed_again_at_exit(tmp_path):
  with (
    pytest.raises(errors.StorageError, match=r"no space"),
    log(tmp_path) as out,
  ):
    events = out._board.file_writer.event_writer
    events._ev_writer._py_recordio_writer._writer = open("/dev/full", "ab")
    events._ev_writer._py_recordio_writer.write(b"x")
  events.close()


def test_several_chips_are_told_apart(tmp_path):
  with log(tmp_path) as out:
    each = {"time/examples_per_s_per_chip": 3.5}
    assert "7 examples/s  3.5 examples/s/chip  MFU" in out.note(
      row(2, **timing(), **each)
    )
    each = {"time/examples_per_s_per_chip": 7.0}
    assert "chip" not in out.note(row(2, **timing(), **each))


def test_results_of_a_step():
  rows = [
    row(8),
    {"step": 4, "kind": "eval", "a/x": 0.1},
    {"step": 8, "kind": "eval", "a/x": 0.2, "time/eval_s": 3.0},
    {"step": 8, "kind": "eval", "b/y": 0.3},
  ]
  assert metrics.results(rows, 8) == {"a/x": 0.2, "b/y": 0.3}
  assert metrics.results(rows, 9) == {}
