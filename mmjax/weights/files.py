"""Checkpoints of other libraries, opened lazily: {name: tensor}, config.

A checkpoint is a directory (config.json beside *.safetensors, possibly
sharded, or *.bin) or a single file: .safetensors, .npz, .msgpack (Flax), .pt,
.ckpt or .bin (PyTorch, read with weights-only loading; or CTranslate2's). Nothing
but names, shapes and dtypes is read until a tensor is asked for, where the
format allows it.
"""

import collections
import dataclasses
import functools
import json
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors
from flax import serialization, traverse_util

from mmjax import errors
from mmjax.weights import ctranslate2, pytorch

SUFFIXES = (".safetensors", ".npz", ".msgpack", ".pt", ".pth", ".ckpt", ".bin")
# Names of the model's file on the hub: here, of PyTorch's, of Flax's.
STEMS = ("model", "pytorch_model", "flax_model")
CONFIG = "config.json"
OPEN_CLIP = "open_clip_config.json"  # beside it or in its place
GENERATION = "generation_config.json"
PREPROCESSOR = "preprocessor_config.json"
# What newer directories have in its place, with these parts.
PROCESSOR = "processor_config.json"
PROCESSORS = ("image_processor", "feature_extractor")
# In a .npz or .safetensors that we wrote ourselves: the config, as JSON.
EMBEDDED = "__config__"


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor on the disk.

  Attributes:
    shape: of the tensor.
    dtype: of the tensor.
    read: returns it as a numpy array.
  """

  shape: tuple[int, ...]
  dtype: Any
  read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A checkpoint that is open for reading.

  Attributes:
    path: file or directory.
    tensors: by name.
    config: what config.json says, or else open_clip_config.json; {} if there
      is none.
    preprocessor: what preprocessor_config.json says, or the part of
      processor_config.json that took its place; {} if there is none.
    generation: what generation_config.json says, {} if there is none.
  """

  path: pathlib.Path
  tensors: Mapping[str, Tensor]
  config: Mapping[str, Any]
  preprocessor: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor."""
    return {name: tensor.shape for name, tensor in self.tensors.items()}


def open_checkpoint(path: str | pathlib.Path) -> Checkpoint:
  """Opens a checkpoint of any format that is known.

  Raises:
    InputError: no such path, no weights in it, a format that is not known, or
      a file that is damaged.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise errors.InputError(
      f"weights path = {str(path)!r}: no such file or directory."
    )
  config: dict[str, Any] = {}
  preprocessor: dict[str, Any] = {}
  generation: dict[str, Any] = {}
  files = [path]
  if path.is_dir():
    config = _json(path / CONFIG) or _json(path / OPEN_CLIP)
    preprocessor = _preprocessor(path)
    generation = _json(path / GENERATION)
    files = _weights_of(path)
  elif path.suffix not in _READERS:
    raise errors.InputError(
      f"weights path = {str(path)!r}: not a format that is known; known are "
      f"directories, and files that end in {', '.join(SUFFIXES)}."
    )
  parts: dict[str, dict[str, Tensor]] = {}
  for file in files:
    try:
      parts[file.stem] = _READERS[file.suffix](file)
    except errors.InputError:
      raise
    except Exception as e:
      raise errors.InputError(
        f"weights path = {str(file)!r}: it cannot be read ({e}); fetch it anew."
      ) from e
  tensors = _joined(parts)
  if EMBEDDED in tensors:
    config = json.loads(str(tensors.pop(EMBEDDED).read()[()]))
  return Checkpoint(path, tensors, config, preprocessor, generation)


