"""Tokenizers behind one face: text to ids and back.

Every tokenizer has `encode(text) -> list[int]` (no start, end or padding
tokens), `decode(ids) -> str` (drops these), `vocab_size`, `pad_id`, `bos_id`,
`eos_id` (None where there is none), and can be pickled.
"""

import gzip
import html
import io
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import sentencepiece
import tokenizers as hf

from mmjax import errors
from mmjax.data import hub_tokenizers

KINDS = ("sentencepiece", "hf", "hub", "clip", "bytes")

_QUOTES = str.maketrans(
  dict.fromkeys(map(chr, range(0x2018, 0x201C)), "'")
  | dict.fromkeys(map(chr, range(0x201C, 0x2020)), '"')
)

_STARTS = ("<s>", "[CLS]", "<|startoftext|>", "<bos>", "<|endoftext|>")
_ENDS = ("</s>", "[SEP]", "<|endoftext|>", "<eos>", "<|im_end|>")
_PADS = ("<pad>", "[PAD]", "<|pad|>")


class Tokenizer(Protocol):
  """What all of them have; see the head of this file."""

  @property
  def vocab_size(self) -> int: ...

  @property
  def pad_id(self) -> int | None: ...

  @property
  def bos_id(self) -> int | None: ...

  @property
  def eos_id(self) -> int | None: ...

  def encode(self, text: str) -> list[int]: ...

  def decode(self, ids: Sequence[int]) -> str: ...


