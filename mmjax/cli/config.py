"""Config files: found, run, overridden, locked; every mistake named.

A config file is Python with `get_config(arg="")` that returns a
`ml_collections.ConfigDict` (or a dict) of literals. `file.py:words` passes the
words to it. Overrides replace fields that exist, by a value of the same type.
"""

import argparse
import ast
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections

from mmjax import errors


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds `--config`, which every command that takes a config has."""
  parser.add_argument(
    "--config",
    required=True,
    metavar="FILE.py[:args]",
    help="config file, and words for its get_config, such as :smoke",
  )


def load(spec: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
  """Loads a config file and applies overrides.

  Args:
    spec: "path/to/file.py" or "path/to/file.py:word,key=value".
    overrides: "field.subfield=value" each, applied in this order.

  Returns:
    The config, locked: reading or setting an unknown field raises.

  Raises:
    InputError: no such file, a file without `get_config`, words that the file
      refuses, an unknown field, a value of another type.
  """
  path, _, arg = spec.partition(".py:") if ".py:" in spec else (spec, "", "")
  path = pathlib.Path(path + ".py" if ".py:" in spec else path)
  if not path.is_file():
    raise _missing(path)
  config = _call(_run(path), spec, arg)
  for override in overrides:
    apply(config, override)
  return config.lock()


def apply(config: ml_collections.ConfigDict, override: str) -> None:
  """Replaces one field in place: `apply(config, "optimizer.lr=1e-3")`.

  An int is taken for a float; a field that is None takes any literal; a text
  needs no quotes; a list or tuple is written as a literal.

  Raises:
    InputError: unknown field, or a value of another type.
  """
  field, _, text = override.partition("=")
  node: Any = config
  *parents, last = field.split(".")
  for depth, key in enumerate([*parents, last]):
    if not isinstance(node, ml_collections.ConfigDict) or key not in node:
      where = ".".join(["config", *parents[:depth]])
      raise _no_field(config, node, f"config.{field}", text, key, where)
    if depth < len(parents):
      node = node[key]
  value = _cast(f"config.{field}", text, node[last])
  with node.unlocked(), node.ignore_type():
    node[last] = value


def _run(path: pathlib.Path) -> Any:
  """Executes a config file as a module."""
  folder = path.resolve().parent
  for parent in (folder, *folder.parents):
    # `from experiments import common` must work from any folder, installed or
    # not, so the folder that holds `experiments` goes on the path.
    if parent.name == "experiments":
      if str(parent.parent) not in sys.path:
        sys.path.insert(0, str(parent.parent))
      break
  spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
  if spec is None or spec.loader is None:
    raise errors.InputError(f"--config = {path}: give a Python file (.py).")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except SyntaxError as error:
    raise errors.InputError(
      f"--config = {path}: line {error.lineno} is not Python ({error.msg}); "
      "correct the file."
    ) from error
  return module


def _call(module: Any, spec: str, arg: str) -> ml_collections.ConfigDict:
  """Calls `get_config`, with `arg` if the user wrote a colon."""
  get_config = getattr(module, "get_config", None)
  if get_config is None:
    raise errors.InputError(
      f"--config = {spec}: the file has no function get_config(arg=''); a "
      "config file returns its config from one."
    )
  if arg and not inspect.signature(get_config).parameters:
    raise errors.InputError(
      f"--config = {spec}: get_config takes no argument; drop ':{arg}'."
    )
  try:
    config = get_config(arg) if arg else get_config()
  except ValueError as error:  # experiments know nothing of mmjax.errors
    raise errors.InputError(f"--config = {spec}: {error}") from error
  if not isinstance(config, (dict, ml_collections.ConfigDict)):
    raise errors.InputError(
      f"--config = {spec}: get_config returned a {type(config).__name__}; it "
      "must return a dict or ml_collections.ConfigDict."
    )
  fields: Any = config
  return ml_collections.ConfigDict(fields)


def _cast(field: str, text: str, old: Any) -> Any:
  """Reads `text` as a value of the type of `old`."""
  if isinstance(old, str):
    value = _literal(text)
    return value if isinstance(value, str) else text
  if isinstance(old, bool) and text.lower() in ("true", "false"):
    return text.lower() == "true"
  value = _literal(text)
  if old is None:
    return value
  if isinstance(old, float) and type(value) is int:
    return float(value)
  if isinstance(old, (list, tuple)) and isinstance(value, (list, tuple)):
    return type(old)(value)
  if isinstance(old, ml_collections.ConfigDict) and isinstance(value, dict):
    return ml_collections.ConfigDict(value)
  if type(value) is type(old):
    return value
  wanted = type(old).__name__
  if isinstance(old, ml_collections.ConfigDict):
    first = next(iter(old), "field")
    raise errors.InputError(
      f"{field} = {text!r}: this is a group of fields, not one value; set one "
      f"of them, such as --{field}.{first}=..., or give a whole dict."
    )
  raise errors.InputError(
    f"{field} = {text!r}: it must be of type {wanted}, such as the config's "
    f"own {old!r}; this is of type {type(value).__name__}."
  )


def _literal(text: str) -> Any:
  """Returns a Python literal, or the text itself if it is none."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return text


