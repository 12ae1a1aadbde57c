"""SentencePiece models as the model hub's SigLIP and Gemma use them.

Special tokens are cut out of a text first; what stands between them is cleaned
as the class does, and encoded by the model.
"""

import pathlib
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sentencepiece

from mmjax import errors
from mmjax.data.framing import Framed, cut

SPACE = "\u2581"  # SentencePiece's sign for a space
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Family(NamedTuple):
  """A class of tokenizers.

  Attributes:
    tokens: its special tokens by role.
    bos, eos: each text gets a token before, after it, unless
      tokenizer_config.json says otherwise.
    left: it pads on the left.
    files: names that its model may have.
    canonical: texts lose case, punctuation and double spaces, as in SigLIP.
  """

  tokens: Mapping[str, str]
  bos: bool = False
  eos: bool = True
  left: bool = False
  files: Sequence[str] = ("spiece.model",)
  canonical: bool = False


FAMILIES = {
  "GemmaTokenizer": Family(
    dict(bos="<bos>", eos="<eos>", unk="<unk>", pad="<pad>", mask="<mask>"),
    bos=True,
    eos=False,
    left=True,
    files=("tokenizer.model",),
  ),
  "SiglipTokenizer": Family(
    dict(eos="</s>", unk="<unk>", pad="</s>"), canonical=True
  ),
}


class Pieces:
  """A SentencePiece model with a frame; see `hub_tokenizers.load`.

  Attributes:
    vocab_size: number of pieces.
    pad_id, bos_id, eos_id: None where there is none.
    left: it pads on the left.
  """

  def __init__(
    self,
    model: bytes,
    family: Family,
    tokens: Mapping[str, str],
    lower: bool = True,
  ):
    self._model = model
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    self._family, self._tokens, self._lower = family, dict(tokens), lower
    self.left = family.left
    self.vocab_size = self._processor.get_piece_size()
    self._special: dict[str, int] = {}
    for role, token in tokens.items():
      found = self._processor.piece_to_id(token)
      if found != self._processor.unk_id() or role == "unk":
        self._special[token] = found
    longest_first = sorted(self._special, key=len, reverse=True)
    self._cuts = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
    ids = {role: self._special.get(token) for role, token in tokens.items()}
    self.pad_id, self.bos_id = ids.get("pad"), ids.get("bos")
    self.eos_id = ids.get("eos")
    # What stands in front of a text so that its first space is kept.
    self._guard = self._processor.encode(tokens["unk"])

  def __reduce__(self):
    return Pieces, (self._model, self._family, self._tokens, self._lower)

  def token_id(self, token: str) -> int | None:
    """Returns the id of a token, such as "<image>", or None."""
    if token in self._special:
      return self._special[token]
    found = self._processor.piece_to_id(token)
    return None if found == self._processor.unk_id() else found

  def encode(self, text: str) -> list[int]:
    """Returns the ids of the text alone."""
    if self._family.canonical:
      return self._canonical(text)
    ids = []
    for part in self._cuts.split(text):
      if part in self._special:
        ids.append(self._special[part])
      elif part:
        ids += self._processor.encode(part)
    return ids

  def _canonical(self, text: str) -> list[int]:
    parts = self._cuts.split(SPACE + text.replace(SPACE, " "))
    ids = []
    for i, part in enumerate(parts):
      if part in self._special:
        ids.append(self._special[part])
        continue
      # Special tokens take the spaces around them.
      part = part.lstrip() if i > 0 else part
      part = part.rstrip() if i + 1 < len(parts) else part
      if part and not (part == SPACE and i + 1 < len(parts)):
        ids += self._cleaned(part)
    return ids

  def _cleaned(self, text: str) -> list[int]:
    text = text.lower() if self._lower else text
    text = " ".join(text.translate(_PUNCTUATION).split())
    text = self._tokens["unk"] + text
    return self._processor.encode(text)[len(self._guard) :]

  def frame(
    self, text: str, pair: str | None = None, length: int | None = None
  ) -> Framed:
    """Returns what the model takes for a text, or for two.

    Args:
      text: the text.
      pair: a second one.
      length: longest result; of two texts the longer one is cut first.
    """
    parts = [self.encode(t) for t in (text, pair) if t is not None]
    first = self._ends("bos") if self._family.bos else []
    last = self._ends("eos") if self._family.eos else []
    if length is not None:
      extra = len(parts) * (len(first) + len(last))
      sizes = cut(parts, length - extra, first=self._family.canonical)
      parts = [ids[:n] for ids, n in zip(parts, sizes, strict=True)]
    ids: list[int] = []
    for part in parts:
      # SigLIP's end is not written twice.
      done = self._family.canonical and part[-1:] == last
      ids += first + part + ([] if done else last)
    return Framed(ids, [0] * len(ids))

  def _ends(self, role: str) -> list[int]:
    found = self._special.get(self._tokens.get(role, ""))
    return [] if found is None else [found]

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text, without special tokens."""
    special = set(self._special.values())
    kept = [i for i in map(int, ids) if i not in special]
    text = self._processor.decode(kept)
    return text.strip() if self._family.canonical else text


def load(
  folder: pathlib.Path,
  name: str,
  named: Mapping[str, Any],
  config: Mapping[str, Any],
) -> Pieces:
  """Loads the model of a folder.

  Args:
    folder: of the hub.
    name: of the family.
    named: special tokens that the folder's files give a role.
    config: what tokenizer_config.json says.

  Raises:
    InputError: there is no model in it.
  """
  family = FAMILIES[name]
  found = [folder / file for file in family.files if (folder / file).is_file()]
  if not found:
    raise errors.InputError(
      f"tokenizer path = {str(folder)!r}: its {name} has no "
      f"{' nor '.join(family.files)} there; fetch it."
    )
  tokens = {
    **family.tokens,
    **{role: token.content for role, token in named.items() if token},
  }
  left = config.get("padding_side", "left" if family.left else "right")
  bos, eos = family.bos, family.eos
  if family.bos:  # only these classes ask for it
    bos = config.get("add_bos_token", bos)
    eos = config.get("add_eos_token", eos)
  family = family._replace(left=left == "left", bos=bos, eos=eos)
  lower = config.get("do_lower_case", True)
  return Pieces(found[0].read_bytes(), family, tokens, lower)
