"""tools/five_folds.py: the folds' commands, resuming, and the table."""

import importlib.util
import json
import pathlib
import statistics

import pytest

from mmjax.cli import config as configs
from mmjax.train import validate
from mmjax.train import workdir as workdirs

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _load():
  path = ROOT / "tools" / "five_folds.py"
  spec = importlib.util.spec_from_file_location("five_folds", path)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


five_folds = _load()
SMOKE = f"{ROOT}/experiments/emoji/siglip.py:smoke"


def claim(workdir, fold, *overrides):
  """Leaves what `mmjax train` leaves of its config."""
  config = configs.load(f"{SMOKE},fold={fold}", overrides)
  workdirs.claim(workdir, validate.resolve(config))


def test_fold_joins_the_words_of_the_config():
  assert five_folds.with_fold("a/b.py", "3") == "a/b.py:fold=3"
  assert five_folds.with_fold("a/b.py:smoke", "0") == "a/b.py:smoke,fold=0"


def test_table_of_all_folds_resumes_where_it_stopped(
  tmp_path, monkeypatch, capsys
):
  trained, stop_at = [], ["2"]

  class Done:
    returncode = 0

  def fake_run(command):
    workdir = pathlib.Path(command[command.index("--workdir") + 1])
    spec = command[command.index("--config") + 1]
    fold = spec.rpartition("fold=")[2]
    done = Done()
    if fold in stop_at:
      done.returncode = 75
      return done
    assert command[-1] == "--config.steps=3"
    trained.append(fold)
    claim(workdir, fold, "steps=3")
    row = {"r@1": float(fold) ** 2, "r@5": 0.5}
    if fold == "4":
      row["only/here"] = 1.0
    (workdir / five_folds.RESULTS).write_text(json.dumps(row))
    return done

  monkeypatch.setattr(five_folds.subprocess, "run", fake_run)
  argv = ["--config", SMOKE, "--workdir", str(tmp_path), "--config.steps=3"]
  with pytest.raises(SystemExit) as stopped:
    five_folds.main(argv)
  assert stopped.value.code == 75 and trained == ["0", "1"]
  stop_at.clear()
  assert five_folds.main(argv) == 0
  assert trained == ["0", "1", "2", "3", "4"]  # none of them twice

  table = json.loads((tmp_path / "folds.json").read_text())
  values = [0.0, 1.0, 4.0, 9.0, 16.0]
  assert table["r@1"]["folds"] == values
  assert table["r@1"]["mean"] == 6.0
  assert table["r@1"]["std"] == statistics.stdev(values)
  assert table["r@5"]["std"] == 0.0 and "only/here" not in table
  text = (tmp_path / "folds.md").read_text()
  assert text in capsys.readouterr().out
  assert "| r@5 | 0.5000 |" in text


@pytest.mark.parametrize("ended", [True, False])
def test_a_fold_of_another_config_is_refused_before_any_is_trained(
  tmp_path, monkeypatch, capsys, ended
):
  trained = []
  monkeypatch.setattr(
    five_folds, "train", lambda spec, *_: trained.append(spec)
  )
  # Not the first fold: hours could have passed before it is met.
  workdir = tmp_path / "fold_1"
  claim(workdir, 1, "steps=3")
  if ended:
    (workdir / five_folds.RESULTS).write_text('{"r@1": 0.5}')
  argv = ["--config", SMOKE, "--workdir", str(tmp_path), "--folds", "0,1"]
  assert five_folds.main([*argv, "--config.steps=4"]) == 2
  told = capsys.readouterr().err
  assert "steps: 3 there, 4 now" in told and str(workdir) in told
  assert not trained
  # The same overrides written otherwise, and harmless ones, are the same run.
  (tmp_path / "fold_0").mkdir()
  for fold in "01":
    (tmp_path / f"fold_{fold}" / five_folds.RESULTS).write_text('{"r@1": 0.5}')
  same = ["--config.steps=4", "--config.steps=3", "--config.log_every=1"]
  assert five_folds.main([*argv, *same]) == 0 and len(trained) == 2


def test_results_without_a_config_are_not_trusted(tmp_path, monkeypatch):
  ran = []

  class Done:
    returncode = 0

  def fake_run(command):
    ran.append(command)
    return Done()

  monkeypatch.setattr(five_folds.subprocess, "run", fake_run)
  (tmp_path / five_folds.RESULTS).write_text("{}")
  five_folds.train("spec", tmp_path, [])
  claim(tmp_path, 0)
  five_folds.train("spec", tmp_path, [])
  assert len(ran) == 1
