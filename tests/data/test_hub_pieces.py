"""SentencePiece models with frames; SigLIP's ids: test_hub_tokenizers.py."""

import io
import json
import pickle

import pytest
import sentencepiece

from mmjax.data import hub_pieces, hub_tokenizers

TEXTS = ["the red cat and the blue dog", "a photo of the old house"] * 5


@pytest.fixture(scope="module")
def model():
  """A model as Gemma's: no space in front, bytes for what it does not know."""
  found = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS),
    model_writer=found,
    vocab_size=330,
    model_type="bpe",
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    normalization_rule_name="identity",
    byte_fallback=True,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    pad_piece="<pad>",
    eos_piece="<eos>",
    bos_piece="<bos>",
    minloglevel=2,
  )
  return found.getvalue()


def folder(tmp_path, model, **config):
  (tmp_path / "tokenizer.model").write_bytes(model)
  config = {"tokenizer_class": "GemmaTokenizer", **config}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  return tmp_path


def test_gemma_is_sentencepiece_with_a_start(model, tmp_path):
  tokenizer = hub_tokenizers.load(folder(tmp_path, model))
  own = sentencepiece.SentencePieceProcessor(model_proto=model)
  assert isinstance(tokenizer, hub_pieces.Pieces)
  assert tokenizer.vocab_size == own.get_piece_size()
  for text in ("the red  cat", " a photo", "猫 é", ""):
    assert tokenizer.encode(text) == own.encode(text)
    assert tokenizer.frame(text).ids == [2, *own.encode(text)]
    assert tokenizer.decode([2, *own.encode(text), 1, 0]) == text
  found = tokenizer.frame("red cat", "dog", 6).ids
  assert len(found) == 6 and found.count(2) == 2
  assert tokenizer.left and tokenizer.token_id("<bos>") == 2
  again = pickle.loads(pickle.dumps(tokenizer))
  assert again.frame("a red cat") == tokenizer.frame("a red cat")


def test_special_tokens_are_cut_out(model, tmp_path):
  config = dict(add_bos_token=False, add_eos_token=True, padding_side="right")
  tokenizer = hub_tokenizers.load(folder(tmp_path, model, **config))
  assert not tokenizer.left
  cat = tokenizer.encode("cat")
  assert tokenizer.encode("cat<eos>cat") == [*cat, 1, *cat]
  assert tokenizer.frame("cat").ids == [*cat, 1]
  assert tokenizer.token_id("<image>") is None


def test_siglip_writes_its_end_once(tmp_path):
  found = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS),
    model_writer=found,
    vocab_size=40,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  family = hub_pieces.FAMILIES["SiglipTokenizer"]
  made = hub_pieces.Pieces(found.getvalue(), family, family.tokens)
  plain = made.encode("the red cat")
  assert made.encode("  The RED, cat!! ") == plain
  assert made.frame("the red cat").ids == [*plain, 1]
  assert made.frame("the red cat </s>").ids == [*plain, 1]
  cased = hub_pieces.Pieces(found.getvalue(), family, family.tokens, False)
  assert cased.encode("THE") != made.encode("THE") == made.encode("the")
