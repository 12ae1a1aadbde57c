"""Prompts of models that read an image before a text, as specs make them.

PaliGemma's prompt is the start token, the text and a newline; the suffix, what
the model shall say, follows with the end token ("PaliGemma: a versatile 3B VLM
for transfer", Beyer et al. 2024). The image's own places are the model's.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmjax import errors
from mmjax.data import ragged
from mmjax.typing import Example

Op = Callable[[Example, np.random.Generator], Example]

IMAGE = "<image>"
# Where something is, and the shape of it: tokens of PaliGemma's own.
_PLACES = re.compile(
  r"(<loc(?:0\d{3}|10[01]\d|102[0-3])>|<seg(?:0\d\d|1[01]\d|12[0-7])>)"
)
UNLABELLED = -100  # what losses of the hub leave out


def prompt_as_trained(
  name: str,
  key: str = "text",
  suffix: str = "suffix",
  mask: str = "mask",
  labels: str | None = None,
  length: int | None = None,
  left: bool | None = None,
  vocab_size: int | None = None,
  *,
  tokenizers: Mapping[str, Any],
) -> Op:
  r"""Turns a prompt, and a suffix if there is one, into PaliGemma's tokens.

  These are "<bos>" + prompt + "\n", then suffix + "<eos>". A prompt may begin
  with "<image>", which changes nothing.

  Args:
    name: of a tokenizer of kind "hub", as in `config.tokenizers`.
    key: of the prompt; becomes int32 [T].
    suffix: key of the suffix; becomes int32 [T], 0 in the prompt and padding
      and 1 after it. Without a suffix there is no such key.
    mask: key of int32 [T], 1 for tokens and 0 for padding.
    labels: key of int32 [T], the token where suffix is 1 and -100 elsewhere;
      None is none.
    length: T. What is longer loses its end. None is that of the longest in
      the batch.
    left: whether padding stands in front, as decoding needs it; None is what
      the tokenizer says.
    vocab_size: of the model; None is any.
    tokenizers: given by the parser, not by the spec.

  Raises (when it runs):
    InputError: a prompt or suffix that is no text, "<image>" within a text, or
      a token that the tokenizer or the model does not know.
  """
  if name not in tokenizers:
    raise errors.unknown("prompt_as_trained name", name, tokenizers)
  tokenizer = tokenizers[name]
  if not hasattr(tokenizer, "frame"):
    raise ValueError(f"tokenizer {name!r} is not of kind 'hub'")
  ends = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
  if None in ends:
    raise ValueError(f"tokenizer {name!r} has no start, end or padding token")
  bos, eos, pad = ends
  if length is not None and length < 3:
    raise ValueError(f"length {length} leaves no room for a token")
  front = tokenizer.left if left is None else left

  def row(values: list[int], fill: int) -> np.ndarray:
    made = ragged.mark(np.array(values[:length], np.int32), fill, front)
    return made if length is None else ragged.grow(made, [length])

  def op(example: Example, rng: np.random.Generator) -> Example:
    text = _text(key, example[key]).removeprefix(IMAGE)
    first = [bos, *_encoded(tokenizer, name, key, text + "\n")]
    second = []
    if suffix in example:
      said = _text(suffix, example[suffix])
      second = [*_encoded(tokenizer, name, suffix, said), eos]
    ids = first + second
    if vocab_size is not None and max(ids) >= vocab_size:
      raise errors.InputError(
        f"tokenizer {name!r} gives the id {max(ids)}, and the model has "
        f"{vocab_size} tokens: they are not of one checkpoint; fetch the "
        "tokenizer's files anew."
      )
    found = {key: row(ids, pad), mask: row([1] * len(ids), 0)}
    if suffix in example:
      found[suffix] = row([0] * len(first) + [1] * len(second), 0)
    if labels is not None:
      found[labels] = row([UNLABELLED] * len(first) + second, UNLABELLED)
    return {**example, **found}

  return op


def _text(key: str, value: Any) -> str:
  if not isinstance(value, str):
    raise errors.InputError(
      f"preprocess {key} = {value!r}: must be a str; give one text for each "
      "image, '' for none."
    )
  return value


def _encoded(tokenizer: Any, name: str, key: str, text: str) -> list[int]:
  """Returns the ids of a text, whose places are cut out of it first."""
  if IMAGE in text:
    raise errors.InputError(
      f"preprocess {key} = {text!r}: {IMAGE} may only begin a prompt, once; "
      "take it out, the model puts the image before the text by itself."
    )
  ids: list[int] = []
  for i, part in enumerate(_PLACES.split(text)):
    if i % 2 == 0:
      ids += tokenizer.encode(part) if part else []
      continue
    found = tokenizer.token_id(part)
    if found is None:
      raise errors.InputError(
        f"preprocess {key} = {text!r}: the tokenizer {name!r} has no {part}; "
        "take PaliGemma's, or leave it out."
      )
    ids.append(found)
  return ids
