"""Plug-ins are files; their keywords are checked before they are built."""

import sys
import types

import pytest

from mmjax import errors
from mmjax.build import build, check, load, names


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A plug-in folder mmjax.plugins with two files."""
  (tmp_path / "vit.py").write_text(
    "def build(width, *, depth=2):\n  return width, depth\n"
  )
  (tmp_path / "free.py").write_text("def build(**kw):\n  return kw\n")
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
