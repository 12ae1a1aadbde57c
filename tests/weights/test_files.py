"""Checkpoints of every format open lazily, damaged ones by a clear error."""

import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from flax import serialization
from safetensors.numpy import save_file

from mmjax import errors
from mmjax.weights import files

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def arrays():
  rng = np.random.default_rng(0)
  return {
    "a.weight": rng.normal(size=(3, 5)).astype(np.float32),
    "a.half": rng.normal(size=(2, 3)).astype(BFLOAT16),
    "b": np.arange(4),
    "scalar": np.array(2.5, np.float32),
  }


def check(opened, arrays):
  """Names, shapes, types and values are those of the arrays."""
  assert set(opened.tensors) == set(arrays)
  assert opened.shapes == {k: v.shape for k, v in arrays.items()}
  for name, tensor in opened.tensors.items():
    assert tensor.dtype == arrays[name].dtype
    read = tensor.read()
    assert read.dtype == arrays[name].dtype and read.shape == tensor.shape
    np.testing.assert_array_equal(read, arrays[name])


def fails(path, says):
  with pytest.raises(errors.InputError, match=says):
    files.open_checkpoint(path)


def test_safetensors_as_a_file_and_in_a_directory(tmp_path, arrays):
  save_file(arrays, tmp_path / "model.safetensors")
  check(files.open_checkpoint(tmp_path / "model.safetensors"), arrays)
  (tmp_path / "config.json").write_text('{"model_type": "x"}')
  (tmp_path / "preprocessor_config.json").write_text('{"size": 3}')
  # Training leaves more behind, which is neither read nor unpickled.
  (tmp_path / "training_args.bin").write_bytes(b"a pickle")
  save_file({"moment": arrays["b"]}, tmp_path / "optimizer.safetensors")
  opened = files.open_checkpoint(str(tmp_path))
  check(opened, arrays)
  assert opened.config == {"model_type": "x"}
  assert opened.preprocessor == {"size": 3}
  # Newer directories have all of it in one file.
  (tmp_path / "preprocessor_config.json").unlink()
  assert files.open_checkpoint(tmp_path).preprocessor == {}
  parts = '{"image_processor": {"size": 4}, "processor_class": "X"}'
  (tmp_path / "processor_config.json").write_text(parts)
  assert files.open_checkpoint(tmp_path).preprocessor == {"size": 4}


def shard(folder, arrays, stem="model", suffix=".safetensors"):
  names = sorted(arrays)
  where = {n: f"{stem}-{i % 2 + 1}-of-2{suffix}" for i, n in enumerate(names)}
  index = {"weight_map": where}
  (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))
  for file in set(where.values()):
    part = {n: arrays[n] for n in names if where[n] == file}
    save_file(part, folder / file)


def test_sharded_safetensors_and_a_missing_shard(tmp_path, arrays):
  shard(tmp_path, arrays)
  save_file({"other": arrays["b"]}, tmp_path / "other.safetensors")
  check(files.open_checkpoint(tmp_path), arrays)
  (tmp_path / "model-2-of-2.safetensors").unlink()
  fails(tmp_path, r"index\.json names 'model-2-of-2\.safetensors' and 0 more")


def test_a_missing_shard_of_pytorch_is_named_before_torch_is(tmp_path, arrays):
  shard(tmp_path, arrays, "pytorch_model", ".bin")
  (tmp_path / "pytorch_model-1-of-2.bin").unlink()
  fails(tmp_path, r"names 'pytorch_model-1-of-2\.bin'")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_bfloat16(tmp_path, arrays, save):
  arrays["layers/0/columns"] = np.asfortranarray(arrays["a.weight"])
  save(tmp_path / "x.npz", **arrays)
  check(files.open_checkpoint(tmp_path / "x.npz"), arrays)
  # A config may be inside, and goes before one beside it.
  save(tmp_path / "y.npz", **{files.EMBEDDED: np.array('{"a": 1}')}, **arrays)
  opened = files.open_checkpoint(tmp_path / "y.npz")
  check(opened, arrays)
  assert opened.config == {"a": 1}


