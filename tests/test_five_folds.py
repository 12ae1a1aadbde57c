"""tools/five_folds.py: the folds' commands, resuming, and the table."""

import importlib.util
import json
import pathlib
import statistics

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _load():
  path = ROOT / "tools" / "five_folds.py"
  spec = importlib.util.spec_from_file_location("five_folds", path)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


five_folds = _load()


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
    workdir.mkdir(parents=True)
    row = {"r@1": float(fold) ** 2, "r@5": 0.5}
    if fold == "4":
      row["only/here"] = 1.0
    (workdir / five_folds.RESULTS).write_text(json.dumps(row))
    return done

  monkeypatch.setattr(five_folds.subprocess, "run", fake_run)
  argv = ["--workdir", str(tmp_path), "--config.steps=3"]
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
