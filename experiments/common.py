"""What experiment files share: their arguments, and shrinking for `:smoke`.

Experiments import nothing of mmjax and no JAX, so that a config loads, prints
and fails in milliseconds. Mistakes raise ValueError, which the command line
turns into one paragraph.
"""

import ast
import difflib
import types

FOLDS = ("0", "1", "2", "3", "4", "dev")


def parse_arg(arg: str, **defaults):
  """Parses the words after the colon: "smoke,fold=2,locale=de".

  Args:
    arg: comma-separated `key=value`; a bare `key` means `key=True`.
    **defaults: the words that the experiment knows. The type of a default is
      the type that its value must have.

  Returns:
    A namespace with every default, replaced where `arg` says so.

  Raises:
    ValueError: an unknown word (the nearest is named) or a wrong type.
  """
  values = dict(defaults)
  for word in filter(None, (w.strip() for w in arg.split(","))):
    key, given, text = word.partition("=")
    if key not in defaults:
      near = difflib.get_close_matches(key, defaults, 1, cutoff=0.5)
      raise ValueError(
        f"argument {key!r} is not known."
        + (f" Did you mean {near[0]!r}?" if near else "")
        + f" Known: {', '.join(sorted(defaults))}."
      )
    values[key] = _read(key, text, defaults[key]) if given else True
    if not given and not isinstance(defaults[key], bool):
      raise ValueError(
        f"argument {key!r} needs a value, such as {key}={defaults[key]}."
      )
  return types.SimpleNamespace(**values)


def _read(key: str, text: str, default):
  """Reads `text` as a value of the type of `default`."""
  if isinstance(default, str):
    return text
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    value = text
  if isinstance(default, float) and type(value) is int:
    value = float(value)
  if type(value) is not type(default):
    raise ValueError(
      f"argument {key}={text} must be of type {type(default).__name__}, such "
      f"as {key}={default}."
    )
  return value


def choose(word: str, name: str, options: dict):
  """Returns the option of that name.

  Raises:
    ValueError: there is none.
  """
  if name not in options:
    raise ValueError(
      f"argument {word}={name} is not known; known: {', '.join(options)}."
    )
  return options[name]


def fold(text: str) -> int | str:
  """Returns the number of a test fold, or "dev" for tuning.

  Raises:
    ValueError: there is no such fold.
  """
  if text not in FOLDS:
    raise ValueError(
      f"argument fold={text} is not a fold; known: {', '.join(FOLDS)}."
    )
  return text if text == "dev" else int(text)


def locale(text: str) -> str | tuple[str, ...]:
  """Returns one locale, or several that were joined by plus: "en+de"."""
  parts = tuple(text.split("+"))
  return parts[0] if len(parts) == 1 else parts
