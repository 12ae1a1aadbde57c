"""What the tables of image tokenizers share: a config beside the shapes.

Their checkpoints come with and without a config. All sizes stand in the
shapes, so that a config is only asked whether it says the same.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.rename import Op, Rule


def check_agrees(
  path: pathlib.Path, config: Mapping[str, Any], found: Mapping[str, Any]
) -> None:
  """Checks what a config says against what the tensors are, or must be.

  Args:
    path: of the checkpoint, for the message.
    config: may leave out any field.
    found: value of each field by the tensors.

  Raises:
    InputError: another value; names the field and both.
  """
  for name, value in found.items():
    said = config.get(name, value)
    if isinstance(said, list | tuple):
      said = tuple(said)
    if said != value:
      raise errors.InputError(
        f"weights path = {str(path)!r}: its config says {name} = {said!r}, but "
        f"its tensors are of a model with {value!r}; take the config that "
        "belongs to them."
      )


def check_is(
  path: pathlib.Path, config: Mapping[str, Any], known: Mapping[str, Any]
) -> None:
  """Checks fields of which our model knows one value.

  Raises:
    InputError: another value; names the field and both.
  """
  for name, value in known.items():
    said = config.get(name, value)
    if said != value:
      raise errors.InputError(
        f"weights path = {str(path)!r}: its config says {name} = {said!r}; our "
        f"model has {value!r} only, and would not compute the same."
      )


def need(path: pathlib.Path, shapes: Mapping[str, Any], name: str) -> Any:
  """Returns the shape of a tensor that sizes are read from.

  Raises:
    InputError: there is no such tensor; names it and the nearest.
  """
  if name not in shapes:
    near = errors.nearest(name, shapes)
    hint = f" (nearest: {near})" if near else ""
    raise errors.InputError(
      f"weights path = {str(path)!r}: there is no tensor {name!r}{hint}, of "
      "which sizes are read; fetch the whole file."
    )
  return shapes[name]


def conv(
  ours: str, theirs: str, kernel: str, bias: str, op: Op = rename.CONV2D
) -> list[Rule]:
  """Returns the rules of a convolution.

  Args:
    ours: name of the module.
    theirs: name of the module with the separator after it, "conv_in.".
    kernel: their name of the kernel, "weight".
    bias: their name of the bias.
    op: of the kernel.
  """
  return [
    Rule(f"{ours}/kernel", f"{theirs}{kernel}", op),
    Rule(f"{ours}/bias", f"{theirs}{bias}"),
  ]
