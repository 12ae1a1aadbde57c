"""The law of the house holds, and its checks catch planted sins."""

import importlib.util
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _load():
  path = ROOT / "tools" / "check_house.py"
  spec = importlib.util.spec_from_file_location("check_house", path)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


house = _load()


@pytest.mark.parametrize("law", house.LAWS, ids=lambda law: law.__name__)
def test_the_law_holds_here(law):
  assert law(ROOT) == []


def test_planted_breaches_are_caught(tmp_path):
  def plant(path, text=""):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)

  plant("mmjax/models/__init__.py")
  plant("mmjax/models/long.py", "x = 1\n" * 351)
  plant("mmjax/ops/kernels/long.py", "x = 1\n" * 600)
  plant("mmjax/ops/utils.py", "x = 1  # noqa\n" * 21)
  plant("tests/models/test_gone.py")
  plant("tests/models/test_long.py")
  plant("experiments/x.py", "import mmjax.tree\nfrom jax import numpy\n")
  [size] = house.sizes(tmp_path)
  assert size.startswith("mmjax/models/long.py: 351 lines")
  assert house.mirror(tmp_path) == [
    "mmjax/ops/kernels/long.py: no tests/ops/kernels/test_long.py",
    "mmjax/ops/utils.py: no tests/ops/test_utils.py",
    "tests/models/test_gone.py: mmjax/models/gone.py is not there",
  ]
  [name] = house.names(tmp_path)
  assert name.startswith("mmjax/ops/utils")
  assert house.rooms(tmp_path) == ["mmjax/models: no README.md"]
  assert len(house.experiments(tmp_path)) == 2
  assert len(house.suppressions(tmp_path)) == 21


def _lint(folder):
  lint = pathlib.Path(sysconfig.get_path("scripts")) / "lint-imports"
  done = subprocess.run(
    [sys.executable, str(lint), "--no-cache"],
    cwd=folder,
    capture_output=True,
    text=True,
  )
  return done.returncode, done.stdout + done.stderr


def test_import_contracts_hold_and_catch_planted_sins(tmp_path):
  shutil.copy(ROOT / "setup.cfg", tmp_path)
  shutil.copytree(
    ROOT / "mmjax",
    tmp_path / "mmjax",
    ignore=lambda folder, names: [
      n
      for n in names
      if n in ("assets", "__pycache__") or n.endswith((".md", ".pyc"))
    ],
  )
  code, text = _lint(tmp_path)
  assert code == 0, text

  def sin(path, line):
    with (tmp_path / "mmjax" / path).open("a") as f:
      f.write(f"\n{line}\n")

  sin("models/vit.py", "from mmjax.cli import main")  # up
  sin("losses/contrastive.py", "from mmjax.layers import mlp")  # neighbour
  sin("ops/masks.py", "import ml_collections")  # config below the door
  sin("data/feed.py", "import tensorflow")
  code, text = _lint(tmp_path)
  assert code == 1
  assert "3 broken" in text
  assert "mmjax.models.vit -> mmjax.cli.main" in text
  assert "mmjax.losses.contrastive -> mmjax.layers.mlp" in text
  assert "mmjax.ops.masks -> ml_collections" in text
  assert "mmjax.data.feed -> tensorflow" in text
