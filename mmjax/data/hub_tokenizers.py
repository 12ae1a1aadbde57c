"""Tokenizers from a folder of the model hub, with the frame they put on texts.

  tokenizer = load("clip-vit-base-patch32")
  tokenizer.encode("a cat")          # the words alone, as all our tokenizers
  tokenizer.frame("a cat").ids       # with start and end, as the model takes it

The folder holds tokenizer.json, or vocab.json and merges.txt (bytes), vocab.txt
(WordPiece) or spiece.model (SentencePiece), and tokenizer_config.json, which
names the class.
"""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers as hf

from mmjax import errors
from mmjax.data import hub_pieces, hub_pipelines
from mmjax.data.framing import Framed, cut
from mmjax.data.hub_pipelines import FAMILIES, Family

CONFIG = "tokenizer_config.json"
FILE = "tokenizer.json"
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


class Hub:
  """A `tokenizers` pipeline of one of the hub's classes; see `load`.

  Attributes:
    vocab_size: number of tokens, added ones included.
    pad_id, bos_id, eos_id: None where there is none; those of BERT are its
      first and last token.
    left: it pads on the left.
  """

  def __init__(
    self, pipeline: hf.Tokenizer, family: Family, tokens: Mapping[str, str]
  ):
    pipeline.no_padding()
    pipeline.no_truncation()
    self._pipeline = pipeline
    self._strip, self._hidden = family.strip, family.hidden
    self.left = family.left
    self.vocab_size = pipeline.get_vocab_size()
    ids = {role: self.token_id(token) for role, token in tokens.items()}
    self.pad_id = ids.get("pad")
    self.bos_id = ids.get("bos", ids.get("cls"))
    self.eos_id = ids.get("eos", ids.get("sep"))

  def token_id(self, token: str) -> int | None:
    """Returns the id of a token, such as "<|en|>", or None."""
    return self._pipeline.token_to_id(token)

  def encode(self, text: str) -> list[int]:
    """Returns the ids of the text alone."""
    return self._pipeline.encode(text, add_special_tokens=False).ids

  def frame(
    self, text: str, pair: str | None = None, length: int | None = None
  ) -> Framed:
    """Returns what the model takes for a text, or for two.

    Args:
      text: the text.
      pair: a second one.
      length: longest result; of two texts the longer one is cut first.
    """
    parts = [
      self._pipeline.encode(t, add_special_tokens=False)
      for t in (text, pair)
      if t is not None
    ]
    if length is not None:
      extra = self._pipeline.num_special_tokens_to_add(pair is not None)
      sizes = cut([part.ids for part in parts], length - extra)
      for part, n in zip(parts, sizes, strict=True):
        part.truncate(n)
    second = parts[1] if pair is not None else None
    found = self._pipeline.post_process(parts[0], second)
    return Framed(found.ids, found.type_ids)

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text, without special tokens."""
    text = self._pipeline.decode([int(i) for i in ids])
    if self._hidden:
      text = re.sub(self._hidden, "", text)
    return text.strip() if self._strip else text


def load(folder: str | pathlib.Path) -> "Hub | hub_pieces.Pieces":
  """Loads the tokenizer of a folder of the hub.

  Raises:
    InputError: there is none in it, it is damaged, or of a class or with a
      field that we do not follow.
  """
  folder = pathlib.Path(folder)
  config = _json(folder / CONFIG)
  name = _class(folder, config)
  for field, plain in (
    ("split_special_tokens", False),
    ("truncation_side", "right"),
  ):
    if config.get(field, plain) != plain:
      raise errors.InputError(
        f"{folder / CONFIG} {field} = {config[field]!r}: only {plain!r} is "
        "known; change it."
      )
  try:
    return _made(folder, name, config)
  except errors.InputError:
    raise
  except Exception as error:  # the libraries raise what they like
    raise errors.InputError(
      f"tokenizer path = {str(folder)!r}: its {name} cannot be read ({error}); "
      "fetch it anew."
    ) from error


def _made(
  folder: pathlib.Path, name: str, config: Mapping[str, Any]
) -> "Hub | hub_pieces.Pieces":
  named = _named(folder, config)
  file = folder / FILE
  if name in hub_pieces.FAMILIES and (
    name not in FAMILIES or not file.is_file()
  ):
    return hub_pieces.load(folder, name, named, config)
  family = FAMILIES[name]
  tokens = {r: token.content for r, token in named.items() if token}
  tokens = {**family.tokens, **tokens}
  tokens = {r: t for r, t in tokens.items() if r not in named or named[r]}
  if file.is_file():
    pipeline = hf.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    # The reference listens to these only where there is no such file.
    flags = ("add_bos_token", "add_eos_token")
    config = {k: v for k, v in config.items() if k not in flags}
  else:
    pipeline = _from_parts(folder, name, tokens, config)
  _add(pipeline, folder, config, named, tokens)
  family.configure(pipeline, tokens, config)
  side = config.get("padding_side", "left" if family.left else "right")
  return Hub(pipeline, family._replace(left=side == "left"), tokens)


def _class(folder: pathlib.Path, config: Mapping[str, Any]) -> str:
  """Returns the class of the folder's tokenizer, as one of ours."""
  model = _json(folder / "config.json")
  said = config.get("tokenizer_class") or model.get("tokenizer_class")
  if said is None:
    said = hub_pipelines.OF_MODELS.get(str(model.get("model_type")))
  if said is None and (folder / FILE).is_file():
    said = "PreTrainedTokenizer"
  if said is None:
    raise errors.InputError(
      f"tokenizer path = {str(folder)!r}: there is no tokenizer in it that is "
      f"known; fetch {FILE} or {CONFIG}."
    )
  name = str(said).removesuffix("Fast")
  name = hub_pipelines.ALIASES.get(name, name)
  known = {*FAMILIES, *hub_pieces.FAMILIES}
  if name not in known:
    raise errors.unknown(f"{folder / CONFIG} tokenizer_class", said, known)
  return name


