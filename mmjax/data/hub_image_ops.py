"""Operations on `example["image"]` as the model hub's processors do them.

By Pillow, whose filters widen when they shrink an image and round to uint8
after each of two passes: what the hub's checkpoints were trained and measured
on. Each function is a factory for preprocessing specs, as in `image_ops.py`,
whose operations are faster. CLIP's images are

  open_rgb|resize_small_pillow(224, 'bicubic')|crop_or_pad(224)|normalise(...)
"""

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageOps

from mmjax import errors
from mmjax.data.image_ops import CorruptRecord
from mmjax.typing import Example

Op = Callable[[Example, np.random.Generator], Example]

METHODS = {
  "nearest": Image.Resampling.NEAREST,
  "lanczos": Image.Resampling.LANCZOS,
  "bilinear": Image.Resampling.BILINEAR,
  "bicubic": Image.Resampling.BICUBIC,
  "box": Image.Resampling.BOX,
  "hamming": Image.Resampling.HAMMING,
}
_WHITE = 255


def _on_image(f: Callable[[np.ndarray], np.ndarray]) -> Op:
  def op(example: Example, rng: np.random.Generator) -> Example:
    return {**example, "image": f(example["image"])}

  return op


def open_rgb() -> Op:
  """Makes RGB uint8 [Y X 3] of a file's bytes, a Pillow image or an array.

  Transparent images are laid on white, grey ones get three equal channels.
  Of files, the orientation that the camera noted is followed.

  Raises (when it runs):
    CorruptRecord: the bytes are no image.
    InputError: an array that is not uint8 [Y X], [Y X 1], [Y X 3] or [Y X 4].
  """

  def run(example: Example, rng: np.random.Generator) -> Example:
    image = example["image"]
    if isinstance(image, np.ndarray):
      return {**example, "image": _array_to_rgb(image)}
    if not isinstance(image, Image.Image):
      image = _opened(image)
    return {**example, "image": _pillow_to_rgb(image)}

  return run


def _opened(data: bytes) -> Image.Image:
  try:
    with Image.open(io.BytesIO(data)) as image:
      image.load()
      return ImageOps.exif_transpose(image)
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
    raise CorruptRecord(
      f"image = {bytes(data[:8])!r}... ({len(data)} bytes): no image that "
      f"Pillow can decode ({e}); remove or repair the record."
    ) from e


def _pillow_to_rgb(image: Image.Image) -> np.ndarray:
  if "A" in image.getbands() or image.info.get("transparency") is not None:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (_WHITE,) * 4)
    image = Image.alpha_composite(white, image)
  return np.asarray(image.convert("RGB"))


def _array_to_rgb(image: np.ndarray) -> np.ndarray:
  if image.ndim == 2:
    image = image[..., None]
  if (
    image.dtype != np.uint8
    or image.ndim != 3
    or image.shape[2] not in (1, 3, 4)
  ):
    raise errors.InputError(
      f"image is {image.dtype} {list(image.shape)}: give uint8 [Y X], [Y X 1], "
      "[Y X 3] or [Y X 4], the channels last."
    )
  if image.shape[2] == 1:
    return np.repeat(image, 3, axis=2)
  if image.shape[2] == 4:
    alpha = image[..., 3:] / _WHITE
    mixed = alpha * image[..., :3] + (1 - alpha) * _WHITE
    return np.round(mixed).astype(np.uint8)
  return image


def _resized(image: np.ndarray, rows: int, columns: int, method: str):
  if image.shape[:2] == (rows, columns):
    return image
  pixels = Image.fromarray(np.ascontiguousarray(image))
  return np.asarray(pixels.resize((columns, rows), resample=METHODS[method]))


def resize_pillow(size: int | tuple[int, int], method: str = "bicubic") -> Op:
  """Resizes to `size` = n or (rows, columns), whatever the aspect ratio.

  Args:
    size: of the result.
    method: "bicubic", "bilinear", "lanczos", "box", "hamming", "nearest".
  """
  rows, columns = _pair(size)
  _known(method)
  return _on_image(lambda image: _resized(image, rows, columns, method))


def resize_small_pillow(size: int, method: str = "bicubic") -> Op:
  """Resizes so that the smaller side is `size`; the other is rounded down.

  Args:
    size: of the smaller side.
    method: as in `resize_pillow`.
  """
  _pair(size)
  _known(method)

  def run(image: np.ndarray) -> np.ndarray:
    rows, columns = image.shape[:2]
    if columns <= rows:
      return _resized(image, int(size * rows / columns), size, method)
    return _resized(image, size, int(size * columns / rows), method)

  return _on_image(run)


def crop_or_pad(size: int | tuple[int, int], rounded: bool = False) -> Op:
  """Cuts the middle `size` out; a smaller image is put into black.

  Args:
    size: of the result.
    rounded: as torchvision does it: where an odd number of pixels is left over,
      an even one is cut off before, and the odd one of padding comes last.
      Otherwise less is cut off before, and the odd one comes first.
  """
  rows, columns = _pair(size)

  def before(length: int, wanted: int) -> int:
    """Returns where what is cut out begins; below 0 where it is too short."""
    if rounded:
      half = (length - wanted) / 2
      return round(half) if half > 0 else -int(-half)
    return (length - wanted) // 2

  def run(image: np.ndarray) -> np.ndarray:
    Y, X = image.shape[:2]
    y, x = before(Y, rows), before(X, columns)
    above, left = max(-y, 0), max(-x, 0)
    if above or left or Y < rows or X < columns:
      canvas = np.zeros((max(rows, Y), max(columns, X), 3), image.dtype)
      canvas[above : above + Y, left : left + X] = image
      image, y, x = canvas, y + above, x + left
    return image[y : y + rows, x : x + columns]

  return _on_image(run)


def normalise(
  mean: float | Sequence[float],
  std: float | Sequence[float],
  factor: float = 1 / 255,
) -> Op:
  """Makes float32 (image * factor - mean) / std, as the model takes it.

  Args:
    mean: of each channel, or of all.
    std: standard deviation of each channel, or of all.
    factor: of the uint8 values, before.
  """
  shift, scale = (np.asarray(x, np.float32) for x in (mean, std))
  if shift.ndim > 1 or scale.ndim > 1 or not np.all(scale):
    raise ValueError(
      f"mean {mean!r} and std {std!r} must be numbers, std not 0"
    )

  def run(image: np.ndarray) -> np.ndarray:
    # In this order, and rounded here, as in the reference.
    scaled = (image.astype(np.float64) * factor).astype(np.float32)
    return (scaled - shift) / scale

  return _on_image(run)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
  rows, columns = (size, size) if isinstance(size, int) else size
  if not (isinstance(rows, int) and isinstance(columns, int)):
    raise ValueError(f"size {size!r} must be an integer or two")
  if min(rows, columns) < 1:
    raise ValueError(f"size {size!r} must be positive")
  return rows, columns


def _known(method: str) -> None:
  if method not in METHODS:
    raise errors.unknown("method", method, METHODS)
