"""`mmjax train`: runs the experiment of a config file to its end."""

import argparse

from mmjax import errors
from mmjax.cli import config as configs


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of the command."""
  configs.add_arguments(parser)
  parser.add_argument(
    "--workdir",
    required=True,
    help="folder for checkpoints, metrics and pictures; made if missing",
  )


def run(args: argparse.Namespace) -> int:
  """Trains, or goes on with, the run in `args.workdir`.

  Raises:
    MmjaxError: see `mmjax.errors`; bad input is found before any long work.
  """
  config = configs.load(args.config, args.overrides)
  check_workdir(args.workdir)
  # JAX is imported here, after the config stands.
  from mmjax.parallel import hosts
  from mmjax.train import loop

  hosts.initialize()
  loop.fit(config, args.workdir)
  return 0


def check_workdir(workdir: str) -> None:
  """Raises InputError if the workdir is empty or a file."""
  import os

  if not workdir:
    raise errors.InputError("--workdir = '': give the path of a folder.")
  if os.path.isfile(workdir):
    raise errors.InputError(
      f"--workdir = {workdir!r}: this is a file; give the path of a folder."
    )
