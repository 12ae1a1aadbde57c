"""What a preprocessor_config.json says; pixels: tests/data/test_hub_*_ops."""

import pytest

from mmjax import errors
from mmjax.data import preprocess
from mmjax.weights import image_front

CLIP = dict(image_processor_type="CLIPImageProcessor")
HALVES = "normalise([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])"


@pytest.mark.parametrize(
  "said, model_type, want",
  [
    (
      dict(feature_extractor_type="ViTFeatureExtractor", size=20),
      "",
      f"open_rgb|resize_pillow((20, 20), 'bilinear')|{HALVES}",
    ),
    # The class is that of the model, fields of null are those of the class.
    (
      dict(size=None, resample=1),
      "siglip",
      f"open_rgb|resize_pillow((224, 224), 'lanczos')|{HALVES}",
    ),
    # A number is the shorter side there, a pair is rows and columns.
    (
      dict(image_processor_type="SiglipImageProcessorFast", size=20),
      "",
      f"open_rgb|resize_small_pillow(20, 'bicubic')|{HALVES}",
    ),
    (
      {**CLIP, "do_resize": False, "crop_size": [6, 8], "do_normalize": False},
      "",
      "open_rgb|crop_or_pad((6, 8))|normalise(0.0, 1.0)",
    ),
    (
      dict(do_resize=False, do_rescale=False, image_mean=9.0, image_std=3.0),
      "vit",
      "open_rgb|normalise(9.0, 3.0, 1.0)",
    ),
    (
      dict(do_resize=False, rescale_factor=0.5),
      "vit",
      f"open_rgb|{HALVES[:-1]}, 0.5)",
    ),
    # What BLIP's files say, but nothing does.
    (
      dict(
        do_pad=True, size_divisor=32, size=9, image_mean=[0.5] * 3, image_std=1
      ),
      "blip",
      "open_rgb|resize_pillow((9, 9), 'bicubic')|normalise([0.5, 0.5, 0.5], 1)",
    ),
    # Below 384 pixels ResNet's images are resized to more, and cut.
    (
      dict(size={"shortest_edge": 224}, crop_pct=0.9),
      "resnet",
      f"open_rgb|resize_small_pillow(248, 'bicubic')|crop_or_pad(224)|{HALVES}",
    ),
    (
      dict(size={"shortest_edge": 384}, do_pad=False),
      "convnext",
      f"open_rgb|resize_pillow(384, 'bicubic')|{HALVES}",
    ),
  ],
)
def test_a_file_becomes_a_spec(said, model_type, want):
  found = image_front.image(said, model_type)
  assert found == f"{want}|keep('image')"
  preprocess.parse(found)


@pytest.mark.parametrize(
  "change, says",
  [
    (dict(do_pad=True, do_center_crop=False), "do_pad = True: images of sev"),
    (dict(pad_size={"height": 9, "width": 9}), "pad_size"),
    (dict(do_solarize=True), "do_solarize = True.*CLIPImageProcessor"),
    (dict(size_divisor=32), "size_divisor = 32"),
    (dict(crop_pct=0.9), "crop_pct = 0.9"),
    (dict(resample=7), "resample = 7"),
    (dict(size={"longest_edge": 9}), r"size = \{'longest_edge': 9\}"),
    (dict(crop_size={"shortest_edge": 9}), "crop_size"),
    (dict(image_processor_type="CLIPImageProcesser"), "'CLIPImageProcessor'"),
    (dict(image_processor_type=None), "image_processor_type is not there"),
  ],
)
def test_what_is_not_followed_is_named(change, says):
  with pytest.raises(errors.InputError, match=says):
    image_front.image({**CLIP, **change})


def test_a_crop_without_a_size_is_named():
  with pytest.raises(errors.InputError, match="crop_size = None"):
    image_front.image(dict(do_center_crop=True), "vit")


def test_a_size_of_two_is_none_for_a_class_that_cuts():
  with pytest.raises(errors.InputError, match="shortest_edge"):
    image_front.image(dict(size={"height": 3, "width": 4}), "convnext")


@pytest.mark.parametrize(
  "kind, change, says",
  [
    ("vilt", dict(size_divisor=0), "size_divisor = 0: must be a whole"),
    ("vilt", dict(size=[9, 9]), r"size = \[9, 9\].*shortest_edge"),
    ("vilt", dict(do_center_crop=True), "do_center_crop = True"),
    ("siglip2", dict(max_num_patches=2.5), "max_num_patches = 2.5"),
    ("siglip2", dict(size={"shortest_edge": 9}), "size = .*Siglip2Image"),
    ("siglip2", dict(do_pad=True), "do_pad = True"),
    ("siglip2", dict(resample=9), "resample = 9"),
  ],
)
def test_what_vilt_and_naflex_do_not_follow_is_named(kind, change, says):
  image_front.image({"do_resize": True}, kind)
  with pytest.raises(errors.InputError, match=says):
    image_front.image(change, kind)


def test_patches_are_refused_for_a_model_of_whole_images():
  said = dict(image_processor_type="Siglip2ImageProcessor")
  inputs = {"image": ((1, 8, 8, 3), "float32")}
  with pytest.raises(errors.InputError, match=r"patch_size = 16.*\[B 8 8 3\]"):
    image_front.image(said, "siglip", inputs)
