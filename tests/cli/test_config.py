"""Config files: found, run, overridden by value and type, locked."""

import ml_collections
import pytest

from mmjax import errors
from mmjax.cli import config as configs

FILE = """
import ml_collections

def get_config(arg=""):
  if arg == "bad":
    raise ValueError("argument 'bad' is not known.")
  return ml_collections.ConfigDict(dict(
    arg=arg, steps=10, on=False, note=None, ks=(1, 5),
    optimizer=dict(lr=1e-3, name="adamw"), mesh=dict(data=-1)))
"""


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "file.py"
  path.write_text(FILE)
  return str(path)


def test_words_after_the_colon_reach_get_config(path):
  assert configs.load(path).arg == ""
  assert configs.load(path + ":smoke,fold=2").arg == "smoke,fold=2"


def test_config_is_locked(path):
  config = configs.load(path)
  with pytest.raises((KeyError, AttributeError)):
    config.new = 1
  with pytest.raises(AttributeError):
    _ = config.stepz


@pytest.mark.parametrize(
  "override, field, value",
  [
    ("steps=3", "steps", 3),
    ("on=true", "on", True),
    ("on=False", "on", False),
    ("note=plain text", "note", "plain text"),
    ("note=[1, 'a']", "note", [1, "a"]),
    ("ks=[2]", "ks", (2,)),
    ("optimizer.lr=2", "optimizer.lr", 2.0),
    ("optimizer.lr=5e-4", "optimizer.lr", 5e-4),
    ("optimizer.name=sgd", "optimizer.name", "sgd"),
    ("optimizer.name='sgd'", "optimizer.name", "sgd"),
    ("optimizer.name=3", "optimizer.name", "3"),
    ("mesh={'fsdp': 8}", "mesh.fsdp", 8),
  ],
)
def test_overrides(path, override, field, value):
  node = configs.load(path, [override])
  for key in field.split("."):
    node = node[key]
  if isinstance(node, list):
    node = list(node)
  assert node == value and type(node) is type(value)


def test_later_overrides_win(path):
  assert configs.load(path, ["steps=1", "steps=2"]).steps == 2


@pytest.mark.parametrize(
  "override, words",
  [
    ("steps=ten", ["config.steps", "'ten'", "type int", "type str"]),
    ("steps=1.5", ["config.steps", "'1.5'", "type int", "type float"]),
    ("steps=True", ["config.steps", "type int", "type bool"]),
    ("on=1", ["config.on", "type bool"]),
    ("ks=5", ["config.ks", "type tuple"]),
    ("optimizer=sgd", ["config.optimizer", "--config.optimizer.lr"]),
    ("optimizer.lrr=1", ["no field 'lrr'", "--config.optimizer.lr?"]),
    ("optimiser.lr=1", ["no field 'optimiser'", "--config.optimizer.lr?"]),
    ("lr=1", ["no field 'lr'", "--config.optimizer.lr?"]),
    ("steps.x=1", ["config.steps has no field 'x'"]),
  ],
)
def test_bad_overrides_name_field_value_and_fix(path, override, words):
  with pytest.raises(errors.InputError) as e:
    configs.load(path, [override])
  assert all(word in str(e.value) for word in words), str(e.value)
  assert "\n" not in str(e.value)


def test_missing_file_names_the_nearest(path, tmp_path):
  with pytest.raises(errors.InputError, match=r"Did you mean .*/file\.py\?"):
    configs.load(str(tmp_path / "fiel.py"))
  with pytest.raises(errors.InputError, match=r"a folder; .* file\.py"):
    configs.load(str(tmp_path))
  with pytest.raises(errors.InputError, match="no such file"):
    configs.load(str(tmp_path / "a" / "b" / "c.py:smoke"))


@pytest.mark.parametrize(
  "text, words",
  [
    ("x = (", "line 1 is not Python"),
    ("x = 1", "no function get_config"),
    ("def get_config(arg=''): return 3", "returned a int"),
  ],
)
def test_files_that_are_no_configs(tmp_path, text, words):
  (tmp_path / "file.py").write_text(text)
  with pytest.raises(errors.InputError, match=words):
    configs.load(str(tmp_path / "file.py"))


def test_words_that_the_file_refuses(path, tmp_path):
  with pytest.raises(errors.InputError, match="'bad' is not known"):
    configs.load(path + ":bad")
  (tmp_path / "mute.py").write_text("def get_config(): return {}")
  with pytest.raises(errors.InputError, match="takes no argument"):
    configs.load(str(tmp_path / "mute.py") + ":smoke")


def test_a_bug_in_the_file_keeps_its_traceback(tmp_path):
  (tmp_path / "file.py").write_text("def get_config(arg=''): return 1 / 0")
  with pytest.raises(ZeroDivisionError):
    configs.load(str(tmp_path / "file.py"))


def test_experiments_is_importable_from_any_folder(tmp_path, monkeypatch):
  folder = tmp_path / "experiments" / "deep"
  folder.mkdir(parents=True)
  monkeypatch.chdir(tmp_path.parent)
  monkeypatch.setattr("sys.path", [])
  (folder / "x.py").write_text("def get_config(arg=''): return {'a': 1}")
  config = configs.load(str(folder / "x.py"))
  assert isinstance(config, ml_collections.ConfigDict)
  import sys

  assert sys.path == [str(tmp_path)]
