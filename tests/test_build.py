"""Plug-ins are files; their keywords are checked before they are built."""

import sys
import types

import pytest

from mmjax import errors
from mmjax.build import build, check, load, names


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A plug-in folder mmjax.plugins: two plug-ins, and a file they share."""
  (tmp_path / "vit.py").write_text(
    "def build(width, *, depth=2):\n  return width, depth\n"
  )
  (tmp_path / "free.py").write_text("def build(**kw):\n  return kw\n")
  (tmp_path / "shared.py").write_text(
    "raise RuntimeError('imported')\n\ndef rebuild():\n  build()\n"
  )
  package = types.ModuleType("mmjax.plugins")
  package.__path__ = [str(tmp_path)]
  monkeypatch.setitem(sys.modules, "mmjax.plugins", package)
  yield "plugins"
  for name in ("vit", "free"):
    sys.modules.pop(f"mmjax.plugins.{name}", None)


def test_files_are_the_registry(folder):
  assert names(folder) == ["free", "vit"]
  assert build(folder, name="vit", width=3) == (3, 2)
  assert build(folder, name="free", anything=1) == {"anything": 1}
  assert load(folder, "vit").build(1) == (1, 2)


def test_a_file_without_build_is_no_plug_in(folder):
  with pytest.raises(errors.InputError, match="Known: free, vit"):
    load(folder, "shared")


def test_unknown_file_names_the_nearest_and_the_field(folder):
  with pytest.raises(errors.InputError) as e:
    load(folder, "vitt", "config.model.name")
  assert "config.model.name = 'vitt'" in str(e.value)
  assert "Did you mean 'vit'" in str(e.value)


def test_unknown_and_missing_keywords(folder):
  with pytest.raises(errors.InputError, match="Did you mean 'depth'"):
    build(folder, name="vit", width=1, dept=3)
  with pytest.raises(errors.InputError, match="width must be given"):
    build(folder, name="vit")


def test_check_builds_nothing(folder):
  assert callable(check(folder, name="vit", width=object()))


def test_the_real_folders_list_their_files():
  assert {"vit", "dual_encoder"} <= set(names("models"))
  assert {"retrieval", "zero_shot"} <= set(names("evals"))
  for folder in ("models", "tasks", "evals", "data.sources"):
    for name in names(folder):
      assert callable(load(folder, name).build)
