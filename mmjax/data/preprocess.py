"""Preprocessing as a string: "decode|resize(224)|keep('image')".

Operations are the public functions of `image_ops`, `hub_image_ops`,
`hub_aspect_ops`, `text_ops`, `prompt_ops`, `audio_ops` and the two at the end
of this file. The string is read by `ast` and never evaluated; arguments are
literals.
"""

import ast
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from mmjax import errors
from mmjax.data import (
  audio_ops,
  hub_aspect_ops,
  hub_image_ops,
  image_ops,
  prompt_ops,
  text_ops,
)
from mmjax.typing import Example

Op = Callable[[Example, np.random.Generator], Example]


class Preprocess:
  """The function `(example, rng) -> example` of a spec; picklable."""

  def __init__(self, spec: str, tokenizers: Mapping[str, Any]):
    self.spec = spec
    self._tokenizers = dict(tokenizers)
    self._ops = [(n, o) for n, o in _read(spec, self._tokenizers)]

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    for name, op in self._ops:
      try:
        example = op(example, rng)
      except KeyError as error:
        raise errors.InputError(
          f"preprocess = {self.spec!r}: {name} needs the key {error}, the "
          f"example has {', '.join(map(repr, example))}; change the spec or "
          "the source."
        ) from error
    return example

  def __reduce__(self):
    return Preprocess, (self.spec, self._tokenizers)

  def __repr__(self) -> str:
    return f"Preprocess({self.spec!r})"


def parse(spec: str, tokenizers: Mapping[str, Any] | None = None) -> Preprocess:
  """Makes the preprocessing function of a spec.

  Args:
    spec: operations joined by "|", each a name or a call with literals. The
      empty string changes nothing.
    tokenizers: {name: Tokenizer}, for `tokenize`.

  Raises:
    InputError: it cannot be read; names the position, counted from 0, and the
      nearest operation or argument that exists.
  """
  return Preprocess(spec, tokenizers or {})


def operations() -> dict[str, Callable[..., Op]]:
  """Returns all operations by name."""
  return {
    **_public(image_ops),
    **_public(hub_image_ops),
    **_public(hub_aspect_ops),
    **_public(text_ops),
    **_public(prompt_ops),
    **_public(audio_ops),
    "keep": keep,
    "rename": rename,
  }


def _public(module: ModuleType) -> dict[str, Callable[..., Op]]:
  return {
    name: f
    for name, f in vars(module).items()
    if inspect.isfunction(f)
    and f.__module__ == module.__name__
    and not name.startswith("_")
  }


def _read(spec: str, tokenizers: Mapping[str, Any]) -> list[tuple[str, Op]]:
  if not isinstance(spec, str):
    raise errors.InputError(
      f"preprocess = {spec!r}: must be a string such as 'decode|resize(32)'."
    )
  if not spec.strip():
    return []
  line = spec.replace("\n", " ").lstrip()
  shift = len(spec) - len(line)
  try:
    node = ast.parse(line, mode="eval").body
  except SyntaxError as error:
    position = (error.offset or 1) - 1 + shift
    raise errors.InputError(
      f"preprocess = {spec!r}: cannot be read at position {position} "
      f"({error.msg}); write operations joined by |, such as "
      "'decode|resize(32)'."
    ) from error
  nodes = []
  while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    nodes.append(node.right)
    node = node.left
  nodes.append(node)
  return [_make(n, spec, shift, tokenizers) for n in reversed(nodes)]


def _make(
  node: ast.expr, spec: str, shift: int, tokenizers: Mapping[str, Any]
) -> tuple[str, Op]:
  where = f"preprocess = {spec!r}, position {node.col_offset + shift}"
  function = node.func if isinstance(node, ast.Call) else node
  if not isinstance(function, ast.Name):
    raise errors.InputError(
      f"{where}: {ast.unparse(node)} is no operation; write a name or a call, "
      "such as decode or resize(32)."
    )
  name, known = function.id, operations()
  if name not in known:
    raise errors.unknown(where, name, known)
  factory = known[name]
  arguments, keywords = [], {}
  if isinstance(node, ast.Call):
    arguments = [_literal(a, where) for a in node.args]
    for keyword in node.keywords:
      value = _literal(keyword.value, where)
      if keyword.arg is None:
        raise errors.InputError(
          f"{where}: ** is not possible here; write the arguments out."
        )
      keywords[keyword.arg] = value
  parameters = inspect.signature(factory).parameters
  own = [p for p in parameters if p != "tokenizers"]
  for keyword in keywords:
    if keyword not in own:
      raise errors.unknown(f"{where}: argument of {name}", keyword, own)
  if "tokenizers" in parameters:
    keywords["tokenizers"] = tokenizers
  try:
    return name, factory(*arguments, **keywords)
  except (TypeError, ValueError) as error:
    raise errors.InputError(
      f"{where}: {name} does not take these arguments ({error}); it is "
      f"{name}({', '.join(own)})."
    ) from error
  except errors.InputError as error:
    raise errors.InputError(f"{where}: {error}") from error


def _literal(node: ast.expr, where: str) -> Any:
  try:
    return ast.literal_eval(node)
  except (ValueError, TypeError) as error:
    raise errors.InputError(
      f"{where}: {ast.unparse(node)} is not a literal; write a number, a "
      "string, True, False, None, or a tuple or list of these."
    ) from error


def keep(*keys: str) -> Op:
  """Drops every key but these."""

  def op(example: Example, rng: np.random.Generator) -> Example:
    return {key: example[key] for key in keys}

  return op


def rename(key: str, to: str) -> Op:
  """Gives the value at `key` the name `to`."""

  def op(example: Example, rng: np.random.Generator) -> Example:
    example = dict(example)
    example[to] = example.pop(key)
    return example

  return op
