"""Every experiment file: its first lines, and two steps at :smoke."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from mmjax.cli import config as configs
from mmjax.cli import main as cli

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "experiments").glob("*/*.py"))
MAIN = "experiments/emoji/siglip.py"
NAMES = [str(p.relative_to(ROOT)) for p in FILES]


def test_there_are_experiments_and_each_is_in_the_table():
  assert len(FILES) >= 3
  table = (ROOT / "experiments" / "README.md").read_text()
  for name in NAMES:
    assert f"`{name.removeprefix('experiments/')}`" in table


@pytest.mark.parametrize("name", NAMES)
def test_first_lines_are_the_appendix_of_the_paper(name):
  text = (ROOT / name).read_text().split('"""')[1]
  for word in ("Paper:", "Command:", "Hardware:", "Expected:"):
    assert f"\n{word} " in text, f"{name} lacks {word}"
  assert f"--config {name}" in text
  letter = text.split("\nReproduction: ")[1][0]
  assert letter in "ABCD"


def test_configs_load_without_jax_and_differ_at_smoke():
  code = (
    "import sys\n"
    "from mmjax.cli import config\n"
    f"for name in {NAMES}:\n"
    "  assert config.load(name).steps > config.load(name + ':smoke').steps\n"
    "print('jax' in sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_wrong_words_are_refused_with_the_nearest(name, capsys):
  for word, nearest in (("smok", "smoke"), ("fold=9", "fold")):
    argv = ["train", "--config", f"{ROOT}/{name}:{word}", "--workdir", "w"]
    assert cli.main(argv) == 2
    assert nearest in capsys.readouterr().err


def _curve(workdir):
  """The metrics file without what depends on the clock."""
  rows = []
  for line in (workdir / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    rows.append({k: v for k, v in row.items() if not k.startswith("time/")})
  return rows


def _train(name, workdir):
  """Runs the command on an experiment's smoke; returns its curve."""
  argv = ["train", "--config", f"{ROOT}/{name}:smoke", "--workdir"]
  assert cli.main([*argv, str(workdir)]) == 0
  return _curve(workdir)


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_and_a_checkpoint_of_each(name, tmp_path, one_device):
  config = configs.load(f"{ROOT}/{name}:smoke")
  assert config.steps == 2 and config.checkpoint.every == 1
  curve = _train(name, tmp_path)
  assert [r["step"] for r in curve if "loss" in r] == [1, 2]
  assert (tmp_path / "checkpoints" / "2").is_dir()


@pytest.mark.slow  # tests/test_resume.py kills and resumes a smaller run
def test_the_main_job_dies_and_goes_on_with_the_same_loss(tmp_path, one_device):
  workdir, again = tmp_path / "run", tmp_path / "again"
  curve = _train(MAIN, workdir)
  # The same run, as if it had died after step 1.
  shutil.copytree(workdir, again)
  (again / "results.json").unlink(missing_ok=True)
  shutil.rmtree(again / "checkpoints" / "2")
  assert _train(MAIN, again) == curve
