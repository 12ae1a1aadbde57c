"""Examples become batches, however they are given."""

import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from mmjax import errors
from mmjax.data import tokenizers
from mmjax.data.examples import Preprocess

PLAIN = Preprocess(
  {
    "image": "open_rgb|crop_or_pad(4)|keep('image')",
    "text": "tokenize('b', length=5)|keep('text')",
  },
  {"b": tokenizers.Bytes()},
)
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
WANT = PIXELS.astype(np.float32) / 127.5 - 1


def png():
  file = io.BytesIO()
  Image.fromarray(PIXELS).save(file, "PNG")
  return file.getvalue()


def test_one_example_stands_alone_or_in_a_list(tmp_path):
  path = tmp_path / "it.png"
  path.write_bytes(png())
  forms = [path, str(path), png(), PIXELS, Image.fromarray(PIXELS)]
  for form in forms:
    np.testing.assert_allclose(PLAIN(image=form)["image"], WANT[None])
  batch = PLAIN(image=forms, text=["ab", "c"])
  assert batch["image"].dtype == np.float32 and batch["text"].dtype == np.int32
  np.testing.assert_allclose(batch["image"], np.stack([WANT] * 5))
  np.testing.assert_array_equal(batch["text"][0], [100, 101, 2, 0, 0])
  np.testing.assert_array_equal(PLAIN(text="c")["text"], batch["text"][1:])
  stacked = PLAIN(image=np.stack([PIXELS, PIXELS]))["image"]
  np.testing.assert_allclose(stacked, np.stack([WANT, WANT]))


def test_pillow_images_are_for_every_spec():
  made = Preprocess({"image": "decode|keep('image')"}, {})
  found = made(image=Image.fromarray(PIXELS))["image"]
  np.testing.assert_allclose(found, WANT[None])


def test_a_spec_may_give_more_than_its_key():
  spec = "rename('image', to='x')|keep('x')"
  made = Preprocess({"image": spec}, {})
  assert list(made(image=PIXELS)) == ["x"]


def test_mistakes():
  with pytest.raises(errors.InputError, match="Did you mean 'image'"):
    PLAIN(images=PIXELS)
  with pytest.raises(errors.InputError, match=r"no\.png.*no such file"):
    PLAIN(image=pathlib.Path("no.png"))
  with pytest.raises(errors.InputError, match="there are none"):
    PLAIN(text=[])
  small = Preprocess({"image": "decode"}, {})
  with pytest.raises(errors.InputError, match="differ in size"):
    small(image=[PIXELS, PIXELS[:3]])


def test_a_tokenizer_that_cannot_be_made_takes_its_key_with_it(tmp_path):
  made = Preprocess.build(
    {
      "image": "decode",
      "text": "tokenize_as_trained('text', length=3)",
      "other": "tokenize('other', 'other', length=3)",
    },
    {
      "text": {"kind": "hub", "path": str(tmp_path)},
      "other": {"kind": "bytes"},
    },
    {"audio": "there is no sound"},
  )
  assert made(other="")["other"].tolist() == [[2, 0, 0]]
  with pytest.raises(errors.InputError, match="no tokenizer in it"):
    made(text="a")
  with pytest.raises(errors.InputError, match="there is no sound"):
    made(audio=[])


def test_ids_become_texts():
  rows = np.array([[1, 100, 101, 2, 0], [1, 103, 2, 0, 0]])
  assert PLAIN.texts(rows) == ["ab", "d"]
  assert PLAIN.texts(rows, "b") == ["ab", "d"]
  with pytest.raises(errors.InputError, match=r"key = 'c'.*are b"):
    PLAIN.texts(rows, "c")
  without = Preprocess({}, {}, {"text": "fetch tokenizer.json"})
  with pytest.raises(errors.InputError, match=r"are none; fetch tokenizer"):
    without.texts(rows)


def test_a_sound_alone_is_a_list_of_one():
  made = Preprocess({"audio": "decode_audio(8)|keep('audio')"}, {})
  sound = np.linspace(-1, 1, 9, dtype=np.float32)
  np.testing.assert_array_equal(made(audio=sound)["audio"], sound[None])
  two = made(audio=[sound, sound])["audio"]
  np.testing.assert_array_equal(two, np.stack([sound, sound]))
