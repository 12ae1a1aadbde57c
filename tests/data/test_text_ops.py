import collections

import numpy as np
import pytest

from mmjax import errors
from mmjax.data import framing, text_ops, tokenizers


def run(op, example, seed=0):
  return op(example, np.random.default_rng(seed))


BYTES = {"b": tokenizers.Bytes()}
TAGS = {"name": "cat", "tags": ["pet", "fur", "paw"]}


def test_tokenize_pads_and_cuts():
  op = text_ops.tokenize("b", length=6, bos=True, tokenizers=BYTES)
  ids = run(op, {"text": "ab"})["text"]
  assert ids.dtype == np.int32
  np.testing.assert_array_equal(ids, [1, 100, 101, 2, 0, 0])
  ids = run(op, {"text": "abcdefgh"})["text"]
  np.testing.assert_array_equal(ids, [1, 100, 101, 102, 103, 2])


def test_tokenize_several_texts():
  op = text_ops.tokenize("b", "texts", 3, eos=False, to="ids", tokenizers=BYTES)
  found = run(op, {"texts": ["a", "bcd!"]})
  np.testing.assert_array_equal(found["ids"], [[100, 0, 0], [101, 102, 103]])
  assert found["texts"] == ["a", "bcd!"]
  assert run(op, {"texts": []})["ids"].shape == (0, 3)


def test_tokenize_names_the_nearest_tokenizer():
  with pytest.raises(errors.InputError, match="Did you mean 'emoji'"):
    text_ops.tokenize("emojis", tokenizers={"emoji": tokenizers.Bytes()})


def test_tokenize_needs_room():
  with pytest.raises(ValueError, match="room"):
    text_ops.tokenize("b", length=1, tokenizers=BYTES)


def test_choose_is_uniform():
  op = text_ops.choose()
  rng = np.random.default_rng(0)
  counts = collections.Counter(
    op({"texts": ["a", "b", "c"]}, rng)["text"] for _ in range(3000)
  )
  assert set(counts) == {"a", "b", "c"}
  assert all(900 < n < 1100 for n in counts.values())


def test_sample_tags_keeps_each_with_probability_p():
  op = text_ops.sample_tags(0.25)
  rng = np.random.default_rng(0)
  counts, orders = collections.Counter(), set()
  for _ in range(4000):
    name, _, tags = op(TAGS, rng)["text"].partition(": ")
    assert name == "cat"
    counts.update(tags.split(", ") if tags else [])
    orders.add(tags)
  assert all(900 < counts[t] < 1100 for t in TAGS["tags"])
  assert len(orders) == 1 + 3 + 6 + 6  # every order of every subset


def test_sample_tags_can_leave_the_name_out():
  op = text_ops.sample_tags(1.0, name=0.0, shuffle=False)
  assert run(op, TAGS)["text"] == "pet, fur, paw"
  assert run(op, {"name": "cat", "tags": []})["text"] == "cat"


def test_template():
  op = text_ops.template("a {}.", "the {}!", key="texts")
  found = {run(op, {"texts": ["x"]}, s)["texts"][0] for s in range(20)}
  assert found == {"a x.", "the x!"}
  with pytest.raises(ValueError, match="hold one"):
    text_ops.template("a cat")


def test_lower_and_canonicalise():
  assert run(text_ops.lower(), {"text": "Ab-C"})["text"] == "ab-c"
  op = text_ops.canonicalise()
  assert run(op, {"text": " A_b,  c's\tÜ! "})["text"] == "a b cs ü"


class Framed:
  """Pads on the left, as decoders do; frames a text by 1 and 2."""

  pad_id, eos_id, left = 0, 2, True

  def frame(self, text, pair=None, length=None):
    ids = [1, *map(int, text), *map(int, pair or ""), 2]
    types = [0] * (1 + len(text)) + [1] * (1 + len(pair or ""))
    return framing.Framed(ids[:length], types[:length])


def test_tokenize_as_trained_pads_where_the_tokenizer_does():
  op = text_ops.tokenize_as_trained(
    "f", length=6, types="types", mask="mask", tokenizers={"f": Framed()}
  )
  found = run(op, {"text": "78"})
  np.testing.assert_array_equal(found["text"], [0, 0, 1, 7, 8, 2])
  np.testing.assert_array_equal(found["types"], [0, 0, 0, 0, 0, 1])
  np.testing.assert_array_equal(found["mask"], [0, 0, 1, 1, 1, 1])
  assert found["text"].dtype == np.int32
  op = text_ops.tokenize_as_trained(
    "f", "texts", 6, "pair", "ids", pad=9, tokenizers={"f": Framed()}
  )
  found = run(op, {"texts": ["78", "7"], "pair": ["5", "6"]})
  want = [[9, 1, 7, 8, 5, 2], [9, 9, 1, 7, 6, 2]]
  np.testing.assert_array_equal(found["ids"], want)
  assert run(op, {"texts": [], "pair": []})["ids"].shape == (0, 6)


def test_tokenize_as_trained_may_leave_out_the_end():
  op = text_ops.tokenize_as_trained(
    "f", length=6, end=False, pad=9, mask="mask", tokenizers={"f": Framed()}
  )
  found = run(op, {"text": "78"})
  np.testing.assert_array_equal(found["text"], [9, 9, 1, 7, 8, 9])
  np.testing.assert_array_equal(found["mask"], [0, 0, 1, 1, 1, 1])


def test_single_spaces():
  found = run(text_ops.single_spaces(), {"text": " A\tred\n  cat "})
  assert found["text"] == "A red cat"


def test_tokenize_as_trained_knows_what_the_model_does_not():
  op = text_ops.tokenize_as_trained(
    "f", length=6, vocab_size=8, tokenizers={"f": Framed()}
  )
  assert run(op, {"text": "7"})["text"].max() == 7
  with pytest.raises(errors.InputError, match="id 8, and the model has 8"):
    run(op, {"text": "8"})


def test_tokenize_as_trained_needs_a_frame_padding_and_room():
  both = {"f": Framed(), "b": tokenizers.Bytes()}
  with pytest.raises(ValueError, match="not of kind 'hub'"):
    text_ops.tokenize_as_trained("b", tokenizers=both)
  with pytest.raises(ValueError, match="room"):
    text_ops.tokenize_as_trained("f", length=2, tokenizers=both)
  both["f"].pad_id = None
  with pytest.raises(ValueError, match="give pad"):
    text_ops.tokenize_as_trained("f", tokenizers=both)
  with pytest.raises(errors.InputError, match="Known: b, f"):
    text_ops.tokenize_as_trained("g", tokenizers=both)