def _from_parts(
  folder: pathlib.Path,
  name: str,
  tokens: Mapping[str, str],
  config: Mapping[str, Any],
) -> hf.Tokenizer:
  """Returns the pipeline of files of which none holds all of it."""
  family = FAMILIES[name]
  files = [folder / file for file in family.files]
  if family.model is None or not all(file.is_file() for file in files):
    parts = " and ".join(family.files)
    beside = f", nor {parts}" if parts else ""
    raise errors.InputError(
      f"tokenizer path = {str(folder)!r}: its {name} has no {FILE} there"
      f"{beside}; fetch it."
    )
  return family.model(*(file.read_bytes() for file in files), tokens, config)


def _named(
  folder: pathlib.Path, config: Mapping[str, Any]
) -> dict[str, hf.AddedToken | None]:
  """Returns the special tokens that the files give a role; None is taken off."""
  said = {**_json(folder / "special_tokens_map.json"), **config}
  return {
    role: None
    if said[f"{role}_token"] is None
    else _token(said[f"{role}_token"])
    for role in ROLES
    if f"{role}_token" in said
  }


def _token(said: Any, special: bool = True) -> hf.AddedToken:
  if isinstance(said, str):
    return hf.AddedToken(said, special=special)
  flags = ("single_word", "lstrip", "rstrip", "normalized")
  return hf.AddedToken(
    said["content"],
    special=said.get("special", special),
    **{flag: said[flag] for flag in flags if flag in said},
  )


def _add(
  pipeline: hf.Tokenizer,
  folder: pathlib.Path,
  config: Mapping[str, Any],
  named: Mapping[str, hf.AddedToken | None],
  tokens: Mapping[str, str],
) -> None:
  """Adds the tokens that are cut out of texts, in the order of the reference."""
  known = {t.content for t in pipeline.get_added_tokens_decoder().values()}
  listed = config.get("added_tokens_decoder") or {}
  added = [_token(listed[i], False) for i in sorted(listed, key=int)]
  if not listed:
    by_name = _json(folder / "added_tokens.json")
    added = [_token(t, False) for t in sorted(by_name, key=by_name.__getitem__)]
  roles = [named.get(r) or _token(tokens[r]) for r in ROLES if r in tokens]
  more = config.get("extra_special_tokens") or []
  more = [*more, *(config.get("additional_special_tokens") or [])]
  more += [  # such as PaliGemma's "image_token"
    said
    for key, said in config.items()
    if key.endswith("_token")
    and key.removesuffix("_token") not in ROLES
    and isinstance(said, str)
  ]
  for token in [*added, *roles, *map(_token, more)]:
    if token.content not in known:
      pipeline.add_tokens([token])
      known.add(token.content)


def _json(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object of a file, {} if there is no such file."""
  if not path.is_file():
    return {}
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as e:
    found = e
  if not isinstance(found, dict):
    raise errors.InputError(
      f"tokenizer file = {str(path)!r}: it is no JSON object ({found}); fetch "
      "it anew."
    )
  return found
