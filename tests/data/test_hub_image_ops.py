"""The hub's image operations, against the reference's recorded pixels."""

import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from mmjax import errors
from mmjax.data import hub_image_ops, image_ops, preprocess
from mmjax.weights import image_front

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "front" / "images.npz"
with np.load(GOLDEN) as file:
  RECORDED = {name: file[name] for name in file.files}
CASES = json.loads(str(RECORDED["cases"]))


def run(op, image):
  return op({"image": image}, np.random.default_rng(0))["image"]


def picture(rows, columns, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (rows, columns, channels), np.uint8)


def recorded(name):
  """Returns an array, or the bytes of a file."""
  found = RECORDED[f"input/{name}"]
  return found if found.ndim > 1 else found.tobytes()


@pytest.mark.parametrize("number", range(len(CASES)))
def test_equals_the_reference(number):
  case = CASES[number]
  function = preprocess.parse(image_front.image(case["config"]))
  stride = case["stride"]
  for name in case["inputs"]:
    want = RECORDED[f"output/{number}/{name}"]
    found = run(function, recorded(name))
    assert found.dtype == np.float32
    found = found[::stride, ::stride]
    assert found.shape == want.shape, name
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-6, err_msg=name)


def test_the_comparison_sees_a_filter_that_does_not_widen():
  image = recorded("noise")
  widened = run(hub_image_ops.resize_pillow((11, 13)), image)
  plain = run(image_ops.resize((11, 13), "cubic"), image)
  assert np.abs(widened.astype(int) - plain).max() > 20


def test_pillow_images_and_their_bytes_are_the_same():
  for name in (n for n in CASES[7]["inputs"] if n.startswith("png")):
    data = recorded(name)
    opened = run(hub_image_ops.open_rgb(), Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(run(hub_image_ops.open_rgb(), data), opened)
    assert opened.shape == (19, 24, 3) and opened.dtype == np.uint8


def test_what_the_camera_noted_is_followed():
  image = Image.fromarray(picture(6, 9))
  exif = image.getexif()
  exif[0x0112] = 6  # a quarter turn clockwise
  file = io.BytesIO()
  image.save(file, "PNG", exif=exif)
  found = run(hub_image_ops.open_rgb(), file.getvalue())
  np.testing.assert_array_equal(found, np.rot90(np.asarray(image), -1))


def test_bytes_that_are_no_image():
  with pytest.raises(image_ops.CorruptRecord, match="4 bytes"):
    run(hub_image_ops.open_rgb(), b"oops")


@pytest.mark.parametrize(
  "image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8)]
)
def test_arrays_of_another_kind(image):
  with pytest.raises(errors.InputError, match="give uint8"):
    run(hub_image_ops.open_rgb(), image)


def test_the_smaller_side_is_resized_and_the_other_rounded_down():
  op = hub_image_ops.resize_small_pillow(10)
  assert run(op, picture(30, 47)).shape == (10, 15, 3)
  assert run(op, picture(47, 30)).shape == (15, 10, 3)
  image = picture(10, 12)
  assert run(op, image) is image


def test_crop_or_pad():
  image = picture(5, 8)
  found = run(hub_image_ops.crop_or_pad((3, 4)), image)
  np.testing.assert_array_equal(found, image[1:4, 2:6])
  # Of an odd number of black rows one more is above.
  found = run(hub_image_ops.crop_or_pad((8, 4)), image)
  np.testing.assert_array_equal(found[2:7], image[:, 2:6])
  assert not found[:2].any() and not found[7:].any()


def test_normalise():
  image = picture(4, 5)
  op = hub_image_ops.normalise((0.1, 0.2, 0.3), (0.5, 0.4, 0.25))
  want = (image / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.4, 0.25]
  found = run(op, image)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, want, atol=1e-6)
  np.testing.assert_array_equal(
    run(hub_image_ops.normalise(0.0, 1.0, 1.0), image), image
  )


def test_arguments_must_make_sense():
  with pytest.raises(ValueError, match="positive"):
    hub_image_ops.resize_pillow(0)
  with pytest.raises(ValueError, match="integer"):
    hub_image_ops.crop_or_pad((2.5, 3))
  with pytest.raises(errors.InputError, match="'bicubic'"):
    hub_image_ops.resize_small_pillow(4, "bicubik")
  with pytest.raises(ValueError, match="not 0"):
    hub_image_ops.normalise(0.5, 0.0)
