import pathlib
import pickle

import pytest
import tokenizers as hf

from mmjax import errors
from mmjax.data import tokenizers

HEAD = pathlib.Path(__file__).parent / "clip_merges_head.txt"
TEXTS = [
  "a red cat",
  "the blue dog",
  "ein roter Hund",
  "赤い猫",
  "old house",
] * 9


def test_bytes_round_trip():
  tokenizer = tokenizers.build("bytes")
  ids = tokenizer.encode("aß猫")
  assert ids == [b + 3 for b in "aß猫".encode()]
  assert tokenizer.decode([1, *ids, 2, 0, 0]) == "aß猫"
  assert max(ids) < tokenizer.vocab_size


def test_sentencepiece_training_is_deterministic(tmp_path):
  a, b = (tokenizers.train(TEXTS, 80) for _ in range(2))
  for name, tokenizer in (("a", a), ("b", b)):
    tokenizer.save(tmp_path / name)
  assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
  loaded = tokenizers.build("sentencepiece", path=str(tmp_path / "a"))
  again = pickle.loads(pickle.dumps(loaded))
  for text in ("the red dog", "赤い cat"):
    assert a.encode(text) == loaded.encode(text) == again.encode(text)
  assert (a.pad_id, a.bos_id, a.eos_id) == (0, 2, 3)
  assert a.vocab_size <= 80


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char", "word"])
def test_sentencepiece_round_trip(model_type):
  tokenizer = tokenizers.build(
    "sentencepiece", texts=iter(TEXTS), vocab_size=80, model_type=model_type
  )
  ids = tokenizer.encode("the blue dog")
  assert all(3 < i < tokenizer.vocab_size for i in ids)
  assert tokenizer.decode([2, *ids, 3, 0]) == "the blue dog"


def test_hf_file(tmp_path):
  words = ["<pad>", "[UNK]", "<s>", "</s>", "red", "cat"]
  pipeline = hf.Tokenizer(
    hf.models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]")
  )
  pipeline.pre_tokenizer = hf.pre_tokenizers.Whitespace()
  pipeline.post_processor = hf.processors.TemplateProcessing(
    single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
  )
  pipeline.enable_padding(length=9)
  pipeline.enable_truncation(1)
  pipeline.save(str(tmp_path / "tokenizer.json"))
  tokenizer = tokenizers.build("hf", path=str(tmp_path / "tokenizer.json"))
  # Neither the file's template nor its padding nor its cutting is used.
  assert tokenizer.encode("red cat blue") == [4, 5, 1]
  assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 2, 3)
  assert tokenizer.decode([2, 4, 5, 3, 0]) == "red cat"
  assert pickle.loads(pickle.dumps(tokenizer)).encode("cat") == [5]
  with pytest.raises(errors.InputError, match="no such token"):
    tokenizers.build("hf", path=str(tmp_path / "tokenizer.json"), eos="<end>")


# Ids of OpenAI's tokenizer with its whole file; the head of the merges gives
# the same ids as long as they lie below the cut (512 + 2,800).
@pytest.mark.parametrize(
  "text, ids",
  [
    ("a photo of a cat", [320, 1125, 539, 320, 2368]),
    ("Hello   World", [3306, 1002]),
    (
      "It's 2 dogs, isn\u2019t it?",
      [585, 568, 273, 3255, 267, 2923, 713, 585, 286],
    ),
    ("red &amp;amp; blue", [736, 261, 1746]),
  ],
)
def test_clip_ids(text, ids):
  tokenizer = tokenizers.build("clip", path=str(HEAD))
  assert tokenizer.encode(text) == ids
  assert pickle.loads(pickle.dumps(tokenizer)).encode(text) == ids


def test_clip_special_tokens():
  tokenizer = tokenizers.build("clip", path=str(HEAD))
  assert tokenizer.vocab_size == 512 + 2800 + 2
  assert tokenizer.bos_id == 512 + 2800
  assert tokenizer.eos_id == tokenizer.pad_id == 512 + 2801
  ids = tokenizer.encode("A red cat, 赤い!")
  assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == (
    "a red cat , 赤い !"
  )


@pytest.mark.parametrize(
  "keywords, says",
  [
    (dict(kind="sentencepeace"), "Did you mean 'sentencepiece'"),
    (dict(kind="sentencepiece"), "path = None"),
    (dict(kind="clip"), "path = None"),
    (dict(kind="hf", path="/nowhere/tokenizer.json"), "/nowhere"),
    (dict(kind="hf", path=str(HEAD)), "cannot be read as kind='hf'"),
    (
      dict(
        kind="sentencepiece", texts=TEXTS, vocab_size=80, model_type="unigra"
      ),
      "Did you mean 'unigram'",
    ),
    (dict(kind="sentencepiece", texts=TEXTS, vocab_size=5), "vocab_size = 5"),
  ],
)
def test_bad_input(keywords, says):
  with pytest.raises(errors.InputError, match=says):
    tokenizers.build(**keywords)
