"""ViLT's and NaFlex's images, against the reference's recorded batches."""

import json
import pathlib

import numpy as np
import pytest

from mmjax import errors
from mmjax.data import hub_aspect_ops, preprocess
from mmjax.data.examples import Preprocess
from mmjax.weights import image_front

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "front" / "aspect.npz"
with np.load(GOLDEN) as file:
  RECORDED = {name: file[name] for name in file.files}
CASES = json.loads(str(RECORDED["cases"]))
THEIRS = dict(
  image="pixel_values",
  pixel_mask="pixel_mask",
  mask="pixel_attention_mask",
  shapes="spatial_shapes",
)


def picture(rows, columns):
  rng = np.random.default_rng(rows)
  return rng.integers(0, 256, (rows, columns, 3), np.uint8)


def run(op, image):
  return op({"image": image}, np.random.default_rng(0))


@pytest.mark.parametrize("number", range(len(CASES)))
def test_batches_equal_the_reference(number):
  case = CASES[number]
  function = Preprocess({"image": image_front.image(case["config"])}, {})
  stride = case["stride"]
  found = function(image=[RECORDED[f"input/{n}"] for n in case["inputs"]])
  prefix = f"output/{number}/"
  fields = {
    name.removeprefix(prefix) for name in RECORDED if name.startswith(prefix)
  }
  assert {THEIRS[name] for name in found} == fields
  for name, value in found.items():
    want = RECORDED[prefix + THEIRS[name]]
    if name == "image":
      assert value.dtype == np.float32 and type(value) is np.ndarray
      value = value[:, ::stride]
      value = value[:, :, ::stride] if value.ndim == 4 else value
    else:
      assert value.dtype == np.int32
    assert value.shape == want.shape
    np.testing.assert_allclose(value, want, rtol=0, atol=1e-6, err_msg=name)


def test_the_recorded_batches_are_ragged():
  masks = [
    value
    for name, value in RECORDED.items()
    if name.endswith("mask") and len(value) > 1
  ]
  assert sum(len(np.unique(m)) == 2 for m in masks) >= 7
  shapes = RECORDED["output/7/spatial_shapes"]
  assert len({tuple(shape) for shape in shapes}) > 3


def test_a_fixed_size_holds_every_batch():
  image = picture(3, 5)
  found = run(hub_aspect_ops.pad_pixels((4, 7), mask="m"), image)
  np.testing.assert_array_equal(found["image"][:3, :5], image)
  np.testing.assert_array_equal(
    found["m"], np.pad(np.ones((3, 5)), ((0, 1), (0, 2)))
  )
  assert found["image"].sum() == image.sum()
  assert type(found["image"]) is np.ndarray
  with pytest.raises(errors.InputError, match=r"\(2, 7\).*3 x 5.*raise it"):
    run(hub_aspect_ops.pad_pixels((2, 7)), image)


def test_patches_are_in_rows_and_pixel_by_pixel():
  image = picture(4, 6)
  found = run(hub_aspect_ops.patches(2, 8, "m", "s"), image)
  np.testing.assert_array_equal(found["s"], [2, 3])
  np.testing.assert_array_equal(found["m"], [1] * 6 + [0] * 2)
  np.testing.assert_array_equal(found["image"][4], image[2:, 2:4].ravel())
  assert not found["image"][6:].any()


@pytest.mark.parametrize(
  "op, shape, says",
  [
    (hub_aspect_ops.resize_between_pillow(384, 639, 32), (1, 100), "1 x 100"),
    (hub_aspect_ops.patches(4, 9), (8, 9), "8 x 9 pixels.*resize_to_patches"),
    (hub_aspect_ops.patches(4, 3), (8, 8), "1 to 3 patches"),
  ],
)
def test_images_that_do_not_fit_are_named(op, shape, says):
  with pytest.raises(errors.InputError, match=says):
    run(op, picture(*shape))


@pytest.mark.parametrize(
  "spec, says",
  [
    ("resize_between_pillow(0, 9)", "shortest 0"),
    ("resize_between_pillow(9, 9, 4, 'cubic')", "method = 'cubic'"),
    ("resize_to_patches_pillow(16, 2.5)", "most 2.5"),
    ("resize_to_patches_pillow(16, 2, 'x')", "method = 'x'"),
    ("patches(True, 3)", "patch True"),
    ("pad_pixels((3, 0))", "columns 0"),
  ],
)
def test_arguments_that_mean_nothing(spec, says):
  with pytest.raises(errors.InputError, match=says):
    preprocess.parse(spec)
