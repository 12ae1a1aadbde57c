"""Files written out byte by byte are read; what is not known is named."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from mmjax import errors
from mmjax.weights import ctranslate2, files

KINDS = ("float32", "int8", "int16", "int32", "float16", "bfloat16")


def text(value):
  data = value.encode() + b"\0"
  return struct.pack("<H", len(data)) + data


def write(path, arrays, aliases=(), version=6, spec="WhisperSpec", revision=3):
  """Writes {name: array} as the format is described."""
  data = struct.pack("<I", version) + text(spec)
  data += struct.pack("<II", revision, len(arrays))
  for name, array in arrays.items():
    kind = KINDS.index(str(array.dtype))
    data += text(name) + struct.pack("<B", array.ndim)
    data += struct.pack(f"<{array.ndim}I", *array.shape)
    data += struct.pack("<BI", kind, array.nbytes) + array.tobytes()
  data += struct.pack("<I", len(aliases))
  for name, other in aliases:
    data += text(name) + text(other)
  path.write_bytes(data)
  return path


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def test_arrays_and_numbers(tmp_path, rng):
  x = rng.normal(size=(3, 5)).astype(np.float32)
  arrays = {
    "a/weight": x,
    "b/weight": x.astype(np.float16),
    "c/weight": x.astype(ml_dtypes.bfloat16),
    "heads": np.int16(6),
    "pre": np.int8(1),
  }
  path = write(tmp_path / "model.bin", arrays, [("d/weight", "a/weight")])
  assert ctranslate2.is_one(path)
  for given in (path, tmp_path):
    checkpoint = files.open_checkpoint(given)
    assert checkpoint.shapes == dict.fromkeys(list(arrays)[:3], (3, 5))
    for name, tensor in checkpoint.tensors.items():
      np.testing.assert_array_equal(tensor.read(), arrays[name])
      assert tensor.dtype == arrays[name].dtype
    assert checkpoint.config == {
      "ctranslate2": {
        "spec": "WhisperSpec",
        "revision": 3,
        "scalars": {"heads": 6, "pre": 1},
      }
    }


def test_the_config_beside_it_is_read_too(tmp_path):
  path = write(tmp_path / "model.bin", {"a": np.zeros((2,), np.float32)})
  (tmp_path / "config.json").write_text(json.dumps({"suppress_ids": [1]}))
  assert files.open_checkpoint(path).config["suppress_ids"] == [1]


def test_rounded_weights_are_divided_by_their_scales(tmp_path, rng):
  """As CTranslate2 rounds: the greatest of a row becomes 127."""
  matrix = rng.normal(size=(4, 6)).astype(np.float32)
  rows = 127 / np.abs(matrix).max(1)
  kernel = rng.normal(size=(4, 3, 5)).astype(np.float32)
  planes = 127 / np.abs(kernel).max(1)
  whole = np.float32(2**10 / np.abs(matrix).max())
  arrays = {
    "a/weight": np.rint(matrix * rows[:, None]).astype(np.int8),
    "a/weight_scale": rows.astype(np.float32),
    "b/weight": np.rint(matrix * whole).astype(np.int16),
    "b/weight_scale": whole,
    "c/weight": np.rint(kernel * planes[:, None]).astype(np.int8),
    "c/weight_scale": planes.astype(np.float32),
  }
  found, config = ctranslate2.read(write(tmp_path / "m.bin", arrays))
  assert config["ctranslate2"]["scalars"] == {}
  for name, want, coarse in (
    ("a/weight", matrix, 1 / rows.min()),
    ("b/weight", matrix, 1 / whole),
    ("c/weight", kernel, 1 / planes.min()),
  ):
    got = found[name]()
    assert got.dtype == found[name].dtype == np.float32
    np.testing.assert_allclose(got, want, atol=0.51 * coarse)


@pytest.mark.parametrize(
  "arrays, version, told",
  [
    ({"a": np.zeros((2,), np.float32)}, 3, "version 3.*newer"),
    ({"a": np.zeros((2, 2), np.int8)}, 6, "a is stored as int8"),
    (
      {"a": np.zeros((2, 3), np.int8), "a_scale": np.ones(3, np.float32)},
      6,
      r"scales of shape \(3,\)",
    ),
  ],
)
def test_what_is_not_known_is_named(tmp_path, arrays, version, told):
  path = write(tmp_path / "model.bin", arrays, version=version)
  with pytest.raises(errors.InputError, match=told):
    files.open_checkpoint(path)


def test_a_type_that_is_not_known_is_named(tmp_path):
  path = write(tmp_path / "model.bin", {"a": np.zeros((1,), np.int8)})
  data = path.read_bytes()
  at = data.rindex(struct.pack("<BI", 1, 1))
  path.write_bytes(data[:at] + b"\x09" + data[at + 1 :])
  with pytest.raises(errors.InputError, match="type 9"):
    files.open_checkpoint(path)


def test_a_file_that_is_cut_short_is_damaged(tmp_path):
  path = write(tmp_path / "model.bin", {"a": np.zeros((9,), np.float32)})
  data = path.read_bytes()
  for length in (8, 30, len(data) - 10):
    path.write_bytes(data[:length])
    with pytest.raises(errors.InputError, match="cannot be read"):
      files.open_checkpoint(path)


def test_pytorchs_files_are_others(tmp_path):
  path = tmp_path / "pytorch_model.bin"
  for head in (b"PK\x03\x04", b"\x80\x02\x8a\n", b"ab"):
    path.write_bytes(head)
    assert not ctranslate2.is_one(path)
