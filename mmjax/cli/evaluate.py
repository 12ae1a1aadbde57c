"""`mmjax evaluate`: runs a config's evaluators on the newest checkpoint."""

import argparse
import json
import pathlib

from mmjax import errors
from mmjax.cli import config as configs


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of the command."""
  configs.add_arguments(parser)
  parser.add_argument(
    "--workdir", required=True, help="folder of a run that saved a checkpoint"
  )
  parser.add_argument(
    "--json", metavar="FILE", help="also write {metric: value} there"
  )


def run(args: argparse.Namespace) -> int:
  """Prints one line a metric, "evaluator/metric  value".

  The config may differ from that of the training in its evaluators and mesh,
  but the model must fit the checkpoint. Nothing in the workdir is changed.

  Raises:
    InputError: no checkpoint, one that does not fit, or no evaluators.
  """
  config = configs.load(args.config, args.overrides)
  folder = pathlib.Path(args.workdir).absolute()
  if not (folder / "checkpoints").is_dir():
    raise errors.InputError(
      f"--workdir = {args.workdir!r}: there are no checkpoints in it; give the "
      "workdir of a run of `mmjax train`."
    )
  if not config.get("evals"):
    raise errors.InputError(
      "config.evals is empty: there is nothing to run; add an evaluator."
    )
  # JAX is imported here, after the config stands.
  from mmjax.parallel import hosts
  from mmjax.train import checkpoint, setup

  hosts.initialize()
  ready = setup.setup(config, workdir=str(folder))
  # The run may be alive: what it is just saving must not be cleaned away.
  checkpoints = folder / "checkpoints"
  with checkpoint.Checkpoints(checkpoints, read_only=True) as saved:
    step = saved.latest()
    # Moments are twice the size of the parameters, and of no use here.
    state = saved.restore(
      ready.state_shapes, step, only=lambda name: not name.startswith("opt/")
    )
  found = {
    f"{name}/{metric}": float(value)
    for name, evaluator in ready.evaluators().items()
    for metric, value in evaluator.run(state.variables()).items()
  }
  if not hosts.is_lead():
    return 0
  width = max(map(len, found), default=0)
  print(f"step {step}")
  for name, value in found.items():
    print(f"{name:<{width}}  {value:.4f}")
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(found, indent=2) + "\n")
  return 0
