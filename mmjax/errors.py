"""Errors that a user can act on, each with the exit code of the command.

A message is one paragraph that names the field, its value and the fix. Exit
codes: 0 success, 2 bad input, 3 bad data, 4 diverged, 5 storage, 75 preempted
after saving (run the same command again). Anything else is a bug of ours and
keeps its traceback (exit code 1).
"""

import difflib
from collections.abc import Iterable


class MmjaxError(Exception):
  """Base of all errors meant for the user; `exit_code` is the command's."""

  exit_code = 1


class InputError(MmjaxError):
  """A config value, argument or file that cannot work."""

  exit_code = 2


class DataError(MmjaxError):
  """Records that cannot be read, more of them than is tolerated."""

  exit_code = 3


class DivergedError(MmjaxError):
  """The loss or a gradient is no longer finite."""

  exit_code = 4


class StorageError(MmjaxError):
  """A checkpoint or log that cannot be written or does not fit."""

  exit_code = 5


class Preempted(MmjaxError):
  """The run was told to stop, saved its state and left."""

  exit_code = 75


def nearest(name: str, options: Iterable[str]) -> str | None:
  """Returns the option most like `name`, or None if none is near."""
  found = difflib.get_close_matches(str(name), list(options), 1, cutoff=0.5)
  return found[0] if found else None


def unknown(field: str, value: object, options: Iterable[str]) -> InputError:
  """Makes the error for a name that does not exist.

  Args:
    field: where the name stood, for example `config.task.name`.
    value: the name that was given.
    options: the names that exist.

  Returns:
    An `InputError` to raise; it says the nearest name and all names.
  """
  options = sorted(map(str, options))
  guess = nearest(str(value), options)
  fix = f" Did you mean {guess!r}?" if guess else ""
  return InputError(
    f"{field} = {value!r}: no such name.{fix} Known: {', '.join(options)}."
  )
