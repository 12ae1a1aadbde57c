"""What a table says of a checkpoint: the model, the rules, the front end."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmjax import errors
from mmjax.weights.rename import Rule


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How to read one checkpoint.

  Attributes:
    table: name of the table.
    model: name and keywords of the model.
    inputs: for each argument of the model's call a shape, batch first, and a
      dtype, that declare its parameters.
    rules: one for each leaf.
    config: of the checkpoint, to be written beside its weights again.
    preprocess: spec for each input, see `data/preprocess.py`; none where our
      operations do not give what the checkpoint was trained on, exactly.
    ignore: regular expressions of names of theirs that hold nothing: buffers,
      and copies of tied weights.
  """

  table: str
  model: Mapping[str, Any]
  inputs: Mapping[str, tuple[tuple[int, ...], str]]
  rules: Sequence[Rule]
  config: Mapping[str, Any]
  preprocess: Mapping[str, str] = dataclasses.field(default_factory=dict)
  ignore: Sequence[str] = ()

  def ignored(self, name: str) -> bool:
    """Does the tensor of this name hold nothing?"""
    return any(re.search(pattern, name) for pattern in self.ignore)


@dataclasses.dataclass(frozen=True)
class Config(Mapping):
  """A config.json that is asked for its fields by name.

  Attributes:
    fields: what it says.
    path: of the checkpoint, for errors.
  """

  fields: Mapping[str, Any]
  path: pathlib.Path

  def __getitem__(self, name: str) -> Any:
    """Returns a field; raises InputError, which names it, if it is missing."""
    if name not in self.fields:
      near = errors.nearest(name, self.fields)
      hint = f" (nearest: {near})" if near else ""
      raise errors.InputError(
        f"weights path = {str(self.path)!r}: its config has no {name!r}{hint}; "
        "add it to config.json."
      )
    return self.fields[name]

  def __contains__(self, name: object) -> bool:
    return name in self.fields

  def get(self, name: str, default: Any = None) -> Any:
    """Returns a field, or what stands for it where it is missing."""
    return self.fields.get(name, default)

  def __iter__(self) -> Iterator[str]:
    return iter(self.fields)

  def __len__(self) -> int:
    return len(self.fields)


def image_spec(preprocessor: Mapping[str, Any]) -> dict[str, str]:
  """Returns {"image": spec} that does what a preprocessor_config.json says.

  Our images come as uint8 and go to the model as x / 127.5 - 1, so that a
  config with another mean, deviation or factor has no spec. Nor has one that
  resizes: the hub resizes with Pillow, whose filters widen when they shrink an
  image; those of `data/image_ops.py` do not.

  Returns:
    {} if there is no such spec.
  """
  said = preprocessor.get
  if not preprocessor or said("do_resize", True):
    return {}
  if not (said("do_rescale", True) and said("do_normalize", True)):
    return {}
  values = {*said("image_mean", ()), *said("image_std", ())}
  if values != {0.5} or abs(said("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
    return {}
  crop = ""
  if said("do_center_crop", False):
    size = said("crop_size", None)
    if isinstance(size, Mapping):
      size = (size["height"], size["width"])
    if size is None:
      return {}
    crop = f"|central_crop({size})"
  return {"image": f"decode{crop}|keep('image')"}
