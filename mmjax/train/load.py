"""A trained model back from its workdir, to use in ten lines."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from flax import linen as nn

from mmjax import errors
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
  """Loads a model from the workdir of a run, onto one device.

      model, variables, preprocess = mmjax.load("runs/emoji")
      batch = preprocess(image=["cat.png"], text=["a cat", "a car"])
      image, text, scale = jax.jit(model.apply)(variables, **batch)

  Args:
    path: workdir of `mmjax train`.
    step: of the checkpoint; default the newest.

  Raises:
    InputError: no such workdir, or its config no longer fits this mmjax.
    StorageError: it has no checkpoint of that step.
  """
  folder = pathlib.Path(path).absolute()
  if not (folder / "config.json").is_file():
    raise errors.InputError(
      f"load({str(path)!r}): there is no config.json in it; give the workdir "
      "of a run of `mmjax train`."
    )
  config = json.loads((folder / "config.json").read_text())
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


class Preprocess:
  """What the run's evaluators do to their examples, for examples of yours.

  Attributes:
    specs: {key: spec}; "image" and "text" for a dual encoder.
  """

  def __init__(self, specs: dict[str, str], tokenizers: Any) -> None:
    self.specs = specs
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
      InputError: unknown key, or images that differ in size.
    """
    batch = {}
    for key, values in examples.items():
      if key not in self._ops:
        raise errors.unknown("preprocess keyword", key, self._ops)
      rng = np.random.default_rng(0)
      rows = [
        np.asarray(self._ops[key]({key: _read(key, x)}, rng)[key])
        for x in ([values] if isinstance(values, str | bytes) else values)
      ]
      if len({row.shape for row in rows}) != 1:
        raise errors.InputError(
          f"preprocess {key}: the examples differ in size or there are none; "
          f"the run's spec is {self.specs[key]!r}, resize them before."
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
