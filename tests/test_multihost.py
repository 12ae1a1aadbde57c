"""Two processes of four devices train like one process of eight."""

import importlib.util
import os
import pathlib
import socket
import subprocess
import sys

import pytest

TINY = pathlib.Path(__file__).parent / "train" / "tiny_run.py"
spec = importlib.util.spec_from_file_location("tiny_run", TINY)
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)


def two_processes(workdir, *args):
  """Runs the tiny run in two processes; returns their exit codes."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  started, logs = [], []
  try:
    for i in range(2):
      env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(i),
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent.parent / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      }
      logs.append(workdir.parent / f"{workdir.name}.{i}.log")
      with logs[-1].open("w") as out:
        started.append(
          subprocess.Popen(
            [sys.executable, TINY, workdir, "--devices", "4", *args],
            env=env,
            stdout=out,
            stderr=subprocess.STDOUT,
          )
        )
    return [p.wait(timeout=90) for p in started], [x.read_text() for x in logs]
  finally:
    for process in started:
      process.kill()


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
  folder = tmp_path_factory.mktemp("one")
  tiny.fit(tiny.config(), folder)
  return tiny.rows(folder)


def close(rows, wanted):
  assert [r["step"] for r in rows] == [r["step"] for r in wanted]
  for row, other in zip(rows, wanted, strict=True):
    assert row.keys() == other.keys()
    for key in row.keys() - {"kind"}:
      assert row[key] == pytest.approx(other[key], rel=1e-4), (row, key)


def test_two_processes_give_the_curve_of_one(one_process, tmp_path):
  codes, said = two_processes(tmp_path / "two")
  assert codes == [0, 0], said
  close(tiny.rows(tmp_path / "two"), one_process)
  assert "step 20/20" in said[0] and "step 20/20" not in said[1]


def test_stop_together_and_go_on_in_one_process(one_process, tmp_path):
  # Slow steps: JAX tells the other process once a second.
  folder = tmp_path / "stopped"
  codes, said = two_processes(folder, "--term_at", "3", "--pause", "0.3")
  assert codes == [75, 75], said
  assert 3 <= max(int(f.name) for f in (folder / "checkpoints").iterdir()) < 20

  tiny.fit(tiny.config(), folder)
  close(tiny.rows(folder), one_process)