def _paths(node: Any, prefix: str = "config") -> Iterator[str]:
  """Yields the dotted names of all fields."""
  for key, value in node.items():
    yield f"{prefix}.{key}"
    if isinstance(value, ml_collections.ConfigDict):
      yield from _paths(value, f"{prefix}.{key}")


def _no_field(
  config: ml_collections.ConfigDict,
  node: Any,
  field: str,
  text: str,
  key: str,
  where: str,
) -> errors.InputError:
  """Makes the error for an override of a field that does not exist."""
  here = list(node) if isinstance(node, ml_collections.ConfigDict) else []
  near = errors.nearest(key, here)
  # A right name in the wrong place is likelier than a misspelt one elsewhere.
  rest = field.removeprefix(f"{where}.{key}")
  guess = f"{where}.{near}{rest}" if near else None
  if guess is None:
    leaf = field.rsplit(".", 1)[-1]
    everywhere = list(_paths(config))
    same = [p for p in everywhere if p.rsplit(".", 1)[-1] == leaf]
    guess = same[0] if same else errors.nearest(field, everywhere)
  fix = f" Did you mean --{guess}?" if guess else ""
  known = f" Known there: {', '.join(sorted(here))}." if here else ""
  return errors.InputError(
    f"{field} = {text!r}: {where} has no field {key!r}.{fix}{known}"
  )


def _missing(path: pathlib.Path) -> errors.InputError:
  """Makes the error for a config file that is not there."""
  if path.is_dir():
    files = sorted(p.name for p in path.glob("*.py"))
    return errors.InputError(
      f"--config = {path}: this is a folder; name a file in it"
      + (f": {', '.join(files)}." if files else ".")
    )
  folder = path.parent
  while not folder.is_dir():
    folder = folder.parent
  # Bounded: two levels below, never a walk through a whole disk.
  patterns = ("*.py", "*/*.py")
  roots = {folder, pathlib.Path("experiments")}
  found = {
    str(p)
    for root in roots
    for pattern in patterns
    for p in root.glob(pattern)
    if "def get_config" in p.read_text(errors="replace")
  }
  by_name = {pathlib.Path(p).name: p for p in sorted(found)}
  guess = errors.nearest(str(path), sorted(found))
  guess = guess or by_name.get(errors.nearest(path.name, by_name) or "")
  fix = f" Did you mean {guess}?" if guess else ""
  some = sorted(found)[:8]
  known = f" Config files near it: {', '.join(some)}." if some else ""
  return errors.InputError(
    f"--config = {path}: there is no such file.{fix}{known}"
  )
