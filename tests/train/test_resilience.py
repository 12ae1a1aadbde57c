"""Signals, bad numbers, hangs and full disks."""

import errno
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from mmjax import errors
from mmjax.train import resilience


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_handler_given_back(number):
  before = signal.getsignal(number)
  with resilience.StopSignal() as stop:
    assert stop.agreed(1) is None
    os.kill(os.getpid(), number)
    assert stop.agreed(2) == number.name
  assert signal.getsignal(number) is before


def test_a_second_interrupt_does_not_wait():
  with resilience.StopSignal(), pytest.raises(KeyboardInterrupt):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)


def test_bad_numbers_stop_and_say_what_to_try():
  resilience.check_finite(1, {"loss": 1.0, "grad_norm": 2.0}, None)
  resilience.check_finite(1, {"loss": 1.0, "other": float("nan")}, None)
  with pytest.raises(errors.DivergedError) as caught:
    resilience.check_finite(7, {"loss": 1.0, "grad_norm": float("inf")}, 5)
  told = str(caught.value)
  assert "step 7: grad_norm = inf" in told and "of step 5" in told
  assert "optimizer.lr" in told
  with pytest.raises(errors.DivergedError, match="no checkpoint"):
    resilience.check_finite(7, {"loss": float("nan")}, None)


def test_the_watchdog_ends_a_hanging_process_and_shows_where():
  code = (
    "import time\n"
    "from mmjax.train.resilience import Watchdog\n"
    "with Watchdog(0.3) as watch:\n"
    "  watch.beat()\n"
    "  watch.rest()\n"
    "  time.sleep(0.5)\n"  # resting: nothing happens
    "  watch.beat()\n"
    "  print('alive', flush=True)\n"
    "  time.sleep(60)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, timeout=50
  )
  assert done.returncode == 1 and done.stdout == "alive\n"
  assert 'File "<string>", line 9' in done.stderr


@pytest.mark.parametrize(
  "error, says",
  [
    (OSError(errno.ENOSPC, "No space left on device"), "no space left"),
    (ValueError("Error writing x: No space left on device"), "no space left"),
    (OSError(errno.EACCES, "Permission denied"), "no permission"),
  ],
)
def test_failures_of_the_disk(tmp_path, error, says):
  with (
    pytest.raises(errors.StorageError, match=says) as caught,
    resilience.storage(tmp_path / "deep" / "file", needed=3 << 20),
  ):
    raise error
  assert str(tmp_path) in str(caught.value)
  assert "3.0 MiB needed" in str(caught.value)


def test_other_errors_pass():
  with pytest.raises(ZeroDivisionError), resilience.storage(pathlib.Path("/")):
    raise ZeroDivisionError


def test_sizes():
  assert [resilience.size(n) for n in (12, 2048, 5 << 29, 1 << 50)] == [
    "12 B",
    "2.0 KiB",
    "2.5 GiB",
    "1024.0 TiB",
  ]
