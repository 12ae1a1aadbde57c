"""Vocabularies and merges from the files that hold them alone."""

import importlib.util
import io
import json
import pathlib

import sentencepiece
from google.protobuf import descriptor_pb2

from mmjax.data import hub_vocabularies

_spec = importlib.util.spec_from_file_location(
  "hub_folders", pathlib.Path(__file__).with_name("hub_folders.py")
)
folders = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(folders)


def test_merges_make_words():
  tokens = ["c", "a", "t", "t</w>", "ca", "cat</w>", "#", "?"]
  vocab = json.dumps({t: i for i, t in enumerate(tokens)}).encode()
  made = hub_vocabularies.clip_model(
    vocab, b"#version: 0.2\nc a\nca t</w>\n", dict(unk="?"), {}
  )
  assert made.encode("cat").ids == [5]
  assert made.encode("ca#x").ids == [4, 6, 7]
  # A file without a head, whose first merge begins with its sign.
  vocab = json.dumps({"#": 0, "a": 1, "#a": 2}).encode()
  made = hub_vocabularies.byte_model(vocab, b"# a", {}, {})
  assert made.encode("#a").ids == [2]


def test_lines_of_a_wordpiece_file_may_hold_odd_signs():
  vocab = "[UNK]\na\n\u2028\n##b\n\x85\r\nc".encode()
  made = hub_vocabularies.wordpiece_model(vocab, dict(unk="[UNK]"), {})
  assert made.get_vocab() == {
    "[UNK]": 0,
    "a": 1,
    "\u2028": 2,
    "##b": 3,
    "\x85": 4,
    "c": 5,
  }
  assert made.encode("ab").ids == [1, 3]


def test_t5_has_its_sentinels_last_and_cleans_text(tmp_path):
  folders.write("t5_pieces", tmp_path)
  model = (tmp_path / "spiece.model").read_bytes()
  made = hub_vocabularies.t5_model(model, {}, dict(extra_ids=3))
  pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
  size = pieces.get_piece_size()
  assert made.get_vocab_size() == size + 3
  assert made.token_to_id("<extra_id_0>") == size + 2
  # SentencePiece's own clean-up, but for its spaces.
  for text in ("ﬁne", "\uff46\uff55\uff4c\uff4c", "½", "Ⅳ", "é"):
    assert made.normalizer.normalize_str(text) == pieces.normalize(text)[1:]


def test_a_model_may_have_no_clean_up():
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["a b c"] * 3),
    model_writer=model,
    vocab_size=7,
    normalization_rule_name="identity",
    minloglevel=2,
  )
  made = hub_vocabularies.t5_model(model.getvalue(), {}, {})
  assert made.normalizer is None
  assert made.get_vocab_size() == 107


def test_fields_of_a_message_are_found_behind_those_of_every_kind():
  # A number below 0 takes ten bytes; so does a length above 127 more than one.
  field = descriptor_pb2.FieldDescriptorProto
  message = field(name="x" * 300, number=-1, label=1, default_value="here")
  data = message.SerializeToString()
  assert hub_vocabularies.field(data, 1) == b"x" * 300
  assert hub_vocabularies.field(data, 7) == b"here"
  assert hub_vocabularies.field(data, 2) == b""
  wide = b"\x09" + b"\0" * 8 + b"\x15" + b"\0" * 4 + b"\x1a\x01!"
  assert hub_vocabularies.field(wide, 3) == b"!"
