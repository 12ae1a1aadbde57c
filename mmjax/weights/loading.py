"""From a checkpoint of any library to a model with its variables, and back.

`load` finds the table of `weights/tables/` that knows the checkpoint, builds
the model it names, and moves tensor after tensor to where it lives. `export`
goes the same way back.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from safetensors import numpy as safetensors

from mmjax import build, errors
from mmjax.data.examples import Preprocess
from mmjax.parallel import mesh, rules
from mmjax.weights import files, front_ends, rename
from mmjax.weights.recipe import Recipe

FORMATS = ("hf", "npz")
_SHOWN = 10


class Loaded(NamedTuple):
  """A model with its weights.

  Attributes:
    model: Linen module.
    variables: {"params": ..., **statistics}, nested.
    recipe: how it was read: the table, the model's keywords, preprocessing.
  """

  model: nn.Module
  variables: dict[str, Any]
  recipe: Recipe

  @property
  def preprocess(self) -> Preprocess:
    """Turns images and texts into the model's arguments."""
    recipe = self.recipe
    return Preprocess.build(
      recipe.preprocess,
      recipe.tokenizers,
      recipe.missing,
      {suffix: prompt for prompt, suffix in recipe.prompts.items()},
    )


def load(
  path: str | pathlib.Path,
  *,
  layout: rules.Layout | None = None,
  dtype: str | None = None,
) -> Loaded:
  """Loads a checkpoint of any format and family that is known.

  Tensors are read one by one and copied straight to the devices where they
  live, so that the host holds one of them beside its own shards.

  Args:
    path: directory or file; see `files.open_checkpoint`.
    layout: where parameters live; None is the first local device.
    dtype: of the parameters, not of statistics; None is float32.

  Raises:
    InputError: a checkpoint that no table knows, or whose tensors do not fit
      the model of its config; names the first of them.
  """
  checkpoint = files.open_checkpoint(path)
  if layout is None:
    layout = rules.Layout(mesh.make_mesh({}, jax.local_devices()[:1]))
  recipe, model, shapes = _modelled(checkpoint)
  _check(recipe, checkpoint, rules.unbox(shapes))
  places = _flat(rules.shardings(layout, shapes))
  wanted = _flat(rules.unbox(shapes))
  flat = {}
  for rule in recipe.rules:
    leaf = wanted[rule.name]
    # Statistics stay in float32, as the model computes with them.
    held = dtype if rule.collection == "params" else None
    kind = np.dtype(held or leaf.dtype)
    flat[rule.name] = _place(
      rule, leaf.shape, kind, places[rule.name], checkpoint
    )
  variables = traverse_util.unflatten_dict(flat, sep="/")
  kept = _kept(recipe, checkpoint, rules.unbox(shapes))
  return Loaded(model, variables, dataclasses.replace(recipe, kept=kept))


def _modelled(checkpoint: files.Checkpoint) -> tuple[Recipe, nn.Module, Any]:
  """Returns the recipe, its model, and the model's variables as shapes."""
  try:
    recipe = front_ends.complete(recognise(checkpoint), checkpoint)
    model = build.build("models", **recipe.model)
    shapes = _declared(model, recipe)
  except (TypeError, KeyError, AttributeError, ZeroDivisionError) as e:
    # A config holds what it likes, "12" for 12: tables do not ask each time.
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: no model of model_type = "
      f"{checkpoint.config.get('model_type')!r} can be made of its config and "
      f"tensors ({type(e).__name__}: {e}). Look for a number written as text, "
      "a null, or a list where one number is meant."
    ) from e
  # A stack of no layers has no leaves, whatever a table says of them; tensors
  # of such layers are found by `_check`, as those without a place.
  leaves = _flat(rules.unbox(shapes))
  there = [r for r in recipe.rules if r.name in leaves or not r.stacked]
  return dataclasses.replace(recipe, rules=there), model, shapes


