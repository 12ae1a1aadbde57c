"""`mmjax weights` converts what is whole, and refuses the rest by name."""

import importlib.util
import json
import pathlib

import jax
import numpy as np
from safetensors.numpy import save_file

from mmjax import weights
from mmjax.cli import main as cli
from mmjax.cli import weights as command

_spec = importlib.util.spec_from_file_location(
  "tiny", pathlib.Path(__file__).parents[1] / "weights" / "tiny.py"
)
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def run(capsys, *words):
  code = cli.main(["weights", *map(str, words)])
  return code, *capsys.readouterr()


def same(a, b):
  a, b = (weights.load(x).variables for x in (a, b))
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_formats_are_those_of_the_library():
  assert command.FORMATS == weights.FORMATS


def test_in_and_out_again(tmp_path, capsys):
  source, here = tmp_path / "hub", tmp_path / "here"
  tensors = tiny.hub(source)
  for name in ("tokenizer.json", "vocab.txt", "merges.txt", "sp.model"):
    (source / name).write_text(name)
  (source / "preprocessor_config.json").write_text('{"do_resize": true}')
  (source / "optimizer.pt").write_bytes(b"a pickle")

  code, out, err = run(capsys, "import", source, "--to", here)
  assert (code, err) == (0, "")
  count = sum(x.size for x in tensors.values())
  for text in (
    "table       vit\n",
    "model       vit(width=16, depth=2",
    f"tensors     {len(tensors)}\n",
    f"parameters  {count:,} (0.000 GiB)",
    "GiB of memory",
    f"wrote       {here / 'model.safetensors'}, ",
  ):
    assert text in out
  assert "statistics" not in out
  assert sorted(p.name for p in here.iterdir()) == [
    "config.json",
    "merges.txt",
    "model.safetensors",
    "preprocessor_config.json",
    "sp.model",
    "tokenizer.json",
    "vocab.txt",
  ]
  assert json.loads((here / "config.json").read_text()) == tiny.CONFIG
  same(source, here)

  there, back = tmp_path / "npz", tmp_path / "back"
  code, out, _ = run(capsys, "export", here, "--to", there, "--format", "npz")
  assert code == 0 and f"tensors     {len(tensors)}\n" in out
  assert not (there / "config.json").exists()
  assert (there / "tokenizer.json").read_text() == "tokenizer.json"
  assert run(capsys, "export", there, "--to", back)[0] == 0
  for name in ("config.json", "model.safetensors"):
    assert (back / name).read_bytes() == (here / name).read_bytes()


def test_statistics_are_counted_apart(tmp_path, capsys):
  with np.load(GOLDEN / "resnet_basic.npz") as file:
    tensors = {
      key.removeprefix("tensor/"): file[key]
      for key in file.files
      if key.startswith("tensor/")
    }
    (tmp_path / "config.json").write_text(str(file["config"]))
  save_file(tensors, tmp_path / "model.safetensors")
  code, out, _ = run(capsys, "import", tmp_path, "--to", tmp_path / "out")
  sizes = {"running": 0, "num_batches": 0, "": 0}
  for name, x in tensors.items():
    sizes[next(kind for kind in sizes if kind in name)] += x.size
  assert code == 0 and sizes["num_batches"]
  assert f"parameters  {sizes['']:,} (0.000 GiB)\n" in out
  assert f"statistics  {sizes['running']:,} (0.000 GiB)\n" in out
  assert f"tensors     {len(tensors)}\n" in out


def test_a_file_of_google_without_a_config_comes_back(tmp_path, capsys):
  tensors = tiny.draw(tiny.google())
  np.savez(tmp_path / "ViT.npz", **tensors)
  here, there = tmp_path / "here", tmp_path / "there"
  assert run(capsys, "import", tmp_path / "ViT.npz", "--to", here)[0] == 0
  assert [p.name for p in here.iterdir()] == ["model.safetensors"]
  same(tmp_path / "ViT.npz", here)
  words = ("export", here, "--to", there, "--format", "npz")
  assert run(capsys, *words)[0] == 0
  with np.load(there / "model.npz") as found:
    assert set(found.files) == set(tensors)
    for name, x in tensors.items():
      np.testing.assert_array_equal(found[name], x)


def test_half_precision_becomes_float32(tmp_path, capsys):
  tensors = tiny.draw(tiny.shapes(tiny.CONFIG, 5))
  tiny.hub(tmp_path / "a", {k: v.astype("f2") for k, v in tensors.items()})
  assert run(capsys, "import", tmp_path / "a", "--to", tmp_path / "b")[0] == 0
  leaves = jax.tree.leaves(weights.load(tmp_path / "b").variables)
  assert all(x.dtype == np.float32 for x in leaves)
  same(tmp_path / "a", tmp_path / "b")


def test_mistakes_are_one_paragraph_and_write_nothing(tmp_path, capsys):
  source, to = tmp_path / "hub", tmp_path / "out"
  tensors = tiny.hub(source)

  def fails(*words):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "") and err.startswith("mmjax: ")
    assert err.count("\n") == 1
    return err

  assert "no such file" in fails("import", tmp_path / "nope", "--to", to)
  assert "'onnx'" in fails("export", source, "--to", to, "--format", "onnx")
  assert "imprt" in fails("imprt", source, "--to", to)
  assert "--to" in fails("import", source)
  assert "takes no config" in fails(
    "import", source, "--to", to, "--config.dtype=bfloat16"
  )
  del tensors["vit.layernorm.bias"]
  tiny.hub(source, tensors)
  assert "1 tensors (vit.layernorm.bias) missing" in fails(
    "import", source, "--to", to
  )
  assert not to.exists()
  # Never over other weights, the source's least of all.
  assert "it holds model.safetensors already" in fails(
    "export", source, "--to", source
  )
  to.write_text("")
  assert "it is a file" in fails("import", source, "--to", to)


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
  tiny.hub(tmp_path / "hub")
  (tmp_path / "file").write_text("")
  words = ("import", tmp_path / "hub", "--to", tmp_path / "file" / "out")
  code, _, err = run(capsys, *words)
  assert code == 5 and "cannot be written" in err


def test_help_says_that_both_are_one(capsys):
  code, out, _ = run(capsys, "--help")
  assert code == 0 and "import and export are one operation" in out
  assert "--config" not in out