def _joined(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
  """Returns the tensors of all files, given by stem.

  Files that share names are models of their own, such as an encoder.pt and a
  decoder.pt: their stems go before the names, "encoder.blocks.input.w".
  """
  times = collections.Counter(n for part in parts.values() for n in part)
  tensors: dict[str, Tensor] = {}
  for stem, part in parts.items():
    shared = any(times[name] > 1 for name in part if name != EMBEDDED)
    prefix = f"{stem}." if shared else ""
    for name, tensor in part.items():
      tensors[name if name == EMBEDDED else prefix + name] = tensor
  return tensors


def _json(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object of a file, {} if there is no such file."""
  if not path.is_file():
    return {}
  try:
    found = json.loads(path.read_text())
  except ValueError as e:
    found = e
  if not isinstance(found, dict):
    raise errors.InputError(
      f"weights path = {str(path)!r}: it is no JSON object ({found}); fetch it "
      "anew."
    )
  return found


def _preprocessor(folder: pathlib.Path) -> dict[str, Any]:
  found = _json(folder / PREPROCESSOR)
  if found:
    return found
  parts = _json(folder / PROCESSOR)
  return next((parts[p] for p in PROCESSORS if p in parts), {})


def _weights_of(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files with a directory's weights, of one format only."""
  for suffix in SUFFIXES:
    found = sorted(folder.glob(f"*{suffix}"))
    for stem in STEMS:
      index = folder / f"{stem}{suffix}.index.json"
      named = set(_json(index).get("weight_map", {}).values())
      if not named:
        continue
      missing = sorted(n for n in named if not (folder / n).is_file())
      if missing:
        raise errors.InputError(
          f"weights path = {str(folder)!r}: {index.name} names {missing[0]!r} "
          f"and {len(missing) - 1} more files that are not there; fetch them."
        )
      return [folder / n for n in sorted(named)]
    if found:
      # Training leftovers such as optimizer.pt stand beside the weights.
      model = [f for f in found if f.stem in STEMS]
      return model or found
  raise errors.InputError(
    f"weights path = {str(folder)!r}: there are no weights in it; known are "
    f"files that end in {', '.join(SUFFIXES)}."
  )


def _safetensors(path: pathlib.Path) -> dict[str, Tensor]:
  found = {}
  with safetensors.safe_open(path, framework="np") as file:
    for name in file.keys():
      part = file.get_slice(name)
      found[name] = Tensor(
        tuple(part.get_shape()),
        _DTYPES[part.get_dtype()],
        functools.partial(_one_safetensor, path, name),
      )
    embedded = (file.metadata() or {}).get(EMBEDDED)
  if embedded is not None:
    found[EMBEDDED] = _held(np.array(embedded))
  return found


def _one_safetensor(path: pathlib.Path, name: str) -> np.ndarray:
  with safetensors.safe_open(path, framework="np") as file:
    return file.get_tensor(name)


def _npz(path: pathlib.Path) -> dict[str, Tensor]:
  found = {}
  # Stays open: to list what is in it again for each array takes a time that
  # grows with the square of their number.
  archive = zipfile.ZipFile(path)
  for member in archive.namelist():
    with archive.open(member) as file:
      version = np.lib.format.read_magic(file)
      read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
      }[version]
      shape, _, dtype = read(file)
    if dtype.hasobject:
      raise errors.InputError(
        f"weights path = {str(path)!r}: {member!r} is a pickle, which may "
        "run any code; convert it to plain arrays where you trust it."
      )
    name = member.removesuffix(".npy")
    found[name] = Tensor(
      shape, _half(dtype), functools.partial(_one_npy, archive, member)
    )
  return found


def _half(dtype: Any) -> Any:
  # numpy stores bfloat16, which it does not know, as two raw bytes.
  return _DTYPES["BF16"] if dtype == np.dtype("V2") else dtype


def _one_npy(archive: zipfile.ZipFile, member: str) -> np.ndarray:
  with archive.open(member) as file:
    array = np.lib.format.read_array(file, allow_pickle=False)
  return array.view(_half(array.dtype))


def _msgpack(path: pathlib.Path) -> dict[str, Tensor]:
  state = serialization.msgpack_restore(path.read_bytes())
  flat = traverse_util.flatten_dict(state, sep="/")
  return {name: _held(np.asarray(x)) for name, x in flat.items()}


def _torch(path: pathlib.Path) -> dict[str, Tensor]:
  tensors, config = pytorch.read(path)
  found = {name: Tensor(*parts) for name, parts in tensors.items()}
  if config is not None:
    found[EMBEDDED] = _held(np.array(config))
  return found


def _bin(path: pathlib.Path) -> dict[str, Tensor]:
  if not ctranslate2.is_one(path):
    return _torch(path)
  arrays, config = ctranslate2.read(path)
  found = {k: Tensor(x.shape, x.dtype, x) for k, x in arrays.items()}
  return {**found, EMBEDDED: _held(np.array(json.dumps(config)))}


def _held(array: np.ndarray) -> Tensor:
  return Tensor(array.shape, array.dtype, lambda: array)


_DTYPES = {
  "F64": np.dtype("float64"),
  "F32": np.dtype("float32"),
  "F16": np.dtype("float16"),
  "BF16": pytorch.DTYPES["torch.bfloat16"],
  "I64": np.dtype("int64"),
  "I32": np.dtype("int32"),
  "I16": np.dtype("int16"),
  "I8": np.dtype("int8"),
  "U8": np.dtype("uint8"),
  "BOOL": np.dtype("bool"),
}
_READERS: dict[str, Callable[[pathlib.Path], dict[str, Tensor]]] = {
  ".safetensors": _safetensors,
  ".npz": _npz,
  ".msgpack": _msgpack,
  ".pt": _torch,
  ".pth": _torch,
  ".ckpt": _torch,
  ".bin": _bin,
}
