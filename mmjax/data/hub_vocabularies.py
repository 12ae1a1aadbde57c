"""What the model hub's tokenizers know, from the files that hold it alone.

Each function makes a pipeline of a family's files, its special tokens by role
and tokenizer_config.json; `hub_pipelines` says how texts go through it.
"""

import json
from collections.abc import Mapping
from typing import Any

import sentencepiece
import tokenizers as hf
from tokenizers import models, normalizers

Tokens = Mapping[str, str]
Config = Mapping[str, Any]


def clip_model(
  vocab: bytes, merges: bytes, tokens: Tokens, config: Config
) -> hf.Tokenizer:
  """Makes CLIP's pairs of bytes, whose words have an end."""
  return hf.Tokenizer(
    models.BPE(
      vocab=json.loads(vocab),
      merges=_merges(merges),
      end_of_word_suffix="</w>",
      unk_token=tokens["unk"],
    )
  )


def byte_model(
  vocab: bytes, merges: bytes, tokens: Tokens, config: Config
) -> hf.Tokenizer:
  """Makes GPT-2's pairs of bytes, of vocab.json and merges.txt."""
  return hf.Tokenizer(
    models.BPE(vocab=json.loads(vocab), merges=_merges(merges))
  )


def _merges(file: bytes) -> list[tuple[str, str]]:
  lines = file.decode().split("\n")
  if lines[0].startswith("#version"):
    lines = lines[1:]
  halves = (line.split(" ") for line in lines if line)
  return [(left, right) for left, right in halves]


def wordpiece_model(
  vocab: bytes, tokens: Tokens, config: Config
) -> hf.Tokenizer:
  """Makes BERT's WordPiece, of vocab.txt."""
  # Not splitlines: there are tokens that it takes for ends of lines.
  lines = vocab.decode().removesuffix("\n").split("\n")
  ids = {line.rstrip("\r"): i for i, line in enumerate(lines)}
  return hf.Tokenizer(models.WordPiece(ids, unk_token=tokens["unk"]))


def t5_model(model: bytes, tokens: Tokens, config: Config) -> hf.Tokenizer:
  """Makes T5's Unigram and its cleaning, of spiece.model."""
  pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
  vocab = [
    (pieces.id_to_piece(i), pieces.get_score(i))
    for i in range(pieces.get_piece_size())
  ]
  extra = config.get("extra_ids", 100)
  names = [f"<extra_id_{i}>" for i in reversed(range(extra))]
  vocab += [(name, 0.0) for name in names]
  unk = pieces.unk_id()
  pipeline = hf.Tokenizer(models.Unigram(vocab, unk, byte_fallback=False))
  charsmap = field(field(model, 3), 2)  # normalizer_spec, precompiled_charsmap
  if charsmap:
    pipeline.normalizer = normalizers.Precompiled(charsmap)
  pipeline.add_special_tokens(names)
  return pipeline


def field(message: bytes, wanted: int) -> bytes:
  """Returns the bytes of a field of a protocol buffer, b"" if it has none."""
  at = 0

  def number() -> int:
    nonlocal at
    value, shift = 0, 0
    while True:
      byte = message[at]
      at += 1
      value |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        return value

  while at < len(message):
    name, kind = divmod(number(), 8)
    if kind == 0:  # a number
      number()
      continue
    # 8 bytes, a length and that many, or 4 bytes.
    size = {1: 8, 5: 4}.get(kind) or number()
    if kind == 2 and name == wanted:
      return message[at : at + size]
    at += size
  return b""