def recognise(checkpoint: files.Checkpoint) -> Recipe:
  """Returns the recipe of the one table that knows the checkpoint.

  Raises:
    InputError: none does.
  """
  for name in build.names("weights.tables"):
    found = build.load("weights.tables", name).build(checkpoint)
    if found is not None:
      return found
  path = checkpoint.path
  hint = ""
  if path.is_file() and (path.parent / files.CONFIG).is_file():
    hint = f" There is a config beside it: give {str(path.parent)!r}."
  kind = checkpoint.config.get("model_type")
  names = sorted(checkpoint.tensors)
  raise errors.InputError(
    f"weights path = {str(path)!r}: no table knows this checkpoint "
    f"(model_type = {kind!r}; {len(names)} tensors, the first "
    f"{', '.join(names[:3])}). Known tables: "
    f"{', '.join(build.names('weights.tables'))}.{hint}"
  )


def _declared(model: nn.Module, recipe: Recipe) -> Any:
  """Returns the model's variables as boxed shapes."""
  return _traced(model, tuple(recipe.inputs.items()))


@functools.lru_cache(maxsize=8)  # tracing is what takes time with small models
def _traced(model: nn.Module, inputs: tuple[tuple[str, Any], ...]) -> Any:
  def init():
    example: Any = {
      name: jnp.zeros(shape, kind) for name, (shape, kind) in inputs
    }
    return model.init(jax.random.key(0), **example)

  return jax.eval_shape(init)


def _check(recipe: Recipe, checkpoint: files.Checkpoint, shapes: Any) -> None:
  """Raises InputError unless every tensor has its place and its shape."""
  wanted = _flat(shapes)
  ruled = {rule.name for rule in recipe.rules}
  if ruled != set(wanted):
    raise AssertionError(
      f"table {recipe.table}: rules without a leaf "
      f"{sorted(ruled - set(wanted))}, leaves without a rule "
      f"{sorted(set(wanted) - ruled)}"
    )
  shaped: list[str] = []
  for rule in recipe.rules:
    leaf = wanted[rule.name]
    sources = _sources(rule, leaf.shape)
    layer = leaf.shape[1:] if rule.stacked else leaf.shape
    for source in sources:
      if source not in checkpoint.tensors:
        continue
      tensor = checkpoint.tensors[source]
      try:
        got = rule.read(np.broadcast_to(np.float32(0), tensor.shape)).shape
      except (ValueError, IndexError):
        got = None
      if got != layer or (rule.stacked and leaf.shape[0] != len(sources)):
        shaped.append(f"{source} {tensor.shape} for {rule.ours} {layer}")
  given, named = set(checkpoint.tensors), _named(recipe, wanted)
  missing = sorted(named - given)
  extra = sorted(n for n in given - named if not recipe.ignored(n))
  problems = []
  if missing:
    near = errors.nearest(missing[0], extra)
    hint = f" (nearest: {near})" if near else ""
    problems.append(f"{_few(missing)} missing{hint}")
  if extra:
    problems.append(f"{_few(extra)} not expected")
  if shaped:
    problems.append(f"{_few(sorted(set(shaped)))} of another shape")
  if problems:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: its tensors do not fit the "
      f"{recipe.table} model of its config: {'; '.join(problems)}. Check that "
      "config and weights are of one model."
    )


def _sources(rule: rename.Rule, shape: Sequence[int]) -> list[str]:
  """Returns the names of the tensors that a leaf of this shape is made of."""
  return rule.sources(shape[0] if rule.stacked else 1)


def _named(recipe: Recipe, wanted: Mapping[str, Any]) -> set[str]:
  """Returns the names of all tensors that leaves are made of."""
  found = (_sources(rule, wanted[rule.name].shape) for rule in recipe.rules)
  return {name for names in found for name in names}


