"""Metrics on their way from the device to file, TensorBoard and screen."""

import collections
import contextlib
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import tensorboardX
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mmjax import errors
from mmjax.parallel import hosts
from mmjax.train import resilience

Row = dict[str, Any]


class Pending:
  """Metrics of steps that nobody has waited for yet.

  Every step's loss and gradient norm are kept, so that the first bad one is
  found; the other metrics only of steps that are logged.
  """

  def __init__(self) -> None:
    self._queue: collections.deque[tuple[int, bool, Any]] = collections.deque()

  def push(
    self, step: int, metrics: Mapping[str, jax.Array], logged: bool
  ) -> None:
    """Takes the metrics of a step, and starts their way to the host."""
    if not logged:
      metrics = {k: metrics[k] for k in ("loss", "grad_norm") if k in metrics}
    for value in metrics.values():
      value.copy_to_host_async()
    self._queue.append((step, logged, dict(metrics)))

  def wait(self, upto: int) -> None:
    """Waits until the steps up to one are computed."""
    for step, _, metrics in reversed(self._queue):
      if step <= upto:
        jax.block_until_ready(metrics)
        return

  def drain(self, upto: int) -> Iterator[tuple[int, bool, dict[str, float]]]:
    """Yields (step, logged, values) of the steps up to one, oldest first."""
    while self._queue and self._queue[0][0] <= upto:
      step, logged, metrics = self._queue.popleft()
      values = jax.device_get(metrics)
      yield step, logged, {k: float(v) for k, v in values.items()}


def read(path: pathlib.Path) -> list[Row]:
  """Returns the rows of a metrics.jsonl, [] if there is none.

  A last line that a killed run left unfinished is left out.
  """
  rows = []
  if path.exists():
    for line in path.read_text().splitlines():
      try:
        rows.append(json.loads(line))
      except json.JSONDecodeError:
        break
  return rows


def cut(path: pathlib.Path, step: int) -> list[Row]:
  """Removes the rows after a step, which will be written anew; returns all."""
  rows = [row for row in read(path) if row["step"] <= step]
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text("".join(map(_line, rows)))
  temporary.replace(path)
  return rows


def _line(row: Row) -> str:
  # JSON has no NaN; a bad number is null, and the error says it in words.
  clean = {
    k: None if isinstance(v, float) and not math.isfinite(v) else v
    for k, v in row.items()
  }
  return json.dumps(clean) + "\n"


