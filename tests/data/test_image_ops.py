import cv2
import numpy as np
import pytest

from mmjax import errors
from mmjax.data import image_ops


def run(op, image, seed=0):
  return op({"image": image}, np.random.default_rng(seed))["image"]


def picture(rows=32, columns=32, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (rows, columns, 3), np.uint8)


@pytest.mark.parametrize("suffix, loss", [("png", 0), ("webp", 6), ("jpg", 6)])
def test_decode_gives_rgb(suffix, loss):
  image = np.zeros((16, 24, 3), np.uint8)
  image[:] = (200, 100, 20)
  data = cv2.imencode(f".{suffix}", image[..., ::-1])[1].tobytes()
  found = run(image_ops.decode(), data)
  assert found.shape == (16, 24, 3) and found.dtype == np.uint8
  assert np.abs(found.astype(int) - image).max() <= loss


def test_decode_passes_arrays():
  image = picture()
  assert run(image_ops.decode(), image) is image


def test_decode_makes_three_channels_of_grey():
  data = cv2.imencode(".png", np.full((4, 4), 9, np.uint8))[1].tobytes()
  np.testing.assert_array_equal(
    run(image_ops.decode(), data), np.full((4, 4, 3), 9)
  )


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n12"])
def test_corrupt_bytes(data):
  with pytest.raises(image_ops.CorruptRecord, match=f"{len(data)} bytes"):
    run(image_ops.decode(), data)


def test_area_resize_is_the_mean_of_blocks():
  image = picture(32, 48)
  want = image.reshape(16, 2, 16, 3, 3).astype(float).mean((1, 3))
  found = run(image_ops.resize((16, 16)), image)
  assert np.abs(found - want).max() <= 0.51
  nearest = run(image_ops.resize((16, 16), method="nearest"), image)
  assert np.abs(nearest - want).max() > 10


def test_resize_small_keeps_the_aspect_ratio():
  assert run(image_ops.resize_small(16), picture(32, 64)).shape[:2] == (16, 32)


def test_crops():
  image = np.zeros((10, 12, 3), np.uint8)
  image[..., 0] = np.arange(10)[:, None]
  image[..., 1] = np.arange(12)
  middle = run(image_ops.central_crop((4, 6)), image)
  np.testing.assert_array_equal(middle, image[3:7, 3:9])
  corners = set()
  for seed in range(200):
    found = run(image_ops.random_crop(8), image, seed)
    y, x, _ = found[0, 0]
    np.testing.assert_array_equal(found, image[y : y + 8, x : x + 8])
    corners.add((int(y), int(x)))
  assert corners == {(y, x) for y in range(3) for x in range(5)}


def test_a_crop_beyond_the_image_says_so():
  with pytest.raises(errors.InputError, match="resize"):
    run(image_ops.random_crop(33), picture())


def test_inception_crop_is_a_part_of_the_image():
  image = np.zeros((64, 64, 3), np.uint8)
  image[..., 0] = 4 * np.arange(64)[:, None]
  op = image_ops.inception_crop(32, area=(0.25, 0.25), ratio=(1.0, 1.0))
  starts = set()
  for seed in range(50):
    found = run(op, image, seed)
    assert found.shape == (32, 32, 3)
    # A quarter of the area, no rescaling: rows go up by one source row.
    np.testing.assert_array_equal(np.diff(found[:, 0, 0].astype(int)), 4)
    starts.add(int(found[0, 0, 0]))
  assert len(starts) > 10


def test_shift_moves_and_fills():
  image = np.zeros((8, 8, 3), np.uint8)
  image[4, 4] = 77
  places = set()
  for seed in range(200):
    found = run(image_ops.shift(1, fill=255), image, seed)
    (place,) = np.argwhere(found[..., 0] == 77)
    moved = tuple(int(n) for n in place - 4)
    places.add(moved)
    assert (found[0] == 255).all() == (moved[0] == 1)
  assert places == {(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)}


def test_flip():
  image = picture()
  np.testing.assert_array_equal(run(image_ops.flip(1.0), image), image[:, ::-1])
  np.testing.assert_array_equal(run(image_ops.flip(0.0), image), image)
  flips = [
    np.array_equal(run(image_ops.flip(), image, s), image) for s in range(200)
  ]
  assert 70 < sum(flips) < 130


def test_affine_of_nothing_is_the_image():
  image = picture()
  np.testing.assert_array_equal(run(image_ops.affine(), image), image)


def test_affine_turns_about_the_middle():
  # An even grid turned by 90 degrees falls on itself.
  class Right:
    def random(self, n=None):
      return 0.5 if n is None else np.array([1.0, 0.5, 0.5, 0.5])

  image = picture()
  op = image_ops.affine(rotate=90)
  found = op({"image": image}, Right())["image"]
  assert np.abs(found.astype(int) - np.rot90(image)).max() <= 1


def test_affine_scales_and_fills():
  image = np.zeros((32, 32, 3), np.uint8)
  found = run(image_ops.affine(scale=(0.5, 0.5), fill=255), image)
  dark = (found[..., 0] < 128).sum()
  assert 15**2 <= dark <= 17**2


def test_affine_shifts_no_further_than_told():
  image = np.full((33, 33, 3), 255, np.uint8)
  image[16, 16] = 0
  moves = []
  for seed in range(100):
    found = run(image_ops.affine(shift=0.1), image, seed)[..., 0]
    weight = 255.0 - found
    yx = [(weight * g).sum() / weight.sum() for g in np.mgrid[:33, :33]]
    moves.append(np.array(yx) - 16)
  assert np.abs(moves).max() <= 3.4
  assert np.abs(moves).max() > 2.5


def test_jitter_brightness_and_contrast_against_numpy():
  class Draws:
    def random(self, n):
      return np.array([1.0, 0.0, 0.5])

  image = picture()
  op = image_ops.jitter(brightness=0.2, contrast=0.4, saturation=0.3)
  found = op({"image": image}, Draws())["image"]
  grey = (image @ np.array([0.299, 0.587, 0.114])).mean()
  want = 1.2 * (0.6 * image + 0.4 * grey)
  assert np.abs(found - np.clip(want, 0, 255)).max() <= 1


def test_jitter_leaves_grey_grey():
  image = np.full((4, 4, 3), 120, np.uint8)
  found = run(image_ops.jitter(saturation=0.9, hue=0.5), image)
  assert np.abs(found.astype(int) - 120).max() <= 1


def test_grayscale():
  found = run(image_ops.grayscale(), picture())
  assert (found == found[..., :1]).all() and found.std() > 1
  np.testing.assert_array_equal(
    run(image_ops.grayscale(0.0), picture()), picture()
  )


def test_cutout_paints_a_copy():
  image = np.zeros((16, 16, 3), np.uint8)
  sizes = {
    int((run(image_ops.cutout(4, fill=9), image, s)[..., 0] == 9).sum())
    for s in range(100)
  }
  assert max(sizes) == 16 and min(sizes) >= 4
  assert not image.any()


def test_size_must_make_sense():
  with pytest.raises(ValueError):
    image_ops.resize(0)
  with pytest.raises(errors.InputError, match="'area'"):
    image_ops.resize(4, method="aera")
