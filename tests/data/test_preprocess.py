import pickle
import re

import numpy as np
import pytest

from mmjax import errors
from mmjax.data import preprocess, tokenizers

TOKENIZERS = {"b": tokenizers.Bytes()}


def run(spec, example, seed=0):
  function = preprocess.parse(spec, TOKENIZERS)
  return function(example, np.random.default_rng(seed))


def example():
  image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
  return {"image": image, "text": "A|b", "label": 3}


def test_operations_run_from_left_to_right():
  found = run(
    " resize((4, 4))\n | lower | tokenize('b', length=5)|keep('text', 'image')",
    example(),
  )
  assert list(found) == ["text", "image"]
  assert found["image"].shape == (4, 4, 3)
  np.testing.assert_array_equal(found["text"], [100, 127, 101, 2, 0])


def test_the_example_is_not_changed():
  before = example()
  run("lower|flip(1.0)|rename('label', to='y')", before)
  assert before["text"] == "A|b" and before["label"] == 3
  np.testing.assert_array_equal(before["image"], example()["image"])


def test_strings_may_hold_the_separator():
  assert run("template('x|{}')", example())["text"] == "x|A|b"


def test_the_empty_spec_changes_nothing():
  before = example()
  assert run("", before) == before


def test_the_same_generator_gives_the_same_result():
  spec = "random_crop(4)|flip|jitter(0.5, 0.5, 0.5)"
  a, b, c = (run(spec, example(), s)["image"] for s in (1, 1, 2))
  np.testing.assert_array_equal(a, b)
  assert not np.array_equal(a, c)


def test_pickle():
  function = preprocess.parse("tokenize('b', length=9)|flip", TOKENIZERS)
  again = pickle.loads(pickle.dumps(function))
  assert again.spec == function.spec
  rng = np.random.default_rng
  a, b = function(example(), rng(0)), again(example(), rng(0))
  np.testing.assert_array_equal(a["text"], b["text"])
  np.testing.assert_array_equal(a["image"], b["image"])


@pytest.mark.parametrize(
  "spec, says",
  [
    ("decod", "position 0.*'decod'.*Did you mean 'decode'"),
    ("decode|resise(3)", "position 7.*Did you mean 'resize'"),
    ("decode|resize(siz=3)", "position 7.*Did you mean 'size'"),
    ("resize", "position 0.*resize\\(size, method\\)"),
    ("resize(1, 'area', 2)", "position 0.*resize\\(size, method\\)"),
    ("resize(0)", "must be positive"),
    ("decode||flip", "cannot be read at position 7"),
    ("decode|flip(", "cannot be read at position 11"),
    ("decode|3", "position 7: 3 is no operation"),
    ("image.tolist()", "is no operation"),
    ("resize(__import__('os').getpid())", "is not a literal"),
    ("resize(2 ** 9)", "is not a literal"),
    ("resize(*[3])", "is not a literal"),
    ("resize(**{'size': 3})", "write the arguments out"),
    ("tokenize('c')", "tokenize name = 'c'.*Known: b"),
    ("tokenize('b', tokenizers={})", "'tokenizers': no such name"),
  ],
)
def test_what_cannot_be_read_says_where_and_why(spec, says):
  with pytest.raises(errors.InputError) as caught:
    preprocess.parse(spec, TOKENIZERS)
  assert re.search(says, str(caught.value)), caught.value


def test_nothing_is_evaluated(tmp_path):
  path = tmp_path / "made"
  with pytest.raises(errors.InputError):
    preprocess.parse(f"resize(open({str(path)!r}, 'w'))")
  assert not path.exists()


def test_a_missing_key_says_what_there_is():
  with pytest.raises(errors.InputError, match=r"'audio'.*'image', 'text'"):
    run("keep('audio')", example())


def test_every_operation_has_a_docstring():
  for name, factory in preprocess.operations().items():
    assert factory.__doc__, name
