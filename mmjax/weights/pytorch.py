"""PyTorch's files: the one state dict in them, read with weights-only loading.

Training scripts save a state dict as it is, or under a name beside an
optimizer, settings and more: {"model": {...}, "epoch": 3}. Only what is found
under exactly one name is taken.
"""

import argparse
import functools
import json
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mmjax import errors

# Our types by PyTorch's names of theirs.
DTYPES = {
  "torch.float64": np.dtype("float64"),
  "torch.float32": np.dtype("float32"),
  "torch.float16": np.dtype("float16"),
  "torch.bfloat16": np.dtype(ml_dtypes.bfloat16),
  "torch.int64": np.dtype("int64"),
  "torch.int32": np.dtype("int32"),
  "torch.int16": np.dtype("int16"),
  "torch.int8": np.dtype("int8"),
  "torch.uint8": np.dtype("uint8"),
  "torch.bool": np.dtype("bool"),
}
# What an optimizer's state dict has, and no model's.
_OPTIMIZER = {"state", "param_groups"}


class Found(NamedTuple):
  """A tensor of a file: its shape, our type, and what reads it."""

  shape: tuple[int, ...]
  dtype: Any
  read: Callable[[], np.ndarray]


def read(path: pathlib.Path) -> tuple[dict[str, Found], str | None]:
  """Returns the tensors of a file, and a config as JSON where it holds one.

  The only object beside tensors, numbers, texts and their containers that is
  let in is argparse.Namespace, in which scripts keep their options: it runs no
  code.

  Raises:
    InputError: PyTorch is not installed, a TorchScript archive, a pickle of
      more than that, or a file with no state dict or several.
  """
  lazy = zipfile.is_zipfile(path)  # files from before 2020 are none
  if lazy:
    with zipfile.ZipFile(path) as archive:
      members = archive.namelist()
    if any(n.endswith("/constants.pkl") for n in members):
      raise errors.InputError(
        f"weights path = {str(path)!r}: it is a TorchScript archive, a program "
        "with weights, such as OpenAI released CLIP as. Where you trust it, "
        "take the weights out: m = torch.jit.load(path, map_location='cpu'); "
        "safetensors.torch.save_file({k: v.contiguous() for k, v in "
        "m.state_dict().items()}, 'model.safetensors')."
      )
  try:
    import torch  # pyright: ignore[reportMissingImports]
  except ImportError as e:
    raise errors.InputError(
      f"weights path = {str(path)!r}: reading PyTorch's format takes PyTorch; "
      "install it (pip install torch), or give the .safetensors file."
    ) from e
  try:
    with torch.serialization.safe_globals([argparse.Namespace]):
      state = torch.load(path, map_location="cpu", weights_only=True, mmap=lazy)
  except Exception as e:
    raise errors.InputError(
      f"weights path = {str(path)!r}: it holds more than tensors, and a pickle "
      "may run any code; save a state dict, or convert it to .safetensors "
      f"where you trust it ({str(e).splitlines()[0]})."
    ) from e
  config = None
  if (
    isinstance(state, Mapping) and {"dims", "model_state_dict"} <= state.keys()
  ):
    # OpenAI's Whisper.
    config = json.dumps(state["dims"])
  return {
    name: Found(
      tuple(value.shape),
      DTYPES.get(str(value.dtype), np.dtype("float32")),
      functools.partial(_array, value),
    )
    for name, value in state_dict(path, state).items()
    if isinstance(value, torch.Tensor)
  }, config


def _array(value: Any) -> np.ndarray:
  if str(value.dtype) == "torch.bfloat16":
    return value.float().numpy().astype(ml_dtypes.bfloat16)
  return value.detach().numpy()


def state_dict(path: pathlib.Path, state: Any) -> Mapping[str, Any]:
  """Returns the one state dict within what was unpickled.

  Where tensors of one dimension or more stand, it is found; elsewhere the one
  entry that holds such, however deep, is gone into. Optimizers are passed by.

  Raises:
    InputError: there is none, or more than one; names them.
  """
  where: list[str] = []
  while True:
    entries = state if isinstance(state, Mapping) else {}
    inner = [k for k, v in entries.items() if _holds(v)]
    tensors = [k for k, v in entries.items() if _is_weight(v)]
    if tensors and not inner:
      return entries
    if len(inner) == 1 and not tensors:
      where.append(str(inner[0]))
      state = entries[inner[0]]
      continue
    place = f" under {'.'.join(where)!r}" if where else ""
    if not inner and not tensors:
      kinds = ", ".join(map(str, list(entries)[:10])) or type(state).__name__
      raise errors.InputError(
        f"weights path = {str(path)!r}: there are no tensors in it{place} "
        f"({kinds}); give a file with a state dict."
      )
    names = [repr(str(k)) for k in inner]
    if tensors:
      names.append(f"the tensors beside ({tensors[0]!r}, ...)")
    raise errors.InputError(
      f"weights path = {str(path)!r}: it holds {len(names)} state dicts{place}: "
      f"{', '.join(names)}; which one is meant is not told. Save one of them "
      "alone: torch.save(torch.load(path, weights_only=True)"
      f"{''.join(f'[{x!r}]' for x in where)}[{str(inner[0])!r}], 'model.pth')."
    )


def _is_weight(value: Any) -> bool:
  # Numbers such as the best loss so far are tensors without dimensions.
  return hasattr(value, "shape") and len(value.shape) > 0


def _holds(value: Any) -> bool:
  """Is it a mapping with weights in it, and no optimizer's?"""
  if not isinstance(value, Mapping) or value.keys() >= _OPTIMIZER:
    return False
  return any(_is_weight(v) or _holds(v) for v in value.values())
