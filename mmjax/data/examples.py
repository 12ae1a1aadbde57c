"""Examples of a user's own, made into a batch for a model."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmjax import errors
from mmjax.data import hub_image_ops, preprocess, ragged, tokenizers

_OPEN = hub_image_ops.open_rgb()


class Preprocess:
  """Turns images, texts and the like into the arguments of a model's call.

  Attributes:
    specs: {key: spec}; "image" and "text" for a dual encoder.
    tokenizers: by name, those of the specs.
    missing: {key: why there is no spec}; what is raised if it is wanted.
    beside: {key: another key, whose spec reads it too}.
  """

  def __init__(
    self,
    specs: Mapping[str, str],
    tokenizers: Mapping[str, Any],
    missing: Mapping[str, str] | None = None,
    beside: Mapping[str, str] | None = None,
  ) -> None:
    self.specs, self.tokenizers = dict(specs), dict(tokenizers)
    self.missing, self.beside = dict(missing or {}), dict(beside or {})
    self._ops = {
      key: preprocess.parse(spec, tokenizers) for key, spec in specs.items()
    }

  @classmethod
  def build(
    cls,
    specs: Mapping[str, str],
    described: Mapping[str, Mapping[str, Any]],
    missing: Mapping[str, str],
    beside: Mapping[str, str] | None = None,
  ) -> "Preprocess":
    """Makes the tokenizers too; where one cannot be made, its key is missing.

    Args:
      specs: {key: spec}.
      described: {key: keywords of `tokenizers.build`}; a spec finds its
        tokenizer by the name of its own key.
      missing: {key: why there is no spec}.
      beside: {key: another key, whose spec reads it too}.
    """
    specs, missing, built = dict(specs), dict(missing), {}
    for key, keywords in described.items():
      try:
        built[key] = tokenizers.build(**keywords)
      except errors.InputError as e:
        missing[key] = str(e)
        specs.pop(key, None)
    return cls(specs, built, missing, beside)

  def __call__(self, **examples: Any) -> dict[str, np.ndarray]:
    """Returns a batch for `model.apply`.

    Args:
      **examples: for each key that is wanted a list, or one alone. An image is
        a path, the bytes of a file, a Pillow image or uint8 [Y X C]; a text is
        a str; a sound is a .wav file's path or bytes, or samples.

    Returns:
      {key: array whose first axis is the list's}; images float32, in [-1, 1]
      unless the spec says how they are normalised. A spec may give more keys
      than its own, such as a mask. Where it keeps sizes as they come, arrays
      are padded to the largest of the batch.

    Raises:
      InputError: unknown key, one that cannot be prepared or stands without
        the one that it belongs to, or images that differ in size.
    """
    batch: dict[str, np.ndarray] = {}
    for key in examples:
      if key in self.beside:
        if self.beside[key] not in examples:
          raise errors.InputError(
            f"preprocess {key}: goes with {self.beside[key]}, which is not "
            "given; give both."
          )
        continue
      if key not in self._ops:
        if key in self.missing:
          raise errors.InputError(self.missing[key])
        known = {**self._ops, **self.missing, **self.beside}
        raise errors.unknown("preprocess keyword", key, known)
      rng = np.random.default_rng(0)
      rows = [
        self._ops[key](example, rng) for example in self._rows(key, examples)
      ]
      for name in rows[0] if rows else [key]:
        batch[name] = self._stacked(key, [row[name] for row in rows])
    return batch

  def _rows(self, key: str, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns {key: ..., what goes with it: ...} of each example."""
    columns = {key: [_read(key, x) for x in _listed(key, given[key])]}
    for name, owner in self.beside.items():
      if owner == key and given.get(name) is not None:
        columns[name] = list(_listed(name, given[name]))
        if len(columns[name]) != len(columns[key]):
          raise errors.InputError(
            f"preprocess {name}: {len(columns[name])} of them for "
            f"{len(columns[key])} of {key}; give one for each."
          )
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]

  def texts(self, ids: Any, key: str | None = None) -> list[str]:
    """Returns the texts of rows of ids [B T], without special tokens.

    Args:
      ids: of a tokenizer.
      key: its name; None is the only one.

    Raises:
      InputError: there is no such tokenizer, or not one alone.
    """
    if key is None and len(self.tokenizers) == 1:
      key = next(iter(self.tokenizers))
    if key not in self.tokenizers:
      why = self.missing.get(key or "text", "give the key of one.")
      known = ", ".join(self.tokenizers) or "none"
      raise errors.InputError(
        f"preprocess.texts key = {key!r}: the tokenizers are {known}; {why}"
      )
    tokenizer = self.tokenizers[key]
    return [tokenizer.decode([int(i) for i in row]) for row in np.asarray(ids)]

  def _stacked(self, key: str, rows: Sequence[Any]) -> np.ndarray:
    try:
      array = ragged.stack(rows)
    except ValueError as e:
      raise errors.InputError(
        f"preprocess {key}: the examples differ in size or there are none; "
        f"the spec is {self.specs[key]!r}, resize them before."
      ) from e
    if array.dtype == np.uint8:
      array = array.astype(np.float32) / 127.5 - 1
    return array


def _listed(key: str, values: Any) -> Any:
  """Returns a sequence of examples, of one that stands alone too."""
  alone = isinstance(values, str | bytes | pathlib.Path | Image.Image)
  if isinstance(values, np.ndarray) and key in ("image", "audio"):
    alone = values.ndim < (4 if key == "image" else 2)
  return [values] if alone else values


def _read(key: str, value: Any) -> Any:
  """Returns the bytes of an image's file, or its pixels."""
  if key != "image":
    return value
  if isinstance(value, Image.Image):  # which `decode` does not know
    rng = np.random.default_rng(0)
    return _OPEN({"image": value}, rng)["image"]
  if isinstance(value, str | pathlib.Path):
    path = pathlib.Path(value)
    if not path.is_file():
      raise errors.InputError(f"preprocess image = {value!r}: no such file.")
    return path.read_bytes()
  return value