class Bytes:
  """The bytes of UTF-8, after padding, start and end: 259 tokens."""

  vocab_size = 259
  pad_id, bos_id, eos_id = 0, 1, 2

  def encode(self, text: str) -> list[int]:
    """Returns the bytes, each plus 3."""
    return [byte + 3 for byte in text.encode()]

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text; bytes that are no UTF-8 become U+FFFD."""
    found = bytes(i - 3 for i in map(int, ids) if i >= 3)
    return found.decode(errors="replace")


class SentencePiece:
  """A SentencePiece model (Kudo and Richardson, 2018), held as its bytes."""

  def __init__(self, model: bytes):
    self._model = model
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    self.vocab_size = self._processor.get_piece_size()
    self.pad_id = _id(self._processor.pad_id())
    self.bos_id = _id(self._processor.bos_id())
    self.eos_id = _id(self._processor.eos_id())

  def encode(self, text: str) -> list[int]:
    """Returns the ids of the pieces."""
    return self._processor.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text, without start, end and padding."""
    special = {self.pad_id, self.bos_id, self.eos_id}
    return self._processor.decode(
      [i for i in map(int, ids) if i not in special]
    )

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes the model file, which `build(path=...)` reads."""
    pathlib.Path(path).write_bytes(self._model)

  def __reduce__(self):
    return SentencePiece, (self._model,)


class HuggingFace:
  """A `tokenizers` pipeline: a `tokenizer.json`, or CLIP's."""

  def __init__(
    self,
    pipeline: hf.Tokenizer,
    pad: str | None = None,
    bos: str | None = None,
    eos: str | None = None,
    unescape: bool = False,
  ):
    self._pipeline = pipeline
    self._unescape = unescape
    pipeline.no_padding()
    pipeline.no_truncation()
    self.vocab_size = pipeline.get_vocab_size()
    self.pad_id = self._find("pad", pad, _PADS)
    self.bos_id = self._find("bos", bos, _STARTS)
    self.eos_id = self._find("eos", eos, _ENDS)

  def _find(self, role, given, usual):
    if given is not None and self._pipeline.token_to_id(given) is None:
      raise errors.InputError(
        f"tokenizer.{role} = {given!r}: the tokenizer has no such token; "
        "name one of its special tokens."
      )
    names = (given,) if given is not None else usual
    ids = (self._pipeline.token_to_id(name) for name in names)
    return next((i for i in ids if i is not None), None)

  def encode(self, text: str) -> list[int]:
    """Returns the ids, without what a template of the file would add."""
    if self._unescape:  # twice, as CLIP does, for text that was escaped twice
      text = html.unescape(html.unescape(text)).translate(_QUOTES)
    return self._pipeline.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text, without special tokens."""
    special = {self.pad_id, self.bos_id, self.eos_id}
    kept = [i for i in map(int, ids) if i not in special]
    return self._pipeline.decode(kept).strip()


def build(
  kind: str,
  *,
  path: str | None = None,
  texts: Iterable[str] | None = None,
  vocab_size: int | None = None,
  model_type: str = "unigram",
  pad: str | None = None,
  bos: str | None = None,
  eos: str | None = None,
) -> Tokenizer:
  """Builds a tokenizer.

  Args:
    kind: "sentencepiece" (loaded from `path`, or trained on `texts`), "hf" (a
      `tokenizer.json` at `path`), "hub" (a folder of the model hub at `path`,
      see `hub_tokenizers.py`), "clip" (the merges file of CLIP,
      `bpe_simple_vocab_16e6.txt.gz`, at `path`) or "bytes".
    path: of the file.
    texts: to train on.
    vocab_size: of the trained model; fewer texts may give fewer pieces.
    model_type: of the trained model: "unigram", "bpe", "char" or "word".
    pad, bos, eos: names of the special tokens of an "hf" file; None looks for
      the usual ones.

  Raises:
    InputError: unknown kind, missing argument, or a file that cannot be read.
  """
  if kind not in KINDS:
    raise errors.unknown("tokenizer.kind", kind, KINDS)
  if kind == "bytes":
    return Bytes()
  if kind == "sentencepiece" and path is None:
    if texts is None or vocab_size is None:
      raise errors.InputError(
        "tokenizer.path = None: a sentencepiece model is loaded from path, or "
        "trained on a source's texts with vocab_size; give one or the other."
      )
    return train(texts, vocab_size, model_type)
  if path is None:
    raise errors.InputError(
      f"tokenizer.path = None: kind={kind!r} is loaded from a file; give it."
    )
  if kind == "hub":
    return hub_tokenizers.load(path)
  try:
    data = pathlib.Path(path).read_bytes()
    if kind == "sentencepiece":
      return SentencePiece(data)
    if kind == "clip":
      return clip(data)
    return HuggingFace(hf.Tokenizer.from_str(data.decode()), pad, bos, eos)
  except errors.InputError:
    raise
  except Exception as error:  # each library raises what it likes
    raise errors.InputError(
      f"tokenizer.path = {path!r}: cannot be read as kind={kind!r} ({error}); "
      "give the path of such a file."
    ) from error


def train(
  texts: Iterable[str], vocab_size: int, model_type: str = "unigram"
) -> SentencePiece:
  """Trains a SentencePiece model; the same texts give the same model.

  Every character of the texts gets a piece. Ids 0 to 3 are padding, unknown,
  start and end.

  Raises:
    InputError: unknown `model_type`, or too small a `vocab_size`.
  """
  types = ("unigram", "bpe", "char", "word")
  if model_type not in types:
    raise errors.unknown("tokenizer.model_type", model_type, types)
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
      model_writer=model,
      vocab_size=vocab_size,
      model_type=model_type,
      hard_vocab_limit=False,
      character_coverage=1.0,
      num_threads=1,  # more would make the result depend on the machine
      shuffle_input_sentence=False,
      pad_id=0,
      unk_id=1,
      bos_id=2,
      eos_id=3,
      minloglevel=2,
    )
  except (RuntimeError, OSError) as error:
    raise errors.InputError(
      f"tokenizer.vocab_size = {vocab_size}: SentencePiece cannot train a "
      f"{model_type} model of that size on these texts ({error}); change it."
    ) from error
  return SentencePiece(model.getvalue())


def clip(merges_file: bytes) -> HuggingFace:
  """Makes CLIP's byte-pair encoding (Radford et al., 2021) from its merges.

  Lower case, white space is one space, quotes are straight, HTML entities are
  resolved. CLIP also repairs broken encodings (ftfy), left to the data. With
  OpenAI's file there are 49,408 tokens; the last two are start and end.

  Args:
    merges_file: content of `bpe_simple_vocab_16e6.txt.gz`, or unpacked.
  """
  if merges_file[:2] == b"\x1f\x8b":
    merges_file = gzip.decompress(merges_file)
  lines = merges_file.decode().split("\n")[1 : 49152 - 256 - 2 + 1]
  merges = [tuple(line.split()) for line in lines if line]
  # The order of the 256 bytes: printable ones first, as GPT-2 lists them.
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in printable]
  letters = [chr(b) for b in printable]
  letters += [chr(256 + n) for n in range(len(others))]
  tokens = letters + [letter + "</w>" for letter in letters]
  tokens += ["".join(pair) for pair in merges]
  start, end = "<|startoftext|>", "<|endoftext|>"
  tokens += [start, end]
  pipeline = hf.Tokenizer(
    hf.models.BPE(
      vocab={token: i for i, token in enumerate(tokens)},
      merges=merges,
      unk_token=end,
      end_of_word_suffix="</w>",
    )
  )
  words = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
  )
  pipeline.normalizer = hf.normalizers.Sequence(
    [hf.normalizers.Replace(hf.Regex(r"\s+"), " "), hf.normalizers.Lowercase()]
  )
  pipeline.pre_tokenizer = hf.pre_tokenizers.Sequence(
    [
      hf.pre_tokenizers.Split(hf.Regex(words), "removed", invert=True),
      hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  pipeline.decoder = hf.decoders.Sequence(
    [
      hf.decoders.ByteLevel(),
      hf.decoders.Replace("</w>", " "),
    ]
  )
  pipeline.add_special_tokens([start, end])
  return HuggingFace(pipeline, end, start, end, unescape=True)


def _id(value: Any) -> int | None:
  return None if value < 0 else int(value)
