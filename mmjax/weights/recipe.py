"""What a table says of a checkpoint: the model and the rules."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

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
    preprocess: spec for each input, see `data/preprocess.py`. Tables need not
      give it: `front_ends.complete` reads it from the checkpoint's files.
    texts: for each input of token ids how many a text has at most.
    masks: for those whose padding the model cannot see by itself, the argument
      that says what is none.
    prompts: for each input of PaliGemma's prompts the argument of the suffix.
    tokenizers: for `preprocess`, keywords of `data.tokenizers.build` by name.
    missing: for inputs without a spec, why there is none.
    ignore: regular expressions of names of theirs that hold nothing: buffers,
      and copies of tied weights.
    keep: regular expressions of names of theirs that our model does not read,
      but their library does: written again as they were.
    kept: those tensors, by name. Tables leave it empty; `load` reads them.
  """

  table: str
  model: Mapping[str, Any]
  inputs: Mapping[str, tuple[tuple[int, ...], str]]
  rules: Sequence[Rule]
  config: Mapping[str, Any]
  preprocess: Mapping[str, str] = dataclasses.field(default_factory=dict)
  texts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  masks: Mapping[str, str] = dataclasses.field(default_factory=dict)
  prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
  tokenizers: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )
  missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
  ignore: Sequence[str] = ()
  keep: Sequence[str] = ()
  kept: Mapping[str, np.ndarray] = dataclasses.field(
    default_factory=dict, compare=False
  )

  def ignored(self, name: str) -> bool:
    """May the tensor of this name stand there without a leaf of ours?"""
    return _matches((*self.keep, *self.ignore), name)

  def keeps(self, name: str) -> bool:
    """Is the tensor of this name, without a leaf, to be written again?

    Not if `ignore` names it too: a copy of a tied table may be the largest.
    """
    return _matches(self.keep, name) and not _matches(self.ignore, name)


def _matches(patterns: Sequence[str], name: str) -> bool:
  return any(re.search(pattern, name) for pattern in patterns)


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
