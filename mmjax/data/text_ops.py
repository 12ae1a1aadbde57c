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


def tokenize_as_trained(
  name: str,
  key: str = "text",
  length: int = 64,
  pair: str | None = None,
  to: str | None = None,
  types: str | None = None,
  mask: str | None = None,
  pad: int | None = None,
  vocab_size: int | None = None,
  end: bool = True,
  *,
  tokenizers: Mapping[str, Any],
) -> Op:
  """Turns a text into int32 [length] as the tokenizer of a hub folder does.

  It has the special tokens that its model was trained with, is cut and padded.

  Args:
    name: of a tokenizer of kind "hub", as in `config.tokenizers`.
    key: of the text.
    length: in tokens, special ones included.
    pair: key of a second text, which goes after the first.
    to: key of the result; None is `key`.
    types: key of int32 [length], 0 for the first text's tokens and padding, 1
      for the second's; None is none.
    mask: key of int32 [length], 1 for tokens and 0 for padding; None is none.
    pad: id of the padding; None is the tokenizer's.
    vocab_size: of the model; None is any.
    end: False puts padding where the token of the end is.
    tokenizers: given by the parser, not by the spec.

  Raises (when it runs):
    InputError: an id that the model does not know, of a tokenizer that is not
      the model's; JAX itself would take another token's embedding.
  """
  if name not in tokenizers:
    raise errors.unknown("tokenize_as_trained name", name, tokenizers)
  tokenizer = tokenizers[name]
  if not hasattr(tokenizer, "frame"):
    raise ValueError(f"tokenizer {name!r} is not of kind 'hub': use tokenize")
  if pad is None:
    pad = tokenizer.pad_id
  if pad is None:
    raise ValueError(f"tokenizer {name!r} has no padding token: give pad")
  if length <= len(tokenizer.frame("").ids):
    raise ValueError(f"length {length} leaves no room for a token")

  def filled(ids: list[int], value: int) -> np.ndarray:
    out = np.full(length, value, np.int32)
    if ids:
      out[-len(ids) if tokenizer.left else 0 :][: len(ids)] = ids
    return out

  def op(example: Example, rng: np.random.Generator) -> Example:
    text = example[key]
    texts = [text] if isinstance(text, str) else text
    seconds = [None] * len(texts)
    if pair is not None:
      second = example[pair]
      seconds = [second] if isinstance(second, str) else second
    framed = [
      tokenizer.frame(t, u, length) for t, u in zip(texts, seconds, strict=True)
    ]
    for f in framed:
      if vocab_size is not None and max(f.ids, default=0) >= vocab_size:
        raise errors.InputError(
          f"tokenizer {name!r} gives the id {max(f.ids)}, and the model has "
          f"{vocab_size} tokens: they are not of one checkpoint; fetch the "
          "tokenizer's files anew."
        )
    rows = [f.ids for f in framed]
    if not end:
      rows = [[pad if i == tokenizer.eos_id else i for i in r] for r in rows]
    found = {to or key: [filled(r, pad) for r in rows]}
    if types is not None:
      found[types] = [filled(f.types, 0) for f in framed]
    if mask is not None:
      found[mask] = [filled([1] * len(f.ids), 0) for f in framed]
    if isinstance(text, str):
      return {**example, **{k: r[0] for k, r in found.items()}}
    shape = (-1, length)
    return {
      **example,
      **{k: np.array(r, np.int32).reshape(shape) for k, r in found.items()},
    }

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


def single_spaces(key: str = "text") -> Op:
  """Makes one space of each stretch of white space, and none at the ends."""
  return _on_text(lambda text, rng: " ".join(text.split()), key)


def canonicalise(key: str = "text") -> Op:
  """Lower case, no ASCII punctuation, single spaces (as SigLIP does)."""

  def clean(text: str, rng: np.random.Generator) -> str:
    text = text.replace("_", " ").translate(_PUNCTUATION).lower()
    return " ".join(text.split())

  return _on_text(clean, key)
