"""PaliGemma's prompts, against its processor's recorded batches."""

import json
import pathlib

import numpy as np
import pytest

from mmjax import errors
from mmjax.data import preprocess, tokenizers
from mmjax.data.examples import Preprocess

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "front" / "prompts.npz"
with np.load(GOLDEN) as file:
  RECORDED = {name: file[name] for name in file.files}
CASES = json.loads(str(RECORDED["cases"]))
PROMPTS = json.loads(str(RECORDED["prompts"]))
SUFFIXES = json.loads(str(RECORDED["suffixes"]))


def write(case, folder):
  for name, number in CASES[case]["files"].items():
    (folder / name).write_bytes(RECORDED[f"file/{number}"].tobytes())
  return str(folder)


@pytest.fixture(params=CASES)
def case(request, tmp_path):
  write(request.param, tmp_path)
  return request.param, tokenizers.build("hub", path=str(tmp_path))


def prepared(tokenizer, more="", **examples):
  spec = f"prompt_as_trained('t', 'tokens', labels='labels'{more})"
  function = Preprocess(
    {"tokens": spec}, {"t": tokenizer}, beside={"suffix": "tokens"}
  )
  return function(**examples)


def without_image(case, kind):
  """Returns the reference's fields without the image's places, and padding.

  A row is [padding] [image] text [padding] there, and [padding] text
  [padding] here.
  """
  said = CASES[case]
  prefix = f"output/{case}/{kind}/"
  found = {
    name.removeprefix(prefix): value
    for name, value in RECORDED.items()
    if name.startswith(prefix)
  }
  text = found["input_ids"] != said["image"]
  assert (text.sum(1) == text.shape[1] - said["places"]).all()
  shape = (len(text), -1)
  return {name: value[text].reshape(shape) for name, value in found.items()}


def test_equals_the_reference(case):
  name, tokenizer = case
  for kind, suffix in (("with", SUFFIXES), ("without", None)):
    want = without_image(name, kind)
    found = prepared(tokenizer, tokens=PROMPTS, suffix=suffix)
    np.testing.assert_array_equal(found["tokens"], want["input_ids"])
    np.testing.assert_array_equal(found["mask"], want["attention_mask"])
    np.testing.assert_array_equal(found["labels"], want["labels"])
    if suffix is None:
      assert "suffix" not in found and not want["token_type_ids"].any()
    else:
      np.testing.assert_array_equal(found["suffix"], want["token_type_ids"])
    assert not (found["mask"].all() or found["mask"].all(1).sum() == 0)
    side = 0 if name.endswith("right") else -1
    assert found["mask"][:, side].all()
    assert all(value.dtype == np.int32 for value in found.values())


def test_a_length_pads_or_cuts(case):
  _, tokenizer = case
  full = prepared(tokenizer, tokens=PROMPTS[0], suffix=SUFFIXES[0])
  n = full["tokens"].shape[1]
  cut = prepared(
    tokenizer, f", length={n - 2}", tokens=PROMPTS[0], suffix=SUFFIXES[0]
  )
  padded = prepared(
    tokenizer,
    f", length={n + 3}, left=True",
    tokens=PROMPTS[0],
    suffix=SUFFIXES[0],
  )
  for name, value in full.items():
    np.testing.assert_array_equal(cut[name], value[:, :-2])
    np.testing.assert_array_equal(padded[name][:, 3:], value)
  assert padded["mask"][:, :3].sum() == 0
  assert (padded["labels"][:, :3] == -100).all()


@pytest.mark.parametrize(
  "given, says",
  [
    (dict(tokens=["a <image> b"]), "tokens = ' ?a <image> b.*take it out"),
    (dict(tokens=["<image><image>a"]), "may only begin a prompt, once"),
    (dict(tokens=["a"], suffix=["<image>"]), "suffix = '<image>'"),
    (dict(tokens=[3]), "tokens = 3: must be a str"),
    (dict(tokens=["a"], suffix=[None]), "suffix = None: must be a str"),
    (dict(tokens=["<loc0777>"]), "has no <loc0777>"),
    (dict(tokens=["a"], suffix=["b", "c"]), "suffix: 2 of them for 1 of tok"),
    (dict(suffix=["b"]), "suffix: goes with tokens"),
  ],
)
def test_bad_texts_are_named(given, says, tmp_path):
  tokenizer = tokenizers.build("hub", path=write("json", tmp_path))
  with pytest.raises(errors.InputError, match=says):
    prepared(tokenizer, **given)


def test_a_tokenizer_of_another_model_is_named(tmp_path):
  tokenizer = tokenizers.build("hub", path=write("json", tmp_path))
  with pytest.raises(errors.InputError, match=r"the model has 9 tokens"):
    prepared(tokenizer, ", vocab_size=9", tokens="a photo")
  with pytest.raises(errors.InputError, match=r"length 2 leaves no room"):
    prepared(tokenizer, ", length=2", tokens="a photo")
  with pytest.raises(errors.InputError, match=r"not of kind 'hub'"):
    prepared(tokenizers.Bytes(), tokens="a photo")
  with pytest.raises(errors.InputError, match="name = 'p'"):
    preprocess.parse("prompt_as_trained('p')", {"pp": tokenizer})