class Log:
  """Writes rows to metrics.jsonl and TensorBoard, and shows the progress.

  A context manager. In other processes than the lead it does nothing, but for
  keeping `rows`.

  Attributes:
    rows: all rows of the run so far, as in the file.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    start: int,
    steps: int,
    console: Console | None = None,
  ) -> None:
    """Opens the files, and cuts what was written after step `start`.

    Args:
      workdir: exists.
      start: the restored step, 0 for a new run.
      steps: of the whole run.
      console: default stdout.
    """
    self.console = console or Console(file=sys.stdout, highlight=False)
    self._path = workdir / "metrics.jsonl"
    self._start, self._steps = start, steps
    self._lead = hosts.is_lead()
    self._board = self._file = self._bar = None
    if not self._lead:
      self.rows = [r for r in read(self._path) if r["step"] <= start]
      hosts.barrier("metrics")  # read before the lead cuts
      return
    hosts.barrier("metrics")
    with resilience.storage(self._path):
      self.rows = cut(self._path, start)
      self._file = self._path.open("a")
      self._board = tensorboardX.SummaryWriter(
        str(workdir / "tensorboard"),
        purge_step=start + 1 if start else None,
        write_to_disk=True,
      )

  def __enter__(self) -> "Log":
    if self._lead and self.console.is_terminal and self._start < self._steps:
      self._bar = Progress(
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[note]}"),
        console=self.console,
        transient=True,
      )
      self._bar.start()
      self._task = self._bar.add_task(
        "", total=self._steps, completed=self._start, note="compiling"
      )
    return self

  def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
    self.end_progress()
    try:
      # Closing writes what is left, and fails once more on a full disk.
      with resilience.storage(self._path), contextlib.ExitStack() as stack:
        if self._board:
          stack.callback(_close_board, self._board)
        if self._file:
          stack.callback(self._file.close)
    except errors.StorageError:
      if error is None:  # what ended the run says more than its echo
        raise

  def end_progress(self) -> None:
    """Takes the progress bar away, before a table is printed."""
    if self._bar:
      self._bar.stop()
      self._bar = None

  def write(self, row: Row) -> None:
    """Adds a row; keys that begin with "time/" may differ between runs."""
    self.rows.append(row)
    if not self._file or not self._board:
      return
    with resilience.storage(self._path):
      self._file.write(_line(row))
      # At once, so that a full disk shows here: the board writes in a thread
      # that dies of it without a word, and then blocks who adds to its queue.
      self._file.flush()
      for key, value in row.items():
        if key not in ("step", "kind") and value is not None:
          self._board.add_scalar(key, value, row["step"])

  def flush(self) -> None:
    """Puts all rows on the disk; before a checkpoint, which relies on it."""
    if self._file and self._board:
      with resilience.storage(self._path):
        self._file.flush()
        self._board.flush()

  def image(self, name: str, picture_YXC: Any, step: int) -> None:
    """Adds a picture (uint8) to TensorBoard."""
    if self._board:
      self._board.add_image(name, picture_YXC, step, dataformats="HWC")

  def say(self, text: str) -> None:
    """Prints a line, in the lead."""
    if self._lead:
      self.console.print(text, markup=False, soft_wrap=True)

  def progress(self, step: int) -> None:
    """Moves the progress bar, if there is one."""
    if self._bar:
      self._bar.update(self._task, completed=step)

  def show(self, row: Row) -> None:
    """Shows a row of training metrics: in the bar, or as a line."""
    if not self._lead:
      return
    note = self.note(row)
    if self._bar:
      self._bar.update(self._task, completed=row["step"], note=note)
    else:
      self.say(f"step {row['step']}/{self._steps}  {note}")

  def note(self, row: Row) -> str:
    """Returns "loss 1.234  0.120 s/step  533 examples/s  ...".

    Examples/s/chip are shown where there is more than one chip.
    """
    parts = [f"loss {row['loss']:.4f}"] if "loss" in row else []
    if "time/step_s" in row:
      parts.append(f"{row['time/step_s']:.3f} s/step")
      parts.append(f"{row['time/examples_per_s']:.0f} examples/s")
      chip = row.get("time/examples_per_s_per_chip")
      if chip is not None and chip != row["time/examples_per_s"]:
        parts.append(f"{chip:.1f} examples/s/chip")
      mfu = row.get("time/mfu")
      parts.append(f"MFU {mfu:.1%}" if mfu else "MFU n/a")
      parts.append(f"host {row['time/host_share']:.1%}")
      left = int(row["time/step_s"] * (self._steps - row["step"]))
      parts.append(f"left {left // 60}:{left % 60:02d}")
    return "  ".join(parts)


def _close_board(board: Any) -> None:
  events = board.file_writer.event_writer
  try:
    board.close()
  except OSError:
    # tensorboardX leaves its thread running then, and closes once more at
    # exit: two tracebacks after the paragraph that says it all, or a hang if
    # the thread is dead and its queue full.
    writer = events._ev_writer
    writer.write_event = writer.flush = writer.close = lambda *_: None
    if events._worker.is_alive():
      events.close()
    events.close = lambda: None
    raise


def results(rows: list[Row], step: int) -> dict[str, float]:
  """Returns what the evaluators found at a step, {"evaluator/metric": x}."""
  found: dict[str, float] = {}
  for row in rows:
    if row["step"] == step and row.get("kind") == "eval":
      found.update(row)
  return {
    k: v
    for k, v in found.items()
    if k not in ("step", "kind") and not k.startswith("time/")
  }
