"""Images of OpenAI's CLIP and open_clip, by torchvision's pixels; texts."""

import json
import pathlib

import numpy as np
import pytest

from mmjax import errors
from mmjax.data import hub_image_ops, preprocess
from mmjax.weights import files, open_clip_front

FRONT = pathlib.Path(__file__).parents[1] / "golden" / "front"
with np.load(FRONT / "open_clip.npz") as file:
  RECORDED = {name: file[name] for name in file.files}
CASES = json.loads(str(RECORDED["cases"]))
MODEL = {"model_cfg": {"vision_cfg": {}, "text_cfg": {}}}


@pytest.fixture(scope="module")
def pictures():
  with np.load(FRONT / "images.npz") as file:
    names = CASES[0]["inputs"]
    found = {name: file[f"input/{name}"] for name in names}
  return {k: v if v.ndim > 1 else v.tobytes() for k, v in found.items()}


def run(spec, image):
  rng = np.random.default_rng(0)
  return preprocess.parse(spec)({"image": image}, rng)["image"]


@pytest.mark.parametrize("i", range(len(CASES)))
def test_equals_the_reference(i, pictures):
  case = CASES[i]
  spec = open_clip_front.image(case["said"], tuple(case["pixels"]))
  for name in case["inputs"]:
    found, want = run(spec, pictures[name]), RECORDED[f"output/{i}/{name}"]
    assert found.shape == want.shape, name
    np.testing.assert_allclose(found, want, atol=1e-6, err_msg=name)


def test_the_hubs_crop_is_another(pictures):
  """Of some picture, or the comparison would not see where the crop lies."""
  spec = open_clip_front.image({}, (11, 11)).replace(", rounded=True", "")
  assert not all(
    np.allclose(run(spec, image), RECORDED[f"output/0/{name}"], atol=1e-6)
    for name, image in pictures.items()
  )


@pytest.mark.parametrize(
  "length, wanted, first",
  [(8, 8, 0), (9, 8, 0), (10, 8, 1), (11, 8, 2), (13, 8, 2), (5, 8, None)],
)
def test_the_middle_is_torchvisions(length, wanted, first):
  rows = np.arange(1, length + 1, dtype=np.uint8)
  image = np.broadcast_to(rows[:, None, None], (length, 3, 3))
  op = hub_image_ops.crop_or_pad((wanted, 3), rounded=True)
  found = op({"image": image}, np.random.default_rng(0))["image"][:, 0, 0]
  want = np.arange(wanted) + 1
  # What is too short gets the odd one of three rows last.
  want = [0, 1, 2, 3, 4, 5, 0, 0] if first is None else want + first
  np.testing.assert_array_equal(found, want)


def fields(config, preprocessor=None, path="x"):
  return open_clip_front.fields(
    files.Checkpoint(pathlib.Path(path), {}, config, preprocessor or {}),
    (6, 6),
    9,
    50,
  )


def test_what_says_how_images_are_prepared():
  plain = fields({})["preprocess"]
  assert plain == {"image": open_clip_front.image({}, (6, 6))}
  said = {"resize_mode": "squash", "mean": [0.5] * 3, "std": None, "size": 9}
  found = fields({**MODEL, "preprocess_cfg": said}, {"size": 3})
  assert found["preprocess"]["image"] == open_clip_front.image(said, (6, 6))
  assert "resize_pillow((6, 6)" in found["preprocess"]["image"]
  # A file of the hub is read by those who read it always.
  for config in ({}, MODEL):
    found = fields(config, {"size": 3})
    assert not {"image"} & {*found["preprocess"], *found["missing"]}
  assert "no preprocess_cfg" in fields(MODEL)["missing"]["image"]
  told = fields({**MODEL, "preprocess_cfg": {"mode": "L"}})
  assert "mode = 'L'" in told["missing"]["image"]


def test_a_file_alone_has_no_texts_and_a_folder_has(tmp_path):
  assert "holds no vocabulary" in fields({})["missing"]["text"]
  found = fields({}, path=tmp_path)
  assert found["tokenizers"] == {"text": dict(kind="hub", path=str(tmp_path))}
  assert found["preprocess"]["text"] == open_clip_front.text({}, 9, 50)


# Of ViT-B-32.json, ViT-B-16-SigLIP.json and ViT-H-14-CLIPA.json.
CLIP: dict = {}
SIGLIP = dict(
  hf_tokenizer_name="timm/ViT-B-16-SigLIP",
  tokenizer_kwargs=dict(clean="canonicalize"),
)
CLIPA = dict(
  hf_tokenizer_name="bert-base-uncased",
  tokenizer_kwargs=dict(strip_sep_token=True),
)
TOKENIZED = "tokenize_as_trained('text', 'text', length=9, "


@pytest.mark.parametrize(
  "said, want",
  [
    (CLIP, "single_spaces('text')|lower('text')|{}pad=0, vocab_size=50)"),
    (SIGLIP, "canonicalise('text')|{}vocab_size=50)"),
    (CLIPA, "single_spaces('text')|{}vocab_size=50, end=False)"),
  ],
)
def test_texts_of_published_configs(said, want):
  found = open_clip_front.text(said, 9, 50)
  assert found == want.format(TOKENIZED) + "|keep('text')"


@pytest.mark.parametrize(
  "said, says",
  [
    (dict(tokenizer_mode="clips"), "tokenizer_mode = 'clips'"),
    (dict(tokenizer_kwargs=dict(clean="none")), "clean = 'none'"),
    (dict(tokenizer_kwargs=dict(language="en")), "language = 'en'"),
    (dict(tokenizer_kwargs=dict(strip_sep_token=True)), "strip_sep_token"),
  ],
)
def test_texts_that_are_not_followed_are_named(said, says):
  with pytest.raises(errors.InputError, match=says):
    open_clip_front.text(said, 9)


@pytest.mark.parametrize(
  "said, pixels, says",
  [
    ({"resize": "squash"}, (6, 6), "'resize'.*resize_mode"),
    ({"resize_mode": "longest"}, (6, 6), "resize_mode = 'longest'"),
    ({"interpolation": "nearest"}, (6, 6), "interpolation = 'nearest'"),
    ({}, (6, 7), "images of 6 x 7"),
  ],
)
def test_what_is_not_followed_is_named(said, pixels, says):
  with pytest.raises(errors.InputError, match=says):
    open_clip_front.image(said, pixels)
