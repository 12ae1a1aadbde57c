"""`mmjax train` loads, checks, then calls the loop: nothing else."""

import sys
import types

import pytest

from mmjax.cli import main as cli
from mmjax.parallel import hosts


@pytest.fixture
def calls(monkeypatch):
  calls = []
  loop = types.ModuleType("mmjax.train.loop")
  loop.fit = lambda config, workdir: calls.append((config, workdir))
  monkeypatch.setitem(sys.modules, "mmjax.train.loop", loop)
  monkeypatch.setattr("mmjax.train.loop", loop, raising=False)
  return calls


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "x.py"
  path.write_text("def get_config(arg=''): return {'steps': 3}")
  return str(path)


def test_fit_gets_the_overridden_config(calls, file, tmp_path):
  workdir = str(tmp_path / "run")
  argv = ["train", "--config", file, "--workdir", workdir]
  assert cli.main([*argv, "--config.steps=5"]) == 0
  [(config, given)] = calls
  assert config.steps == 5 and given == workdir and config.is_locked


def test_processes_join_before_anything_touches_a_device(
  calls, file, tmp_path, monkeypatch
):
  monkeypatch.setattr(hosts, "initialize", lambda: calls.append("joined"))
  argv = ["train", "--config", file, "--workdir", str(tmp_path / "run")]
  assert cli.main(argv) == 0
  assert calls[0] == "joined" and len(calls) == 2


def test_a_workdir_that_is_a_file_is_refused(calls, file, capsys):
  assert cli.main(["train", "--config", file, "--workdir", file]) == 2
  assert "--workdir" in capsys.readouterr().err
  assert cli.main(["train", "--config", file, "--workdir", ""]) == 2
  assert not calls