def _kept(
  recipe: Recipe, checkpoint: files.Checkpoint, shapes: Any
) -> dict[str, np.ndarray]:
  """Reads what no leaf is made of, but what is to be written again."""
  named = _named(recipe, _flat(shapes))
  kept = {}
  for name, tensor in checkpoint.tensors.items():
    if name not in named and recipe.keeps(name):
      array = tensor.read()
      # As of the leaves, not every format can hold bfloat16.
      half = jnp.issubdtype(array.dtype, jnp.floating) and array.itemsize < 4
      kept[name] = array.astype(np.float32) if half else array
  return kept


def _flat(tree: Any) -> dict[str, Any]:
  """Returns {"params/norm/scale": leaf, ...}."""
  return traverse_util.flatten_dict(tree, sep="/")


def _few(names: Sequence[str]) -> str:
  more = len(names) - _SHOWN
  shown = ", ".join(names[:_SHOWN])
  return f"{len(names)} tensors ({shown}{', ...' if more > 0 else ''})"


def _place(
  rule: rename.Rule,
  shape: tuple[int, ...],
  dtype: Any,
  sharding: Any,
  checkpoint: files.Checkpoint,
) -> jax.Array:
  """Makes a leaf on its devices from the tensors that it is made of.

  Each tensor is read once, whatever the number of devices: beside the shards,
  which JAX on CPU takes over without a copy, the host holds one tensor.
  """
  places = sharding.addressable_devices_indices_map(shape).values()
  shards = {
    key: _empty([stop - start for start, stop in key], dtype)
    for key in {_ends(index, shape) for index in places}
  }
  for i, source in enumerate(_sources(rule, shape)):
    read = rule.read(checkpoint.tensors[source].read())
    for key, shard in shards.items():
      inner = tuple(slice(*ends) for ends in key[rule.stacked :])
      if not rule.stacked:
        shard[...] = read[inner]
      elif key[0][0] <= i < key[0][1]:
        shard[i - key[0][0]] = read[inner]
    del read  # before the next one is read
  return jax.make_array_from_callback(
    shape, sharding, lambda index: shards[_ends(index, shape)]
  )


def _ends(index: Any, shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
  """Returns (start, stop) of each slice of a shard's index."""
  return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))


def _empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
  """Returns an array on a boundary of 64 bytes, which JAX on CPU can adopt."""
  size = int(np.prod(shape)) * np.dtype(dtype).itemsize
  raw = np.empty(size + 64, np.uint8)
  start = -raw.ctypes.data % 64
  return raw[start : start + size].view(dtype).reshape(shape)


def export(
  loaded: Loaded, to: str | pathlib.Path, *, format: str = "hf"
) -> pathlib.Path:
  """Writes a model in the layout of the library that it came from.

  Args:
    loaded: what `load` returned, its variables perhaps trained further.
    to: directory to make; files in it are replaced.
    format: "hf", config.json and model.safetensors; or "npz", one model.npz
      that holds the config too.

  Returns:
    The path of the file with the weights. `load` of it, or of `to`, gives the
    same variables, bitwise.

  Raises:
    InputError: an unknown format.
  """
  if format not in FORMATS:
    raise errors.unknown("weights export --format", format, FORMATS)
  flat = _flat(loaded.variables)
  leaves = {name: np.asarray(jax.device_get(x)) for name, x in flat.items()}
  tensors = rename.write(loaded.recipe.rules, leaves)
  tensors |= loaded.recipe.kept
  config: Mapping[str, Any] = loaded.recipe.config
  folder = pathlib.Path(to)
  folder.mkdir(parents=True, exist_ok=True)
  if format == "npz":
    path = folder / "model.npz"
    if config:
      tensors[files.EMBEDDED] = np.array(json.dumps(config))
    np.savez(path, allow_pickle=False, **tensors)
    return path
  path = folder / "model.safetensors"
  if config:
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / files.CONFIG).write_text(text)
  safetensors.save_file(tensors, path, metadata={"format": "pt"})
  return path
