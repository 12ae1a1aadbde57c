"""What keeps a run safe: stop signals, numbers gone bad, hangs, full disks."""

import contextlib
import errno
import faulthandler
import math
import os
import pathlib
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

from mmjax import errors


class StopSignal:
  """Notes SIGTERM and SIGINT, so that the loop can save and leave.

  A context manager; on leaving it the old handlers return. A second SIGINT
  interrupts at once.
  """

  def __init__(self) -> None:
    self._name: str | None = None
    self._old: dict[int, Any] = {}

  def __enter__(self) -> "StopSignal":
    # With several processes SIGTERM belongs to JAX: its coordinator tells the
    # others and finds a step that all can reach. Ours would hide it.
    own = [signal.SIGINT]
    if jax.process_count() == 1:
      own.append(signal.SIGTERM)
    with contextlib.suppress(ValueError):  # not in the main thread: no signals
      for number in own:
        self._old[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_: Any) -> None:
    for number, handler in self._old.items():
      signal.signal(number, handler)

  def _note(self, number: int, _: Any) -> None:
    if number == signal.SIGINT and self._name:
      raise KeyboardInterrupt
    self._name = signal.Signals(number).name
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)

  def agreed(self, step: int) -> str | None:
    """Returns the signal if all processes stop after this step, or None."""
    if jax.process_count() == 1:
      return self._name
    if multihost_utils.reached_preemption_sync_point(step):
      return self._name or "SIGTERM"
    return None


def check_finite(
  step: int, metrics: Mapping[str, float], last_good: int | None
) -> None:
  """Raises DivergedError if a loss or gradient norm is not finite.

  Args:
    step: the step whose metrics these are.
    metrics: values by name; only `loss` and `grad_norm` are looked at.
    last_good: step of the newest checkpoint.
  """
  bad = [
    f"{name} = {metrics[name]}"
    for name in ("loss", "grad_norm")
    if name in metrics and not math.isfinite(metrics[name])
  ]
  if not bad:
    return
  kept = (
    "no checkpoint had been saved yet"
    if last_good is None
    else f"the last good checkpoint, of step {last_good}, is kept"
  )
  raise errors.DivergedError(
    f"step {step}: {' and '.join(bad)}, so the run was stopped and {kept}. In "
    "a new workdir try a lower optimizer.lr, a longer warmup, "
    "optimizer.clip = 1.0, or dtype = 'float32'; nan = 'skip' leaves out "
    "single bad steps. The same command would diverge at the same step."
  )


class Watchdog:
  """Ends a process that hangs, with the stack of every thread on stderr.

  A collective that waits for a dead process never returns, and Python cannot
  interrupt it; only leaving lets a supervisor start the job again.

  Attributes:
    seconds: longest time between two beats; None does nothing.
  """

  def __init__(self, seconds: float | None) -> None:
    self.seconds = seconds

  def __enter__(self) -> "Watchdog":
    return self

  def __exit__(self, *_: Any) -> None:
    self.rest()

  def beat(self) -> None:
    """Says that the run is alive."""
    if self.seconds:
      faulthandler.dump_traceback_later(
        self.seconds, exit=True, file=sys.__stderr__ or 2
      )

  def rest(self) -> None:
    """Does not watch until the next beat: evaluating, saving."""
    if self.seconds:
      faulthandler.cancel_dump_traceback_later()


def size(n: float) -> str:
  """Returns a number of bytes as people write it: "1.5 GiB"."""
  for unit in ("B", "KiB", "MiB", "GiB"):
    if n < 1024:
      return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
    n /= 1024
  return f"{n:.1f} TiB"


def free_bytes(path: pathlib.Path) -> int:
  """Returns the free bytes of the disk on which path lies or would lie."""
  while not os.path.exists(path):  # never raises, whatever is in the way
    path = path.parent
  return shutil.disk_usage(path).free


@contextlib.contextmanager
def storage(path: pathlib.Path, needed: int = 0) -> Iterator[None]:
  """Turns failures to write into StorageError; others pass unchanged.

  Args:
    path: what is written, for the message.
    needed: bytes of it, if known.
  """
  try:
    yield
  except errors.MmjaxError:
    raise
  except Exception as error:
    reason = _reason(error)
    if reason is None:
      raise
    need = f"{size(needed)} needed, " if needed else ""
    fix = "free some space" if needed or "space" in reason else "correct that"
    raise errors.StorageError(
      f"{path}: {reason}; {need}{size(free_bytes(path))} free. What was saved "
      f"before is kept: {fix} or choose another --workdir, and run the same "
      "command again."
    ) from error


_REASONS = {
  errno.ENOSPC: "no space left on the disk",
  errno.EDQUOT: "the disk quota is used up",
  errno.EROFS: "the disk is read-only",
  errno.EACCES: "no permission to write",
  errno.EPERM: "no permission to write",
  errno.ENOTDIR: "a part of the path is a file, not a folder",
}


def _reason(error: BaseException | None) -> str | None:
  """Finds a known failure of the disk among an error and its causes."""
  while error is not None:
    if isinstance(error, OSError) and error.errno in _REASONS:
      return _REASONS[error.errno]
    for number, reason in _REASONS.items():
      # Tensorstore raises ValueError and keeps only the text.
      if os.strerror(number) in str(error):
        return reason
    error = error.__cause__ or error.__context__
  return None