def test_an_object_array_is_a_pickle_and_refused(tmp_path):
  array = np.array([{"a": 1}], object)
  np.savez(tmp_path / "x.npz", good=np.ones(2), bad=array)
  fails(tmp_path / "x.npz", r"'bad\.npy' is a pickle")


def test_flax_msgpack(tmp_path, arrays):
  tree = {"a": {"weight": arrays["a.weight"], "half": arrays["a.half"]}}
  path = tmp_path / "flax_model.msgpack"
  path.write_bytes(serialization.msgpack_serialize(tree))
  want = {"a/weight": arrays["a.weight"], "a/half": arrays["a.half"]}
  check(files.open_checkpoint(tmp_path), want)


def test_the_config_of_open_clip_stands_in(tmp_path, arrays):
  save_file(arrays, tmp_path / "open_clip_model.safetensors")
  (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
  opened = files.open_checkpoint(tmp_path)
  check(opened, arrays)
  assert opened.config == {"model_cfg": {}}
  (tmp_path / "config.json").write_text('{"model_type": "clip"}')
  opened = files.open_checkpoint(tmp_path)
  assert opened.config == {"model_type": "clip"}


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".msgpack"])
def test_a_damaged_file_is_named(tmp_path, suffix):
  path = tmp_path / f"model{suffix}"
  path.write_bytes(b"\x81 no weights at all" * 10)
  fails(tmp_path, rf"model\{suffix}': it cannot be read")


def test_a_file_cut_short_is_named(tmp_path, arrays):
  path = tmp_path / "model.safetensors"
  save_file(arrays, path)
  path.write_bytes(path.read_bytes()[:-8])
  fails(tmp_path, "cannot be read .*fetch it anew")


@pytest.mark.parametrize("text", ["{", "[1]"])
@pytest.mark.parametrize("name", ["config.json", files.PREPROCESSOR])
def test_a_damaged_config_is_named(tmp_path, arrays, name, text):
  save_file(arrays, tmp_path / "model.safetensors")
  (tmp_path / name).write_text(text)
  fails(tmp_path, f"{name}': it is no JSON object")


def test_nothing_to_open(tmp_path):
  fails(tmp_path / "nope", "no such file or directory")
  fails(tmp_path, r"no weights in it; known are .*\.safetensors")
  (tmp_path / "x.txt").write_text("hello")
  fails(tmp_path, "no weights in it")
  fails(tmp_path / "x.txt", r"not a format .* known are .*\.npz")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_opening_reads_no_tensor(tmp_path, suffix):
  path, big = tmp_path / f"x{suffix}", np.ones((1 << 20, 4), np.float32)
  if suffix == ".npz":
    np.savez(path, big=big)
  else:
    save_file({"big": big}, path)
  files.open_checkpoint(path)  # once for imports
  tracemalloc.start()
  opened = files.open_checkpoint(path)
  assert tracemalloc.get_traced_memory()[1] < big.nbytes / 20
  opened.tensors["big"].read()
  # The measure is able to see it.
  assert tracemalloc.get_traced_memory()[1] >= big.nbytes
  tracemalloc.stop()


def test_files_that_share_names_are_kept_apart_by_their_stems(tmp_path):
  """A directory with an encoder.safetensors and a decoder.safetensors."""
  for i, stem in enumerate(("encoder", "decoder")):
    save_file({"w": np.float32([i])}, tmp_path / f"{stem}.safetensors")
  want = {"encoder.w": np.float32([0]), "decoder.w": np.float32([1])}
  check(files.open_checkpoint(tmp_path), want)
  # One that shares nothing keeps its names, as do all where none does.
  save_file({"b": np.float32([2])}, tmp_path / "third.safetensors")
  check(files.open_checkpoint(tmp_path), {**want, "b": np.float32([2])})
  (tmp_path / "decoder.safetensors").unlink()
  want = {"w": np.float32([0]), "b": np.float32([2])}
  check(files.open_checkpoint(tmp_path), want)
