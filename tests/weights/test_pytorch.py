"""PyTorch's files: one state dict is found, several are refused by name.

PyTorch is not there when the suite runs: what is unpickled is played by dicts
of numpy arrays, and the reading itself is tested where it is installed.
"""

import argparse
import builtins
import zipfile

import ml_dtypes
import numpy as np
import pytest

from mmjax import errors
from mmjax.weights import files, pytorch

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
WEIGHTS = {"a": np.ones((2, 3)), "b.scale": np.ones(2)}
LOSS = np.array(0.5)  # a number, as a tensor


def fails(path, says):
  with pytest.raises(errors.InputError, match=says):
    files.open_checkpoint(path)


@pytest.mark.parametrize(
  "saved",
  [
    WEIGHTS,
    {"model": WEIGHTS},
    {"state_dict": WEIGHTS, "epoch": 3, "best": LOSS, "arch": "vit"},
    {"model": {"state_dict": WEIGHTS}, "args": argparse.Namespace(lr=1)},
    # An optimizer's moments are tensors too.
    {
      "model": WEIGHTS,
      "optimizer": {"state": {0: WEIGHTS}, "param_groups": [{"lr": 1}]},
      "scaler": {"scale": 65536.0, "_growth_tracker": 3},
      "lr_schedulers": [],
    },
    {"state_dict": WEIGHTS, "callbacks": {"best": {"score": LOSS}}},
  ],
)
def test_one_state_dict_is_found_wherever_it_is(tmp_path, saved):
  assert pytorch.state_dict(tmp_path, saved) is WEIGHTS


@pytest.mark.parametrize(
  "saved, says",
  [
    (
      {"model": WEIGHTS, "model_ema": WEIGHTS, "epoch": 3},
      r"holds 2 state dicts: 'model', 'model_ema'.*\)\['model'\], 'model.pth'",
    ),
    (
      {"x": {"student": WEIGHTS, "teacher": {"backbone": WEIGHTS}}},
      r"dicts under 'x': 'student', 'teacher'.*\)\['x'\]\['student'\],",
    ),
    (
      {"model": WEIGHTS, "rng": np.ones(5)},
      r"holds 2 state dicts: 'model', the tensors beside \('rng'",
    ),
    ({"epoch": 3, "best": LOSS}, r"no tensors in it \(epoch, best\)"),
    ([WEIGHTS], r"no tensors in it \(list\)"),
    ({"model": {}}, r"no tensors in it \(model\)"),
  ],
)
def test_none_or_several_are_named(tmp_path, saved, says):
  with pytest.raises(errors.InputError, match=says):
    pytorch.state_dict(tmp_path / "x.pth", saved)


@pytest.mark.parametrize(
  "name", ["x.pt", "x.pth", "x.ckpt", "pytorch_model.bin"]
)
def test_pytorch_files_without_pytorch(tmp_path, monkeypatch, name):
  real = builtins.__import__

  def without(module, *args, **keywords):
    if module == "torch":
      raise ImportError("no torch")
    return real(module, *args, **keywords)

  monkeypatch.setattr(builtins, "__import__", without)
  (tmp_path / name).write_bytes(b"PK")
  fails(tmp_path / name, r"takes PyTorch; install it .* the \.safetensors file")
  fails(tmp_path, "takes PyTorch")


def test_a_torchscript_archive_is_refused_with_the_way_out(tmp_path):
  # The members that torch.jit.save writes, of which some are code.
  with zipfile.ZipFile(tmp_path / "RN50.pt", "w") as archive:
    for name in ("data.pkl", "code/__torch__/model.py", "constants.pkl"):
      archive.writestr(f"RN50/{name}", b"")
  fails(tmp_path / "RN50.pt", r"TorchScript archive.*torch\.jit\.load")


def test_pytorch_files_with_pytorch(tmp_path):
  torch = pytest.importorskip("torch")
  state = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.ones(2, dtype=torch.bfloat16),
    "epoch": 3,
  }
  want = {"a": state["a"].numpy(), "b": np.ones(2, BFLOAT16)}
  path = tmp_path / "x.pt"
  for saved in (
    {"state_dict": state},
    {"model": state, "args": argparse.Namespace(lr=0.1)},
  ):
    for new in (True, False):
      torch.save(saved, path, _use_new_zipfile_serialization=new)
      opened = files.open_checkpoint(path)
      assert opened.shapes == {k: x.shape for k, x in want.items()}
      for name, tensor in opened.tensors.items():
        assert tensor.dtype == want[name].dtype
        np.testing.assert_array_equal(tensor.read(), want[name])
  torch.save({"a": fails}, path)
  fails(path, "more than tensors")
  # OpenAI's Whisper says its sizes beside its weights.
  torch.save({"dims": {"n_mels": 80}, "model_state_dict": state}, path)
  assert files.open_checkpoint(path).config == {"n_mels": 80}
