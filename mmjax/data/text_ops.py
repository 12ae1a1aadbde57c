"""Operations on texts of an example, each a factory for preprocessing specs.

A text is a str, or a list of str: then every one of them is treated alike.
"""

import string
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmjax import errors
from mmjax.typing import Example

Op = Callable[[Example, np.random.Generator], Example]

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _on_text(f: Callable[[str, np.random.Generator], Any], key: str) -> Op:
  def op(example: Example, rng: np.random.Generator) -> Example:
    text = example[key]
    if isinstance(text, str):
      return {**example, key: f(text, rng)}
    return {**example, key: [f(t, rng) for t in text]}

  return op


def tokenize(
  name: str,
  key: str = "text",
  length: int = 64,
  bos: bool = False,
  eos: bool = True,
  to: str | None = None,
  *,
  tokenizers: Mapping[str, Any],
) -> Op:
  """Turns a text into int32 [length], several into int32 [n, length].

  Longer texts are cut (the end token stays), shorter ones padded with the
  tokenizer's `pad_id`.

  Args:
    name: of the tokenizer, as in `config.tokenizers`.
    key: of the text.
    length: in tokens, start and end included.
    bos: whether the start token comes first.
    eos: whether the end token comes last.
    to: key of the result; None is `key`.
    tokenizers: given by the parser, not by the spec.
  """
  if name not in tokenizers:
    raise errors.unknown("tokenize name", name, tokenizers)
  tokenizer = tokenizers[name]
  first = [tokenizer.bos_id] if bos else []
  last = [tokenizer.eos_id] if eos else []
  if None in first + last:
    raise ValueError(f"tokenizer {name!r} has no start or end token")
  room = length - len(first) - len(last)
  if room < 1:
    raise ValueError(f"length {length} leaves no room for a token")
  pad = tokenizer.pad_id or 0

  def one(text: str) -> np.ndarray:
    ids = first + tokenizer.encode(text)[:room] + last
    out = np.full(length, pad, np.int32)
    out[: len(ids)] = ids
    return out

  def op(example: Example, rng: np.random.Generator) -> Example:
    text = example[key]
    if isinstance(text, str):
      found = one(text)
    else:
      found = np.array([one(t) for t in text], np.int32).reshape(-1, length)
    return {**example, to or key: found}

  return op


def choose(key: str = "texts", to: str = "text") -> Op:
  """Draws one of the texts in the list `key`."""

  def op(example: Example, rng: np.random.Generator) -> Example:
    texts = example[key]
    return {**example, to: texts[int(rng.integers(len(texts)))]}

  return op


def sample_tags(
  p: float = 0.5, name: float = 1.0, shuffle: bool = True, to: str = "text"
) -> Op:
  """Makes "name: tag, tag" of `name` and a random part of `tags`.

  Args:
    p: probability to keep a tag.
    name: probability to keep the name; without any tag it always stays.
    shuffle: whether the order of the tags is drawn too.
    to: key of the result.
  """

  def op(example: Example, rng: np.random.Generator) -> Example:
    tags = example["tags"]
    draws = rng.random(len(tags) + 1)
    kept = [t for t, draw in zip(tags, draws, strict=False) if draw < p]
    if shuffle and len(kept) > 1:
      kept = [kept[i] for i in rng.permutation(len(kept))]
    text = ", ".join(kept)
    if not kept:
      text = example["name"]
    elif draws[-1] < name:
      text = f"{example['name']}: {text}"
    return {**example, to: text}

  return op


def template(*templates: str, key: str = "text") -> Op:
  """Puts the text in for "{}" of one of the templates, drawn uniformly."""
  for candidate in templates:
    if candidate.count("{}") != 1:
      raise ValueError(f"template {candidate!r} must hold one {{}}")
  if not templates:
    raise ValueError("at least one template is needed")

  def fill(text: str, rng: np.random.Generator) -> str:
    drawn = int(rng.integers(len(templates))) if len(templates) > 1 else 0
    return templates[drawn].replace("{}", text)

  return _on_text(fill, key)


def lower(key: str = "text") -> Op:
  """Makes the text lower case."""
  return _on_text(lambda text, rng: text.lower(), key)


def canonicalise(key: str = "text") -> Op:
  """Lower case, no ASCII punctuation, single spaces (as SigLIP does)."""

  def clean(text: str, rng: np.random.Generator) -> str:
    text = text.replace("_", " ").translate(_PUNCTUATION).lower()
    return " ".join(text.split())

  return _on_text(clean, key)
