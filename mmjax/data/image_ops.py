"""Operations on `example["image"]`: RGB uint8 [Y X C], on the host, by OpenCV.

Each function here is a factory for preprocessing specs: it takes literals and
returns `fn(example, rng) -> example`. Randomness comes from `rng` alone, a
`numpy.random.Generator`. Images stay uint8; the device normalises them.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

from mmjax import errors
from mmjax.typing import Example

Op = Callable[[Example, np.random.Generator], Example]
Size = int | tuple[int, int]

# Records are processed in parallel, by worker processes; threads inside one
# operation on one small image only get into each other's way.
cv2.setNumThreads(0)

_LUMA = np.array([0.299, 0.587, 0.114])  # weights of BT.601
_YIQ = np.array(
  [[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]]
)
_RGB = np.linalg.inv(_YIQ)
_EYE = np.eye(3)
_METHODS = {
  "area": cv2.INTER_AREA,
  "linear": cv2.INTER_LINEAR,
  "cubic": cv2.INTER_CUBIC,
  "nearest": cv2.INTER_NEAREST,
}


class CorruptRecord(errors.DataError):
  """One record that cannot be read; the pipeline replaces and counts it."""


TOLERATED = 0.01  # part of the records that may be corrupt; more stop the run


def _on_image(f: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Op:
  def op(example: Example, rng: np.random.Generator) -> Example:
    return {**example, "image": f(example["image"], rng)}

  return op


def _pair(size: Size) -> tuple[int, int]:
  rows, columns = (size, size) if isinstance(size, int) else size
  if not (isinstance(rows, int) and isinstance(columns, int)):
    raise ValueError(f"size {size!r} must be an integer or two")
  if min(rows, columns) < 1:
    raise ValueError(f"size {size!r} must be positive")
  return rows, columns


def _method(name: str) -> int:
  if name not in _METHODS:
    raise errors.unknown("method", name, _METHODS)
  return _METHODS[name]


def _resize(image: np.ndarray, rows: int, columns: int, method: int):
  if image.shape[:2] == (rows, columns):
    return image
  if method == cv2.INTER_AREA and image.shape[0] < rows:
    method = cv2.INTER_LINEAR  # area is nearest neighbour when it enlarges
  return cv2.resize(image, (columns, rows), interpolation=method)


def _need(image: np.ndarray, rows: int, columns: int, op: str) -> None:
  if image.shape[0] < rows or image.shape[1] < columns:
    raise errors.InputError(
      f"preprocess {op} = {(rows, columns)}: an image has only "
      f"{image.shape[:2]} rows and columns; resize it before."
    )


def decode() -> Op:
  """Decodes JPEG, PNG or WebP bytes to RGB; arrays pass as they are.

  Transparent pixels keep their colour, alpha is dropped.

  Raises (when it runs):
    CorruptRecord: the bytes are no image.
  """

  def run(image, rng):
    if isinstance(image, np.ndarray) and image.ndim == 3:
      return image
    try:
      data = np.frombuffer(image, np.uint8)
      found = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if len(data) else None
    except cv2.error:
      found = None
    if found is None:
      raise CorruptRecord(
        f"image = {bytes(image[:8])!r}... ({len(image)} bytes): no JPEG, PNG "
        "or WebP that can be decoded; remove or repair the record."
      )
    return found

  return _on_image(run)


def resize(size: Size, method: str = "area") -> Op:
  """Resizes to `size` = n or (rows, columns), whatever the aspect ratio.

  Args:
    size: of the result.
    method: "area" (antialiased), "linear", "cubic" or "nearest".
  """
  rows, columns = _pair(size)
  how = _method(method)
  return _on_image(lambda image, rng: _resize(image, rows, columns, how))


def resize_small(size: int, method: str = "area") -> Op:
  """Resizes so that the smaller side is `size`, keeping the aspect ratio."""
  _pair(size)
  how = _method(method)

  def run(image, rng):
    scale = size / min(image.shape[:2])
    rows, columns = (round(n * scale) for n in image.shape[:2])
    return _resize(image, rows, columns, how)

  return _on_image(run)


def central_crop(size: Size) -> Op:
  """Cuts the middle `size` out."""
  rows, columns = _pair(size)

  def run(image, rng):
    _need(image, rows, columns, "central_crop")
    y = (image.shape[0] - rows) // 2
    x = (image.shape[1] - columns) // 2
    return image[y : y + rows, x : x + columns]

  return _on_image(run)


def random_crop(size: Size) -> Op:
  """Cuts `size` out at a uniformly drawn place."""
  rows, columns = _pair(size)

  def run(image, rng):
    _need(image, rows, columns, "random_crop")
    y = int(rng.integers(image.shape[0] - rows + 1))
    x = int(rng.integers(image.shape[1] - columns + 1))
    return image[y : y + rows, x : x + columns]

  return _on_image(run)


def inception_crop(
  size: Size,
  area: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
  method: str = "area",
) -> Op:
  """Cuts a random rectangle out and resizes it (Szegedy et al., 2015).

  Args:
    size: of the result.
    area: least and greatest part of the image's area, drawn uniformly.
    ratio: least and greatest width / height, drawn log-uniformly. If ten
      draws do not fit into the image, the whole image is taken.
    method: as in `resize`.
  """
  rows, columns = _pair(size)
  how = _method(method)
  low, high = (math.log(r) for r in ratio)

  def run(image, rng):
    height, width = image.shape[:2]
    for _ in range(10):
      target = height * width * rng.uniform(*area)
      aspect = math.exp(rng.uniform(low, high))
      y_size = round(math.sqrt(target / aspect))
      x_size = round(math.sqrt(target * aspect))
      if 0 < y_size <= height and 0 < x_size <= width:
        y = int(rng.integers(height - y_size + 1))
        x = int(rng.integers(width - x_size + 1))
        image = image[y : y + y_size, x : x + x_size]
        break
    return _resize(image, rows, columns, how)

  return _on_image(run)


def shift(pixels: int, fill: int = 255) -> Op:
  """Moves the image by up to `pixels` each way; the border becomes `fill`."""

  def run(image, rng):
    y, x = (int(n) for n in rng.integers(0, 2 * pixels + 1, 2))
    rows, columns = image.shape[:2]
    n, value = pixels, (fill,) * 3
    padded = cv2.copyMakeBorder(
      image, n, n, n, n, cv2.BORDER_CONSTANT, value=value
    )
    return padded[y : y + rows, x : x + columns]

  return _on_image(run)


def flip(p: float = 0.5) -> Op:
  """Mirrors left to right with probability `p`."""

  def run(image, rng):
    return cv2.flip(image, 1) if rng.random() < p else image

  return _on_image(run)


def affine(
  rotate: float = 0.0,
  scale: tuple[float, float] = (1.0, 1.0),
  shift: float = 0.0,
  shear: float = 0.0,
  fill: int = 255,
) -> Op:
  """Turns, scales, moves and shears about the middle, in one interpolation.

  Args:
    rotate: greatest angle either way, degrees.
    scale: least and greatest factor, drawn log-uniformly.
    shift: greatest move either way, as a part of each side.
    shear: greatest horizontal shear either way, degrees.
    fill: value of what comes in at the border.
  """
  low, high = (math.log(s) for s in scale)

  def run(image, rng):
    rows, columns = image.shape[:2]
    draws = 2 * rng.random(4) - 1
    angle = math.radians(rotate * draws[0])
    lean = math.tan(math.radians(shear * draws[1]))
    factor = math.exp(low + (high - low) * rng.random())
    cos, sin = factor * math.cos(angle), factor * math.sin(angle)
    # Turning by the angle after leaning; y grows downwards.
    a, b, c, d = cos, cos * lean + sin, -sin, cos - sin * lean
    x, y = (columns - 1) / 2, (rows - 1) / 2  # the middle stays, but for
    left, down = shift * draws[2] * columns, shift * draws[3] * rows
    matrix = [
      [a, b, x + left - a * x - b * y],
      [c, d, y + down - c * x - d * y],
    ]
    return cv2.warpAffine(
      image,
      np.array(matrix),
      (columns, rows),
      flags=cv2.INTER_LINEAR,
      borderMode=cv2.BORDER_CONSTANT,
      borderValue=(fill,) * 3,
    )

  return _on_image(run)


def jitter(
  brightness: float = 0.0,
  contrast: float = 0.0,
  saturation: float = 0.0,
  hue: float = 0.0,
) -> Op:
  """Changes the colours by one random affine map of RGB.

  Args:
    brightness: factor on all values, drawn from 1 - b to 1 + b.
    contrast: factor on the distance to the mean grey, likewise.
    saturation: factor on the distance of a pixel to its own grey, likewise.
    hue: greatest turn of the colour circle (in YIQ) either way, in turns.
  """
  spread = np.array([brightness, contrast, saturation])
  turns = bool(hue)

  def run(image, rng):
    bright, sharp, vivid = 1 + spread * (2 * rng.random(3) - 1)
    matrix = vivid * _EYE + (1 - vivid) * _LUMA
    if turns:
      angle = 2 * math.pi * rng.uniform(-hue, hue)
      cos, sin = math.cos(angle), math.sin(angle)
      turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
      matrix = matrix @ (_RGB @ turn @ _YIQ)
    red, green, blue, _ = cv2.mean(image)
    grey = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    affine = np.empty((3, 4))
    affine[:, :3] = bright * sharp * matrix
    affine[:, 3] = bright * (1 - sharp) * grey
    return cv2.transform(image, affine)

  return _on_image(run)


def grayscale(p: float = 1.0) -> Op:
  """Takes the colour away with probability `p`; three channels stay."""

  def run(image, rng):
    if rng.random() >= p:
      return image
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    return cv2.merge([grey, grey, grey])

  return _on_image(run)


def cutout(size: int, p: float = 1.0, fill: int = 255) -> Op:
  """Paints a square over the image with probability `p` (DeVries, 2017).

  Args:
    size: side of the square in pixels; its middle is anywhere in the image,
      so that part of it may lie outside.
    p: probability.
    fill: its value.
  """

  def run(image, rng):
    if rng.random() >= p:
      return image
    rows, columns = image.shape[:2]
    y = int(rng.integers(rows)) - size // 2
    x = int(rng.integers(columns)) - size // 2
    image = image.copy()
    image[max(y, 0) : max(y + size, 0), max(x, 0) : max(x + size, 0)] = fill
    return image

  return _on_image(run)
