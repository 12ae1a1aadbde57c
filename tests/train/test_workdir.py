"""A workdir belongs to one config."""

import json

import pytest

from mmjax import errors
from mmjax.train import workdir

CONFIG = {"seed": 0, "task": {"name": "x", "ks": (1, 5)}, "log_every": 2}


def test_the_same_config_comes_back(tmp_path):
  folder = tmp_path / "new" / "run"
  workdir.check(folder, CONFIG)  # not there yet
  workdir.claim(folder, CONFIG)
  assert json.loads((folder / "config.json").read_text()) == {
    **CONFIG,
    "task": {"name": "x", "ks": [1, 5]},
  }
  workdir.check(folder, CONFIG)
  workdir.check(folder, {**CONFIG, "log_every": 9, "mesh": {"data": 2}})


def test_another_config_is_refused_with_what_differs(tmp_path):
  workdir.claim(tmp_path, CONFIG)
  other = {"seed": 1, "task": {"name": "x", "ks": (1,), "wide": True}}
  with pytest.raises(errors.InputError) as caught:
    workdir.check(tmp_path, other)
  told = str(caught.value)
  for part in (
    str(tmp_path),
    "seed: 0 there, 1 now",
    "task.ks: [1, 5] there, [1] now",
    "task.wide: '(none)' there, True now",
  ):
    assert part in told
  assert "log_every" not in told


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(errors.StorageError, match="is a file, not a folder"):
    workdir.claim(tmp_path / "file" / "run", CONFIG)
