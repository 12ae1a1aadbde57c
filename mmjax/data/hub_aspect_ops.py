"""Operations of the model hub's processors that keep an image's aspect.

Of ViLT, whose images are padded to the largest of a batch,

  open_rgb|resize_between_pillow(384, 639, 32)|normalise(...)|pad_pixels

and of SigLIP 2's NaFlex, which takes as many patches as fit,

  open_rgb|resize_to_patches_pillow(16, 256)|normalise(...)|patches(16, 256)

They work on `example["image"]`, as those of `hub_image_ops.py` do.
"""

import math
from collections.abc import Callable

import numpy as np

from mmjax import errors
from mmjax.data import ragged
from mmjax.data.hub_image_ops import resize_pillow
from mmjax.typing import Example

Op = Callable[[Example, np.random.Generator], Example]


def resize_between_pillow(
  shortest: int, longest: int, divisor: int = 1, method: str = "bicubic"
) -> Op:
  """Resizes, nearly in its aspect, to sides that are multiples of a number.

  Args:
    shortest: of the shorter side, unless the longer one would be too long.
    longest: of the longer side.
    divisor: both sides are rounded down to multiples of it.
    method: as in `resize_pillow`.

  Raises (when it runs):
    InputError: an image so oblong that nothing would remain.
  """
  _counts(shortest=shortest, longest=longest, divisor=divisor)
  resize_pillow(1, method)  # a name that is unknown

  def op(example: Example, rng: np.random.Generator) -> Example:
    Y, X = example["image"].shape[:2]
    # In these steps, so that halves are rounded as in the reference.
    scale = shortest / min(Y, X)
    rows, columns = (shortest, scale * X) if Y < X else (scale * Y, shortest)
    if max(rows, columns) > longest:
      scale = longest / max(rows, columns)
      rows, columns = scale * rows, scale * columns
    rows, columns = (
      int(side + 0.5) // divisor * divisor for side in (rows, columns)
    )
    if min(rows, columns) < 1:
      raise errors.InputError(
        f"image of {Y} x {X} pixels: with a longest side of {longest} the "
        f"shorter one would have less than {divisor}; cut it before."
      )
    return resize_pillow((rows, columns), method)(example, rng)

  return op


def pad_pixels(
  size: int | tuple[int, int] | None = None, mask: str = "pixel_mask"
) -> Op:
  """Pads on the right and below by 0, and says where the image is.

  Args:
    size: of the result, n or (rows, columns), so that all batches are alike;
      None is that of the largest in a batch.
    mask: key of int32 [Y X], 1 where the image is.

  Raises (when it runs):
    InputError: an image that is larger.
  """
  wanted = (size, size) if isinstance(size, int) else size
  if wanted is not None:
    rows, columns = wanted
    _counts(rows=rows, columns=columns)

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = ragged.mark(example["image"])
    Y, X, C = image.shape
    where = ragged.mark(np.ones((Y, X), np.int32))
    if wanted is not None:
      if Y > wanted[0] or X > wanted[1]:
        raise errors.InputError(
          f"pad_pixels size = {wanted}: an image has {Y} x {X} pixels; raise "
          "it, or resize to less."
        )
      image, where = (
        ragged.grow(image, (*wanted, C)),
        ragged.grow(where, wanted),
      )
    return {**example, "image": image, mask: where}

  return op


def resize_to_patches_pillow(
  patch: int, most: int, method: str = "bilinear"
) -> Op:
  """Resizes, nearly in its aspect, to as many whole patches as are allowed.

  Args:
    patch: side in pixels.
    most: of patches, at least 1.
    method: as in `resize_pillow`.
  """
  _counts(patch=patch, most=most)
  resize_pillow(1, method)  # a name that is unknown

  def op(example: Example, rng: np.random.Generator) -> Example:
    sides = example["image"].shape[:2]

    def at(scale: float) -> list[int]:
      return [max(1, math.ceil(side * scale / patch)) for side in sides]

    # The reference's search and its ends; a closer one gives other sizes.
    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
      middle = (low + high) / 2
      if math.prod(at(middle)) <= most:
        low = middle
      else:
        high = middle
    rows, columns = at(low)
    size = (rows * patch, columns * patch)
    return resize_pillow(size, method)(example, rng)

  return op


def patches(
  patch: int, most: int, mask: str = "mask", shapes: str = "shapes"
) -> Op:
  """Cuts an image into patches, row by row, padded by 0 to the most.

  The image becomes [most patch*patch*C], pixel by pixel, channels last.

  Args:
    patch: side in pixels.
    most: of patches.
    mask: key of int32 [most], 1 for a patch and 0 for padding.
    shapes: key of int32 [2], rows and columns of patches.

  Raises (when it runs):
    InputError: sides that are no multiples of the patch, or too many patches.
  """
  _counts(patch=patch, most=most)

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = example["image"]
    Y, X, C = image.shape
    rows, columns = Y // patch, X // patch
    if Y % patch or X % patch or not 0 < rows * columns <= most:
      raise errors.InputError(
        f"image of {Y} x {X} pixels: cannot be 1 to {most} patches of {patch} "
        f"x {patch}; put resize_to_patches_pillow({patch}, {most}) before."
      )
    cut = image.reshape(rows, patch, columns, patch, C).swapaxes(1, 2)
    cut = cut.reshape(rows * columns, patch * patch * C)
    there = np.arange(most) < rows * columns
    return {
      **example,
      "image": ragged.grow(cut, (most, cut.shape[1])),
      mask: there.astype(np.int32),
      shapes: np.array([rows, columns], np.int32),
    }

  return op


def _counts(**sizes: int) -> None:
  for name, size in sizes.items():
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
      raise ValueError(f"{name} {size!r} must be a whole number, 1 or more")
