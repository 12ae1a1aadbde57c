"""What the files beside the weights say of inputs; pixels: test_hub_image_ops."""

import dataclasses
import pathlib

import pytest

from mmjax import errors
from mmjax.data import preprocess
from mmjax.weights import files, front_ends
from mmjax.weights.recipe import Recipe

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
  found = front_ends.image(said, model_type)
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
    front_ends.image({**CLIP, **change})


def test_a_crop_without_a_size_is_named():
  with pytest.raises(errors.InputError, match="crop_size = None"):
    front_ends.image(dict(do_center_crop=True), "vit")


def test_a_size_of_two_is_none_for_a_class_that_cuts():
  with pytest.raises(errors.InputError, match="shortest_edge"):
    front_ends.image(dict(size={"height": 3, "width": 4}), "convnext")


def recipe(**fields):
  inputs = {"image": ((1, 8, 6, 3), "float32"), "text": ((1, 9), "int32")}
  return Recipe("x", {}, inputs, [], {}, **fields)


def checkpoint(path, **preprocessor):
  return files.Checkpoint(path, {}, {"model_type": "vit"}, preprocessor)


def test_a_recipe_is_completed(tmp_path):
  found = front_ends.complete(
    recipe(texts={"text": 9}), checkpoint(tmp_path, do_resize=False)
  )
  assert found.preprocess == {
    "image": f"open_rgb|{HALVES}|keep('image')",
    "text": "tokenize_as_trained('text', 'text', length=9)|keep('text')",
  }
  assert found.tokenizers == {"text": {"kind": "hub", "path": str(tmp_path)}}
  assert found.missing == {}


def test_the_size_of_the_vocabulary_is_the_models(tmp_path):
  for model in (dict(vocab_size=5), dict(text=dict(vocab_size=5), image={})):
    given = dataclasses.replace(recipe(texts={"text": 9}), model=model)
    found = front_ends.complete(given, checkpoint(tmp_path))
    assert "length=9, vocab_size=5)" in found.preprocess["text"]


def test_what_is_missing_says_why_and_the_way_out(tmp_path):
  found = front_ends.complete(recipe(), checkpoint(tmp_path, do_solarize=True))
  assert found.preprocess == {}
  assert "do_solarize = True" in found.missing["image"]
  assert "image = float32 [B 8 6 3]" in found.missing["image"]
  assert "no operations that prepare text" in found.missing["text"]
  assert "text = int32 [B 9]" in found.missing["text"]
  found = front_ends.complete(recipe(), checkpoint(tmp_path))
  assert "no preprocessor_config.json" in found.missing["image"]


def test_what_a_table_said_stays():
  given = recipe(
    preprocess={"image": "decode"},
    texts={"text": 9},
    missing={"text": "it is secret."},
  )
  found = front_ends.complete(given, checkpoint(pathlib.Path("model.npz")))
  assert found.preprocess == {"image": "decode"}
  assert found.missing["text"].startswith("preprocess text: it is secret. Or")
