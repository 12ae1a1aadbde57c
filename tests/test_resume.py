"""A run that is killed, stopped or moved goes on as if nothing had been."""

import importlib.util
import os
import pathlib
import random
import subprocess
import sys

import jax
import numpy as np
import pytest

from mmjax import errors, tree
from mmjax.train import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
TINY = pathlib.Path(__file__).parent / "train" / "tiny_run.py"
spec = importlib.util.spec_from_file_location("tiny_run", TINY)
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)


def program(workdir, *args):
  """Runs the tiny run as a program; returns (exit code, stderr)."""
  env = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "programs"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  done = subprocess.run(
    [sys.executable, str(TINY), str(workdir), *args],
    env=env,
    timeout=120,
    capture_output=True,
    text=True,
  )
  return done.returncode, done.stderr


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  folder = tmp_path_factory.mktemp("uninterrupted")
  tiny.fit(tiny.config(), folder)
  return tiny.rows(folder)


def test_the_same_seed_gives_the_same_run_bitwise(uninterrupted, tmp_path):
  tiny.fit(tiny.config(), tmp_path / "again")
  assert tiny.rows(tmp_path / "again") == uninterrupted
  assert len(uninterrupted) == 10 + 3  # logged, evaluated

  tiny.fit(tiny.config(seed=1), tmp_path / "other")
  assert tiny.rows(tmp_path / "other") != uninterrupted


def test_killed_at_random_steps_and_rerun_is_bitwise_the_same(
  uninterrupted, tmp_path
):
  # Before step 6: the save of step 5 has only just begun.
  for step in (6, random.Random(2).randrange(8, 20)):
    code, said = program(tmp_path, "--kill_at", str(step))
    assert code == -9, said
  tiny.fit(tiny.config(), tmp_path)
  assert tiny.rows(tmp_path) == uninterrupted


STEPS = 12
MAIN = (
  *("-m", "mmjax", "train"),
  *("--config", "experiments/emoji/siglip.py:smoke"),
  *(f"--config.steps={STEPS}", "--config.checkpoint.every=3"),
  "--config.evals.concepts.every=6",
)


def command(workdir, kill_at=None):
  """Runs the main job's command; returns (exit code, what it said).

  SIGKILL as soon as it has told of step `kill_at`.
  """
  with subprocess.Popen(
    [sys.executable, *MAIN, "--workdir", str(workdir)],
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  ) as process:
    said = []
    for line in process.stdout:
      said.append(line)
      if line.startswith(f"step {kill_at}/{STEPS} "):
        process.kill()
  return process.returncode, "".join(said)


@pytest.mark.slow
def test_the_command_killed_at_any_step_and_rerun_is_bitwise_the_same(tmp_path):
  code, said = command(tmp_path / "whole")
  assert code == 0, said
  step = random.SystemRandom().randrange(1, STEPS)
  code, said = command(tmp_path / "killed", kill_at=step)
  assert code == -9, f"to be killed at step {step}: {said}"
  code, said = command(tmp_path / "killed")
  assert code == 0, f"killed at step {step}: {said}"

  whole, killed = (tiny.rows(tmp_path / x) for x in ("whole", "killed"))
  assert [r["step"] for r in whole if r["kind"] == "train"] == [
    *range(1, STEPS + 1)
  ]
  assert killed == whole, f"killed at step {step}"
  results = [
    (tmp_path / x / "results.json").read_bytes() for x in ("whole", "killed")
  ]
  assert results[0] == results[1], f"killed at step {step}"


def test_sigterm_saves_and_exits_75(uninterrupted, tmp_path):
  code, said = program(tmp_path, "--term_at", "8")
  assert code == errors.Preempted.exit_code == 75
  assert "SIGTERM at step 8 of 20" in said and "same command" in said
  assert tiny.rows(tmp_path)[-1]["step"] == 8

  tiny.fit(tiny.config(), tmp_path)
  assert tiny.rows(tmp_path) == uninterrupted


def test_goes_on_on_another_mesh(uninterrupted, tmp_path):
  stop = _stop_at(11)
  with pytest.raises(errors.Preempted):
    tiny.fit(tiny.config(), tmp_path, hook=stop)
  moved = tiny.config(mesh={"data": 2, "fsdp": 2, "tensor": 2})

  run = tiny.make(moved)
  with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
    there = saved.restore(run.state_shapes)
    here = saved.restore(tiny.make(tiny.config()).state_shapes)
  for (name, a), (_, b) in zip(
    tree.items(there), tree.items(here), strict=True
  ):
    np.testing.assert_array_equal(a, b, err_msg=name)
  assert there.params["up"].sharding.spec == jax.P("fsdp", "tensor")
  assert there.step == 11

  tiny.fit(moved, tmp_path)
  close(tiny.rows(tmp_path), uninterrupted)


def _stop_at(step):
  def hook(now):
    if now == step:
      os.kill(os.getpid(), 15)

  return hook


def close(rows, wanted):
  """Compares rows to the tolerance of float32 sums in another order."""
  assert [r["step"] for r in rows] == [r["step"] for r in wanted]
  for row, other in zip(rows, wanted, strict=True):
    assert row.keys() == other.keys()
    for key in row.keys() - {"kind"}:
      assert row[key] == pytest.approx(other[key], rel=1e-4), (row, key)
