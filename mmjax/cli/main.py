"""The front door: `mmjax <command> ...`, errors in one paragraph.

Nothing here, nor in what it imports at the top, imports JAX: a wrong argument
or config is reported in a fraction of a second.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

import mmjax
from mmjax import errors

# Each command is a module of this folder with `add_arguments(parser)` and
# `run(args) -> exit code`; it is imported only when it is asked for.
COMMANDS = {
  "train": "train (or resume) the experiment of a config file",
  "evaluate": "run the evaluators on the newest checkpoint of a workdir",
  "inspect": "show where every parameter lives on a mesh, and its bytes",
  "weights": "import or export a checkpoint of another library",
}

_USAGE = """\
usage: mmjax <command> --config FILE.py[:args] [--config.field=value ...]

commands
{commands}

examples
  mmjax train --config experiments/emoji/siglip.py --workdir runs/emoji
  mmjax train --config experiments/emoji/siglip.py:smoke --workdir /tmp/smoke
  mmjax train --config experiments/emoji/siglip.py:locale=de,fold=2 \\
    --workdir runs/de --config.optimizer.lr=5e-4 --config.steps=2000
  mmjax evaluate --config experiments/emoji/siglip.py --workdir runs/emoji
  mmjax weights import ~/downloads/vit-base-patch16-224 --to models/vit

Words after the colon go to the config file (its first lines list them);
--config.field=value replaces one field of the config that it returns.
The same command, run again, goes on where the run stopped.

exit codes
  0 done    2 bad input    3 bad data    4 diverged    5 storage
  75 preempted after saving: run the same command again
  130 interrupted by Ctrl-C before training began, or by a second one
  1 a bug of mmjax (the traceback is the report)

`mmjax <command> --help` lists the arguments of one command.
"""


class _Parser(argparse.ArgumentParser):
  """An argument parser that raises instead of printing its usage."""

  def error(self, message: str) -> NoReturn:
    raise errors.InputError(
      f"{self.prog}: {message}; see `{self.prog} --help`."
    )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command.

  Args:
    argv: the words after `mmjax`; those of the process if None.

  Returns:
    The exit code, as listed in `mmjax.errors`. Errors that the user can act
    on are printed to stderr as one paragraph; any other exception is a bug
    and is let through with its traceback.
  """
  try:
    return _dispatch(list(sys.argv[1:] if argv is None else argv))
  except errors.MmjaxError as error:
    sys.stdout.flush()
    print(f"mmjax: {error}", file=sys.stderr)
    return error.exit_code
  except KeyboardInterrupt:
    print("mmjax: interrupted.", file=sys.stderr)
    return 130


def usage() -> str:
  """Returns the text of `mmjax --help`."""
  lines = [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
  return _USAGE.format(commands="\n".join(lines))


def _dispatch(argv: list[str]) -> int:
  if not argv or argv[0] in ("-h", "--help", "help"):
    print(usage(), end="")
    return 0
  if argv[0] == "--version":
    print(f"mmjax {mmjax.__version__}")
    return 0
  name, *rest = argv
  if name not in COMMANDS:
    raise errors.unknown("command", name, COMMANDS)
  command = importlib.import_module(f"mmjax.cli.{name}")
  parser = _Parser(
    prog=f"mmjax {name}",
    description=f"{COMMANDS[name].capitalize()}.",
    epilog="Every field of the config can be set: --config.field=value.",
    allow_abbrev=False,
  )
  command.add_arguments(parser)
  rest, overrides = _split_overrides(rest)
  options = [o for a in parser._actions for o in a.option_strings]
  for word in rest:
    # Before argparse, which would complain of what is missing instead.
    if word.startswith("--") and word.partition("=")[0] not in options:
      raise errors.unknown(f"mmjax {name} argument", word, options)
  try:
    args = parser.parse_args(rest)
  except SystemExit as done:  # argparse has printed the help
    return int(done.code or 0)
  args.overrides = overrides
  return command.run(args) or 0


def _split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
  """Takes `--config.x=y` and `--config.x y` out, as "x=y"."""
  rest, overrides, queue = [], [], list(words)
  while queue:
    word = queue.pop(0)
    if not word.startswith("--config."):
      rest.append(word)
      continue
    if "=" not in word:
      if not queue or queue[0].startswith("--"):
        raise errors.InputError(f"{word}: it has no value; write {word}=VALUE.")
      word = f"{word}={queue.pop(0)}"
    overrides.append(word.removeprefix("--config."))
  return rest, overrides
