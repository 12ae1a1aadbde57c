"""TFDS data sets that were prepared as ArrayRecord, read without TensorFlow.

Prepare one with `builder.download_and_prepare(file_format="array_record")`,
on any machine; what is needed here is the folder that holds
`dataset_info.json`.
"""

import functools
import os
from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.typing import Example


@functools.lru_cache(maxsize=8)
def _builder(path: str) -> Any:
  # Imported late: it takes a second, and only this source needs it.
  import tensorflow_datasets as tfds

  return tfds.builder_from_directory(path)


class TfdsSource:
  """Random access to one split; opens its files where it is unpickled."""

  def __init__(self, path, split, rename, decode_images):
    self._arguments = path, split, rename, decode_images
    self._rename = rename
    self.name = f"tfds {os.path.basename(path.rstrip('/'))}"
    import tensorflow_datasets as tfds

    builder = _builder(path)
    self._strings = _strings(builder.info.features, tfds)
    skip = {}
    if not decode_images:
      skip = _images(builder.info.features, tfds)
    self._records = builder.as_data_source(split=split, decoders=skip or None)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Example:
    record = self._records[index]
    found = {}
    for key, value in record.items():
      if key in self._strings:
        value = _text(value)
      found[self._rename.get(key, key)] = value
    return found

  def __reduce__(self):
    return TfdsSource, self._arguments


def _strings(features: Any, tfds: Any) -> set[str]:
  def is_text(feature):
    if isinstance(feature, tfds.features.Sequence):
      feature = feature.feature
    return isinstance(feature, tfds.features.Text)

  return {key for key, feature in features.items() if is_text(feature)}


def _images(features: Any, tfds: Any) -> dict[str, Any]:
  return {
    key: tfds.decode.SkipDecoding()
    for key, feature in features.items()
    if isinstance(feature, tfds.features.Image)
  }


def _text(value: Any) -> Any:
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(value, str):
    return value
  return [_text(v) for v in value]


def build(
  *,
  path: str,
  split: str = "train",
  rename: Mapping[str, str] | None = None,
  decode_images: bool = False,
) -> TfdsSource:
  """Builds the source.

  An example is what TFDS gives, but for texts, which are str or lists of str,
  and images, which stay bytes for the operation `decode` (faster, and in the
  worker) unless `decode_images`.

  Args:
    path: the prepared folder, with `dataset_info.json`.
    split: of the data set, slices such as "train[:10%]" included.
    rename: {key of the data set: key of the example}.
    decode_images: whether TFDS decodes.

  Raises:
    InputError: no such folder or split, or files of another format.
  """
  path = os.path.abspath(os.path.expanduser(path))
  field = "data.sources.tfds"
  if not os.path.exists(os.path.join(path, "dataset_info.json")):
    raise errors.InputError(
      f"{field}.path = {path!r}: no dataset_info.json there; give the folder "
      "of a prepared version, such as ~/tensorflow_datasets/coco/2017/1.1.0."
    )
  known = _builder(path).info.splits
  whole = split.split("[")[0]
  for part in whole.split("+"):
    if part.strip() not in known:
      raise errors.unknown(f"{field}.split", split, known)
  try:
    return TfdsSource(path, split, dict(rename or {}), decode_images)
  except (NotImplementedError, ValueError) as error:
    raise errors.InputError(
      f"{field}.path = {path!r}: cannot be read in random order "
      f"({error}); prepare it with file_format='array_record'."
    ) from error
