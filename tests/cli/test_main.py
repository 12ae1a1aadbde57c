"""The front door: dispatch, help, one-paragraph errors, exit codes, speed."""

import os
import platform
import subprocess
import sys
import time
import types

import pytest

from mmjax import errors
from mmjax.cli import main as cli


def run(capsys, *argv):
  code = cli.main(list(argv))
  out, err = capsys.readouterr()
  return code, out, err


@pytest.fixture
def fake(monkeypatch):
  """A command `train` that records its arguments, or raises `outcome`."""
  seen = types.SimpleNamespace(args=None, outcome=None)

  def command(args):
    seen.args = args
    if seen.outcome is not None:
      raise seen.outcome
    return 0

  module = types.ModuleType("mmjax.cli.train")
  module.add_arguments = lambda p: p.add_argument("--workdir", required=True)
  module.run = command
  monkeypatch.setitem(sys.modules, "mmjax.cli.train", module)
  return seen


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",), ("help",)])
def test_help_names_every_command_and_exit_code(capsys, argv):
  code, out, err = run(capsys, *argv)
  assert code == 0 and not err
  assert all(name in out for name in cli.COMMANDS)
  assert "75 preempted" in out and "130 interrupted" in out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(capsys, name):
  code, out, _ = run(capsys, name, "--help")
  assert code == 0 and ("--config" in out) == (name != "weights")


def test_unknown_command_and_argument_name_the_nearest(capsys, fake):
  code, out, err = run(capsys, "trian")
  assert code == 2 and not out and "'train'" in err
  code, _, err = run(capsys, "train", "--wrkdir", "x")
  assert code == 2 and "--wrkdir" in err and "'--workdir'" in err
  code, _, err = run(capsys, "train")
  assert code == 2 and "--workdir" in err
  assert fake.args is None


def test_overrides_are_taken_out_in_both_spellings(capsys, fake):
  code, _, _ = run(
    capsys, "train", "--config.a.b=1=2", "--workdir", "w", "--config.c", "-3"
  )
  assert code == 0
  assert fake.args.overrides == ["a.b=1=2", "c=-3"]
  code, _, err = run(capsys, "train", "--workdir", "w", "--config.seed")
  assert code == 2 and "--config.seed" in err


@pytest.mark.parametrize(
  "error, code",
  [
    (errors.InputError, 2),
    (errors.DataError, 3),
    (errors.DivergedError, 4),
    (errors.StorageError, 5),
    (errors.Preempted, 75),
  ],
)
def test_errors_are_one_paragraph_with_their_exit_code(
  capsys, fake, error, code
):
  fake.outcome = error("field = 3: too few; use 4.")
  assert run(capsys, "train", "--workdir", "w") == (
    code,
    "",
    "mmjax: field = 3: too few; use 4.\n",
  )


def test_bugs_keep_their_traceback(fake):
  fake.outcome = KeyError("ours")
  with pytest.raises(KeyError):
    cli.main(["train", "--workdir", "w"])


def test_a_missing_config_is_told_within_a_second_without_jax():
  # In a process of its own: the import of JAX alone takes about a second, and
  # is what this test forbids.
  start = time.perf_counter()
  argv = ["mmjax", "train", "--config", "nope.py", "--workdir", "w"]
  code = (
    "import sys; from mmjax import __main__ as m\n"
    f"sys.argv = {argv}\n"
    "try: m.main()\n"
    "finally: print('jax' in sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True
  )
  seconds = time.perf_counter() - start
  assert done.returncode == 2
  assert done.stdout == "False\n"
  assert done.stderr.startswith("mmjax: --config = nope.py")
  # Measured 0.2 s; the bound leaves room for a machine that others use too.
  assert seconds < 2


BUT_ARENAS = (
  "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:"
  "glibc.malloc.trim_threshold=1099511627776"
)
ALL = f"{BUT_ARENAS}:glibc.malloc.arena_max=1"


@pytest.mark.skipif(
  platform.libc_ver()[0] != "glibc", reason="the setting is that of glibc"
)
@pytest.mark.parametrize(
  "before, after",
  [
    (None, ALL),
    ("glibc.malloc.check=1", f"glibc.malloc.check=1:{ALL}"),
    ("glibc.malloc.arena_max=9", f"glibc.malloc.arena_max=9:{BUT_ARENAS}"),
    (ALL, ALL),
  ],
)
def test_the_command_keeps_freed_memory_unless_told(before, after):
  # The process of the command sees what its start left in the environment;
  # its arguments and its exit code pass through.
  code = (
    "import os, sys; from mmjax import __main__ as m\n"
    "m.cli.main = lambda: print(os.environ['GLIBC_TUNABLES']) or 7\n"
    "m.main()"
  )
  environment = dict(os.environ)
  environment.pop("GLIBC_TUNABLES", None)
  if before is not None:
    environment["GLIBC_TUNABLES"] = before
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    env=environment,
  )
  assert (done.returncode, done.stdout) == (7, after + "\n"), done.stderr
