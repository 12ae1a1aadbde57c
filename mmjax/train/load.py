"""A model from a workdir or a foreign checkpoint, to use in ten lines."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from flax import linen as nn

from mmjax import errors, weights
from mmjax.data import preprocess as preprocessing
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
  preprocess: "Preprocess"


def load(path: str | pathlib.Path, *, step: int | None = None) -> Loaded:
  """Loads a model from a workdir, or another library's checkpoint.

  It comes onto one device; `mmjax.weights.load` takes a mesh.

      model, variables, preprocess = mmjax.load("runs/emoji")
      batch = preprocess(image=["cat.png"], text=["a cat", "a car"])
      image, text, scale = jax.jit(model.apply)(variables, **batch)

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
  return Loaded(task.model, state.variables(), Preprocess.of(run))


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
  model, variables, recipe = weights.load(path)
  missing = {}
  for key, (shape, dtype) in recipe.inputs.items():
    if key in recipe.preprocess:
      continue
    axes = " ".join(map(str, shape[1:]))
    missing[key] = (
      f"preprocess {key}: mmjax has no operations that prepare it exactly as "
      f"{str(path)!r} was trained; give arrays to the model yourself: {key} = "
      f"{dtype} [B {axes}], as preprocessor_config.json or the model's card "
      "says."
    )
  return Loaded(
    model, variables, Preprocess(dict(recipe.preprocess), {}, missing)
  )


class Preprocess:
  """What the run's evaluators do to their examples, for examples of yours.

  Attributes:
    specs: {key: spec}; "image" and "text" for a dual encoder.
    missing: {key: why there is no spec}; what is raised if it is wanted.
  """

  def __init__(
    self,
    specs: dict[str, str],
    tokenizers: Any,
    missing: dict[str, str] | None = None,
  ) -> None:
    self.specs = specs
    self.missing = missing or {}
    self._ops = {
      key: preprocessing.parse(spec, tokenizers) for key, spec in specs.items()
    }

  @classmethod
  def of(cls, run: Run) -> "Preprocess":
    """Takes the specs "<key>_pp" of the config's evaluators, the first wins.

    Training has a spec of its own, which may draw captions at random.
    """
    specs: dict[str, str] = {}
    for evaluator in run.config.to_dict()["evals"].values():
      for key, value in evaluator.items():
        if key.endswith("_pp"):
          specs.setdefault(key.removesuffix("_pp"), value)
    return cls(specs, run.tokenizers)

  def __call__(self, **examples: Sequence[Any]) -> dict[str, np.ndarray]:
    """Returns a batch for `model.apply`.

    Args:
      **examples: a list for each key that is wanted. An image is a path, the
        bytes of a file, or uint8 [Y X C]; a text is a str.

    Returns:
      {key: array whose first axis is the list's}; images float32 in [-1, 1].

    Raises:
      InputError: unknown key, one that cannot be prepared, or images that
        differ in size.
    """
    batch = {}
    for key, values in examples.items():
      if key not in self._ops:
        if key in self.missing:
          raise errors.InputError(self.missing[key])
        known = {**self._ops, **self.missing}
        raise errors.unknown("preprocess keyword", key, known)
      rng = np.random.default_rng(0)
      rows = [
        np.asarray(self._ops[key]({key: _read(key, x)}, rng)[key])
        for x in ([values] if isinstance(values, str | bytes) else values)
      ]
      if len({row.shape for row in rows}) != 1:
        raise errors.InputError(
          f"preprocess {key}: the examples differ in size or there are none; "
          f"the spec is {self.specs[key]!r}, resize them before."
        )
      array = np.stack(rows)
      if array.dtype == np.uint8:
        array = array.astype(np.float32) / 127.5 - 1
      batch[key] = array
    return batch


def _read(key: str, value: Any) -> Any:
  """Returns the bytes of an image that is given by its path or its pixels."""
  if key != "image":
    return value
  if isinstance(value, str | pathlib.Path):
    path = pathlib.Path(value)
    if not path.is_file():
      raise errors.InputError(f"preprocess image = {value!r}: no such file.")
    return path.read_bytes()
  if isinstance(value, np.ndarray):
    # The specs begin with "decode"; PNG loses nothing.
    return cv2.imencode(".png", value[..., ::-1])[1].tobytes()
  return value
