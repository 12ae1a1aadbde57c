"""The folder of a run: whose it is, and how files get into it."""

import json
import os
import pathlib
from typing import Any

from mmjax import errors
from mmjax.parallel import hosts
from mmjax.train import resilience

_SHOWN = 10

# Fields that may change between two runs in one workdir: none of them changes
# what is computed, beyond the rounding that another mesh brings.
HARMLESS = ("log_every", "checkpoint", "mesh", "data.workers")


def plain(config: Any) -> dict[str, Any]:
  """Returns a config as JSON would give it back: dicts, lists, numbers."""
  given = config.to_dict() if hasattr(config, "to_dict") else dict(config)
  return json.loads(json.dumps(given))


def check(folder: pathlib.Path, config: Any) -> None:
  """Checks that a workdir is new or belongs to this config.

  Raises:
    InputError: it belongs to another; lists the fields that differ.
  """
  path = folder / "config.json"
  if not os.path.exists(path):  # nor can be looked for: `claim` says so
    return
  old, new = _flat(json.loads(path.read_text())), _flat(plain(config))
  differ = [
    key
    for key in sorted({*old, *new})
    if old.get(key, "(none)") != new.get(key, "(none)")
    and not any(key == h or key.startswith(h + ".") for h in HARMLESS)
  ]
  if differ:
    shown = "; ".join(
      f"{k}: {old.get(k, '(none)')!r} there, {new.get(k, '(none)')!r} now"
      for k in differ[:_SHOWN]
    )
    more = len(differ) - _SHOWN
    raise errors.InputError(
      f"--workdir = {str(folder)!r}: it belongs to a run of another config "
      f"({shown}{f'; and {more} more' if more > 0 else ''}); give another "
      "--workdir, or delete this one."
    )


def claim(folder: pathlib.Path, config: Any) -> None:
  """Makes the workdir and writes the config into it.

  Raises:
    StorageError: it cannot be written.
  """
  if hosts.is_lead():
    text = json.dumps(plain(config), indent=2) + "\n"
    with resilience.storage(folder / "config.json", len(text)):
      folder.mkdir(parents=True, exist_ok=True)
      write_atomically(folder / "config.json", text)
  hosts.barrier("workdir")


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Writes a file so that a reader sees the old or the new, never a part."""
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(text)
  temporary.replace(path)


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(config, dict):
    return {prefix: config}
  out: dict[str, Any] = {}
  for key, value in config.items():
    out.update(_flat(value, f"{prefix}.{key}" if prefix else key))
  return out
