"""Made-up records of every modality, for smoke tests and shape checks."""

from collections.abc import Sequence

import cv2
import numpy as np

from mmjax import errors
from mmjax.typing import Example

WORDS = "red green blue small large round square old new cat dog tree".split()
MODALITIES = ("image", "text", "audio", "label", "regions")


class FakeSource:
  """Records that depend on their index and the seed alone; see `build`."""

  name = "fake"

  def __init__(
    self, size, modalities, image, audio, regions, classes, corrupt, seed
  ):
    self._size = size
    self._modalities = modalities
    self._image = image
    self._audio = audio
    self._regions = regions
    self._classes = classes
    self._corrupt = corrupt
    self._seed = seed

  def __len__(self) -> int:
    return self._size

  def is_corrupt(self, index: int) -> bool:
    """Returns whether the image of this record cannot be decoded."""
    rng = np.random.default_rng([self._seed, index, 1])
    return bool(rng.random() < self._corrupt)

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < self._size:
      raise IndexError(index)
    rng = np.random.default_rng([self._seed, index])
    label = int(rng.integers(self._classes))
    words = list(rng.choice(WORDS, 4, replace=False))
    noise = rng.standard_normal(self._audio, np.float32)
    boxes = np.sort(rng.random((self._regions[0], 2, 2)), 1)
    found: Example = {"index": index}
    if "image" in self._modalities:
      found["image"] = self._picture(rng, label, index)
    if "text" in self._modalities:
      found["text"] = " ".join(words)
      found["texts"] = [" ".join(words), f"number {label}"]
      found["name"], found["tags"] = words[0], words[1:]
    if "audio" in self._modalities:
      found["audio"] = 0.1 * noise
    if "label" in self._modalities:
      found["label"] = label
    if "regions" in self._modalities:
      regions = rng.standard_normal(self._regions, np.float32)
      found["regions"] = regions
      found["boxes"] = boxes.reshape(-1, 4).astype(np.float32)
    return found

  def _picture(self, rng, label, index) -> bytes:
    # A disc on a ground; the label gives the colour, so it can be learnt.
    hue = np.array([[[180 * label // self._classes, 255, 255]]], np.uint8)
    colour = cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0].tolist()
    rows, columns = self._image
    image = np.full((rows, columns, 3), rng.integers(200, 256), np.uint8)
    place = (int(rng.integers(columns)), int(rng.integers(rows)))
    cv2.circle(image, place, max(2, min(rows, columns) // 3), colour, -1)
    data = cv2.imencode(".png", image)[1].tobytes()
    # The head of a file without its body: what a broken copy looks like.
    return data[:20] if self.is_corrupt(index) else data


def build(
  *,
  size: int = 256,
  modalities: Sequence[str] = MODALITIES,
  image: tuple[int, int] = (32, 32),
  audio: int = 1600,
  regions: tuple[int, int] = (4, 8),
  classes: int = 10,
  corrupt: float = 0.0,
  seed: int = 0,
) -> FakeSource:
  """Builds the source.

  An example has `index`, and of the modalities: `image` (PNG bytes); `text`,
  `texts`, `name`, `tags`; `audio` (float32 [audio]); `label` (shown by the
  colour of the image); `regions` (float32 [R D]) with `boxes` (float32 [R 4],
  x and y from 0 to 1, corner and opposite corner).

  Args:
    size: number of records.
    modalities: which of `MODALITIES`.
    image: rows and columns.
    audio: samples.
    regions: number and width.
    classes: number of labels.
    corrupt: part of the images that cannot be decoded.
    seed: gives other records.

  Raises:
    InputError: a modality that does not exist, or no record.
  """
  for modality in modalities:
    if modality not in MODALITIES:
      raise errors.unknown("data.sources.fake.modalities", modality, MODALITIES)
  if size < 1:
    raise errors.InputError(
      f"data.sources.fake.size = {size}: at least one record is needed."
    )
  return FakeSource(
    size,
    tuple(modalities),
    tuple(image),
    audio,
    tuple(regions),
    classes,
    corrupt,
    seed,
  )
