"""Two processes train and evaluate like one with as many devices."""

import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest

from mmjax.cli import config as configs
from mmjax.cli import main as cli

SMOKE = "experiments/emoji/siglip.py:smoke"
SMALL = (  # compiles in half the time
  "--config.task.model.text.depth=0",
)
ROOT = pathlib.Path(__file__).parents[1]
TINY = pathlib.Path(__file__).parent / "train" / "tiny_run.py"
spec = importlib.util.spec_from_file_location("tiny_run", TINY)
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)


def two_processes(folder, *command):
  """Runs Python in two processes; returns their exit codes and words."""
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
      }
      logs.append(folder / f"{i}.log")
      with logs[-1].open("w") as out:
        started.append(
          subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=env,
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
          )
        )
    return [p.wait(timeout=180) for p in started], [x.read_text() for x in logs]
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
  codes, said = two_processes(
    tmp_path, TINY, tmp_path / "two", "--devices", "4"
  )
  assert codes == [0, 0], said
  close(tiny.rows(tmp_path / "two"), one_process)
  assert "step 20/20" in said[0] and "step 20/20" not in said[1]


def test_stop_together_and_go_on_in_one_process(one_process, tmp_path):
  # Slow steps: JAX tells the other process once a second.
  folder = tmp_path / "stopped"
  codes, said = two_processes(
    *(tmp_path, TINY, folder, "--devices", "4"),
    *("--term_at", "3", "--pause", "0.3"),
  )
  assert codes == [75, 75], said
  assert 3 <= max(int(f.name) for f in (folder / "checkpoints").iterdir()) < 20

  tiny.fit(tiny.config(), folder)
  close(tiny.rows(folder), one_process)


@pytest.mark.slow
def test_the_command_on_two_processes(tmp_path, monkeypatch, capsys):
  """Real data, dealt out: the curve and the retrieval metrics of one."""
  one, two, found = tmp_path / "one", tmp_path / "two", tmp_path / "found.json"
  concepts = configs.load(f"{ROOT}/{SMOKE}").evals.concepts.to_dict()
  words = ["--config", SMOKE, f"--config.evals={dict(concepts=concepts)}"]
  words += SMALL
  argv = ["train", *words, "--workdir"]
  codes, said = two_processes(tmp_path, "-m", "mmjax", *argv, two)
  assert codes == [0, 0], said
  rows = tiny.rows(two)
  key = "concepts/text_to_image/R@5"
  (metrics,) = (r for r in rows if key in r)
  assert metrics[key] > 0

  monkeypatch.chdir(ROOT)
  pair = jax.devices()[:2]
  monkeypatch.setattr(jax, "devices", lambda *_: pair)
  assert cli.main([*argv, str(one), "--config.evals={}"]) == 0
  close([r for r in rows if r["kind"] == "train"], tiny.rows(one))

  # What two have saved, one restores and finds the same numbers, exactly.
  argv = ["evaluate", *words, "--workdir", str(two)]
  assert cli.main([*argv, "--json", str(found)]) == 0

  metrics = {k: v for k, v in metrics.items() if k.startswith("concepts/")}
  assert json.loads(found.read_text()) == metrics
