"""CTranslate2's model.bin, version 6, 5 or 4: a list of named arrays.

Numbers are little-endian; a text is its length with a zero at the end, as
uint16, and its bytes.

  uint32 version, text spec, uint32 revision, uint32 number of arrays
  each: text name, uint8 rank, uint32 sizes, uint8 dtype, uint32 bytes, data
  uint32 number of aliases, each: text name, text of which array

Arrays without axes say how the model computes ("decoder/num_heads") and go into
the config. Weights that were rounded to int8 or int16 have an array of scales
beside them, by which they are divided again.
"""

import json
import pathlib
import struct
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from mmjax import errors

# Where the config keeps what the file says beside the weights.
SECTION = "ctranslate2"
VERSIONS = (4, 5, 6)
SCALE = "_scale"
_DTYPES = [
  *map(np.dtype, ("float32", "int8", "int16", "int32", "float16")),
  np.dtype(ml_dtypes.bfloat16),
]


class Array:
  """An array of a file, read when it is called.

  Attributes:
    shape: of the array.
    dtype: float32 if it is stored in integers.
  """

  def __init__(
    self,
    path: pathlib.Path,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    start: int,
  ):
    self.shape, self.dtype = shape, dtype
    self.scale: Array | None = None
    self._path, self._name, self._start = path, name, start
    self._stored = dtype

  def quantise(self, scale: "Array") -> None:
    """Takes the array to be stored in integers, with these scales.

    Raises:
      InputError: scales that are neither one, nor one for each first index.
    """
    ways = ((), self.shape[:1], self.shape[:1] + self.shape[2:])
    if scale.shape not in ways:
      raise errors.InputError(
        f"weights path = {str(self._path)!r}: {self._name} {self.shape} has "
        f"scales of shape {scale.shape}, which is not known; convert the model "
        "with --quantization float16."
      )
    self.scale, self.dtype = scale, np.dtype("float32")

  def __call__(self) -> np.ndarray:
    """Returns it."""
    count = int(np.prod(self.shape))
    x = np.fromfile(self._path, self._stored, count, offset=self._start)
    x = x.reshape(self.shape)
    if self.scale is None:
      return x
    scale = self.scale().astype(np.float32)
    if scale.ndim == 1:
      scale = scale.reshape(-1, *(1,) * (x.ndim - 1))
    elif scale.ndim:
      scale = scale[:, None]
    return x.astype(np.float32) / scale


def is_one(path: pathlib.Path) -> bool:
  """Does the file begin as CTranslate2's do? PyTorch's end in .bin too."""
  with open(path, "rb") as file:
    head = file.read(4)
  return len(head) == 4 and 1 <= struct.unpack("<I", head)[0] <= 99


def read(path: pathlib.Path) -> tuple[dict[str, Array], dict[str, Any]]:
  """Opens a file.

  Returns:
    {name: array}, and the config: config.json beside it, with "ctranslate2":
    {"spec", "revision", "scalars": {name: number}}.

  Raises:
    InputError: a version or dtype that is not known.
    struct.error: the file is cut short.
  """
  found: dict[str, Array] = {}
  with open(path, "rb") as file:
    (version,) = _numbers(file, "<I")
    if version not in VERSIONS:
      raise errors.InputError(
        f"weights path = {str(path)!r}: version {version} of CTranslate2's "
        f"format is not known, only {', '.join(map(str, VERSIONS))}; convert "
        "the model with a newer ctranslate2."
      )
    spec = _text(file)
    revision, count = _numbers(file, "<II")
    for _ in range(count):
      name = _text(file)
      (rank,) = _numbers(file, "<B")
      shape = _numbers(file, f"<{rank}I")
      kind, size = _numbers(file, "<BI")
      if kind >= len(_DTYPES):
        raise errors.InputError(
          f"weights path = {str(path)!r}: {name} is of type {kind}, which is "
          "not known; convert the model with --quantization float16."
        )
      found[name] = Array(path, name, shape, _DTYPES[kind], file.tell())
      if size != int(np.prod(shape)) * _DTYPES[kind].itemsize:
        raise ValueError(f"{name} {shape} has {size} bytes")
      file.seek(size, 1)
    if file.tell() > path.stat().st_size:
      raise ValueError("it is cut short")
  scalars = {}
  for name, array in list(found.items()):
    weight = found.get(name.removesuffix(SCALE))
    if name.endswith(SCALE) and weight is not None:
      weight.quantise(found.pop(name))
    elif not array.shape:
      scalars[name] = found.pop(name)().item()
  whole = [name for name, array in found.items() if array.dtype.kind == "i"]
  if whole:
    raise errors.InputError(
      f"weights path = {str(path)!r}: {whole[0]} is stored as "
      f"{found[whole[0]].dtype} without scales; convert the model with "
      "--quantization float16."
    )
  beside = path.parent / "config.json"
  config = json.loads(beside.read_text()) if beside.is_file() else {}
  said = {"spec": spec, "revision": revision, "scalars": scalars}
  return found, {**config, SECTION: said}


def _numbers(file: BinaryIO, kinds: str) -> tuple[int, ...]:
  return struct.unpack(kinds, file.read(struct.calcsize(kinds)))


def _text(file: BinaryIO) -> str:
  (length,) = _numbers(file, "<H")
  return file.read(length)[:-1].decode()
