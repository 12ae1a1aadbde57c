"""Checkpoints for the tests of tables: recorded ones, and mere configs."""

import copy
import json
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from mmjax import build, weights
from mmjax.weights import files, loading

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.fixture
def recorded(tmp_path) -> Callable[..., Any]:
  """Loads a case of tests/golden and computes it.

  Takes its name and functions that change its config and its tensors in
  place. Returns what was loaded, our outputs, and the reference's by path.
  """

  def load(name, config=None, tensors=None, inputs=None):
    with np.load(GOLDEN / f"{name}.npz") as file:
      found = json.loads(str(file["config"]))
      parts = {"tensor": {}, "input": {}, "output": {}, "generate": {}}
      for key in file.files:
        kind, _, rest = key.partition("/")
        if kind in parts:
          parts[kind][rest] = file[key]
    for change, what in (
      (config, found),
      (tensors, parts["tensor"]),
      (inputs, parts["input"]),
    ):
      if change:
        change(what)
    (tmp_path / "config.json").write_text(json.dumps(found))
    save_file(parts["tensor"], tmp_path / "model.safetensors")
    loaded = weights.load(tmp_path)
    given = {k: jnp.asarray(v) for k, v in parts["input"].items()}
    out = jax.jit(loaded.model.apply)(loaded.variables, **given)
    return loaded, out, parts["output"]

  return load


@pytest.fixture
def declared() -> Callable[[dict[str, Any]], tuple[Any, dict[str, Any]]]:
  """Recognises a config without weights; declares its model.

  Returns the recipe and the leaves' shapes by name, each with its rule.
  """

  def declare(config):
    empty = files.Checkpoint(pathlib.Path("x"), {}, copy.deepcopy(config))
    recipe = loading.recognise(empty)
    model = build.build("models", **recipe.model)
    inputs = {k: jnp.zeros(*v) for k, v in recipe.inputs.items()}
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs))
    leaves = traverse_util.flatten_dict(nn.unbox(shapes), sep="/")
    assert leaves.keys() == {rule.name for rule in recipe.rules}
    return recipe, leaves

  return declare
