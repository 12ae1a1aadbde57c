"""The registry is the file system: `build("models", name="vit", ...)`.

A plug-in is a file in a plug-in folder with one public function `build`. Its
name is the file's name; its keywords are the config's keys. A file of the
folder without `build` serves the others and is no plug-in.
"""

import importlib
import inspect
import pathlib
import re
from collections.abc import Callable
from typing import Any

from mmjax import errors

_BUILD = re.compile(r"^def build\(", re.MULTILINE)


def names(folder: str) -> list[str]:
  """Returns the plug-ins of a folder, for example `names("models")`.

  The files are read, not imported: most of them import JAX and more.
  """
  package = importlib.import_module(f"mmjax.{folder}")
  return sorted(
    file.stem
    for path in package.__path__
    for file in pathlib.Path(path).glob("*.py")
    if _BUILD.search(file.read_text(encoding="utf-8"))
  )


def load(folder: str, name: str, field: str | None = None) -> Any:
  """Imports the plug-in module `mmjax.<folder>.<name>`.

  Raises:
    InputError: there is no such file; names the nearest.
  """
  known = names(folder)
  if name not in known:
    raise errors.unknown(field or f"{folder}.name", name, known)
  return importlib.import_module(f"mmjax.{folder}.{name}")


def check(folder: str, *, name: str, **keywords: Any) -> Callable[..., Any]:
  """Finds the builder of a plug-in and checks its keywords, building nothing.

  Args:
    folder: plug-in folder below `mmjax`, dotted: "models", "data.sources".
    name: file name of the plug-in.
    **keywords: what `build` would be called with.

  Returns:
    The plug-in's `build`.

  Raises:
    InputError: unknown plug-in, unknown keyword (with the nearest known), or
      a required keyword that is missing.
  """
  builder = load(folder, name).build
  parameters = inspect.signature(builder).parameters
  if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
    for key in keywords:
      if key not in parameters:
        raise errors.unknown(f"{folder}.{name} keyword", key, parameters)
  missing = [
    p.name
    for p in parameters.values()
    if p.default is p.empty
    and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    and p.name not in keywords
  ]
  if missing:
    raise errors.InputError(
      f"{folder}.{name}: {', '.join(missing)} must be given; add it to the "
      f"config next to name={name!r}."
    )
  return builder


def build(folder: str, *, name: str, **keywords: Any) -> Any:
  """Calls the builder of plug-in `name` in `folder` with its keywords.

  Raises:
    InputError: as `check`, and what the plug-in raises.
  """
  return check(folder, name=name, **keywords)(**keywords)
