"""A model from a workdir or a foreign checkpoint, to use in ten lines."""

import json
import pathlib
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from mmjax import errors, weights
from mmjax.data.examples import Preprocess
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.setup import Run, setup


class Loaded(NamedTuple):
  """A model that can be applied.

  Attributes:
    model: Linen module.
    variables: {"params": ..., **mutable}; the averaged parameters if the run
      kept an average.
    preprocess: turns images and texts into the model's arguments.
  """

  model: nn.Module
  variables: dict[str, Any]
  preprocess: Preprocess


def load(path: str | pathlib.Path, *, step: int | None = None) -> Loaded:
  """Loads a model from a workdir, or another library's checkpoint.

  It comes onto one device; `mmjax.weights.load` takes a mesh.

      model, variables, preprocess = mmjax.load("runs/emoji")
      batch = preprocess(image=["cat.png"], text=["a cat", "a car"])
      image, text, scale = jax.jit(model.apply)(variables, **batch)

  Of another library's directory `preprocess` does what its preprocessor and
  tokenizer files say. What they ask for and we cannot do is named when that
  input is wanted.

  Args:
    path: workdir of `mmjax train`; or a directory or file with weights, see
      `mmjax.weights.files.open_checkpoint`.
    step: of the workdir's checkpoint; default the newest.

  Raises:
    InputError: neither of both; a workdir whose config no longer fits this
      mmjax; or a checkpoint that no table knows or that is not whole.
    StorageError: the workdir has no checkpoint of that step.
  """
  folder = pathlib.Path(path).absolute()
  config = _run_config(folder)
  if config is None:
    return _foreign(path, step)
  run = setup(
    {**config, "mesh": {"data": 1}},
    workdir=str(folder),
    devices=jax.local_devices()[:1],
  )
  with Checkpoints(folder / "checkpoints", read_only=True) as saved:
    state = saved.restore(
      run.state_shapes, step, only=lambda name: not name.startswith("opt/")
    )
  task: Any = run.task  # every task of ours has a model; the protocol has not
  return Loaded(task.model, state.variables(), of_run(run))


def _run_config(folder: pathlib.Path) -> dict[str, Any] | None:
  """Returns the config of a workdir, None if the folder is none."""
  file = folder / "config.json"
  if not file.is_file():
    if not (folder / "checkpoints").is_dir():
      return None
    raise errors.InputError(
      f"load({str(folder)!r}): there are checkpoints, but no config.json in "
      "it; give the whole workdir of a run of `mmjax train`."
    )
  try:
    config = json.loads(file.read_text())
  except ValueError as e:
    raise errors.InputError(
      f"load({str(folder)!r}): its config.json is damaged ({e}); restore it."
    ) from e
  # The configs of other libraries may well have a task too, by name.
  ours = isinstance(config, dict) and isinstance(config.get("task"), dict)
  return config if ours or (folder / "checkpoints").is_dir() else None


def _foreign(path: str | pathlib.Path, step: int | None) -> Loaded:
  """Loads a checkpoint of another library."""
  if step is not None:
    raise errors.InputError(
      f"load({str(path)!r}, step={step}): only a workdir of `mmjax train` has "
      "steps, and this is none; leave it out."
    )
  loaded = weights.load(path)
  return Loaded(loaded.model, loaded.variables, loaded.preprocess)


def of_run(run: Run) -> Preprocess:
  """Returns what the run's evaluators do to their examples.

  Takes the specs "<key>_pp" of the config's evaluators, the first wins.
  Training has a spec of its own, which may draw captions at random.
  """
  specs: dict[str, str] = {}
  for evaluator in run.config.to_dict()["evals"].values():
    for key, value in evaluator.items():
      if key.endswith("_pp"):
        specs.setdefault(key.removesuffix("_pp"), value)
  return Preprocess(specs, run.tokenizers)
