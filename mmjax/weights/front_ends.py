"""How a checkpoint's inputs are prepared, from the files beside its weights.

Each input that has such files gets a spec of the operations of `data/`:
`image_front.py` reads `preprocessor_config.json` (or the "image_processor" of
`processor_config.json`), `data/hub_tokenizers.py` the tokenizer.
"""

import dataclasses
from collections.abc import Mapping

from mmjax import errors
from mmjax.weights import image_front
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe


def complete(recipe: Recipe, checkpoint: Checkpoint) -> Recipe:
  """Returns the recipe with a spec for each input that can be prepared.

  What its table gave stays. For other inputs `missing` says why there is none.
  """
  specs, missing = dict(recipe.preprocess), dict(recipe.missing)
  tokenizers = dict(recipe.tokenizers)
  if "image" in recipe.inputs and "image" not in {**specs, **missing}:
    try:
      specs["image"] = image_front.image(
        checkpoint.preprocessor,
        checkpoint.config.get("model_type", ""),
        recipe.inputs,
      )
    except errors.InputError as e:
      missing.setdefault("image", str(e))
  for key, length in recipe.texts.items():
    if key not in specs and checkpoint.path.is_dir():
      tokenizers[key] = {"kind": "hub", "path": str(checkpoint.path)}
      specs[key] = (
        f"tokenize_as_trained({key!r}, {key!r}, length={length}"
        f"{_vocabulary(recipe, key)}{_mask(recipe, key)}"
      )
  for key, suffix in recipe.prompts.items():
    if key not in specs and checkpoint.path.is_dir():
      tokenizers[key] = {"kind": "hub", "path": str(checkpoint.path)}
      specs[key] = (
        f"prompt_as_trained({key!r}, {key!r}, suffix={suffix!r}"
        f"{_vocabulary(recipe, key)})"
      )
  with_image = image_front.of_patches(recipe.inputs).values()
  for key in recipe.inputs:
    if key not in specs and key not in with_image:
      missing.setdefault(
        key, f"mmjax has no operations that prepare {key} for {recipe.table}."
      )
  told = {
    key: f"preprocess {key}: {_way_out(reason, recipe, key)}"
    for key, reason in missing.items()
  }
  return dataclasses.replace(
    recipe, preprocess=specs, tokenizers=tokenizers, missing=told
  )


def _vocabulary(recipe: Recipe, key: str) -> str:
  """Returns the argument with the size of the model's, where it says it."""
  part = recipe.model.get("language" if key in recipe.prompts else key)
  model = part if isinstance(part, Mapping) else recipe.model
  size = model.get("vocab_size")
  return "" if size is None else f", vocab_size={size}"


def _mask(recipe: Recipe, key: str) -> str:
  """Returns the end of a text's spec, which keeps a mask where it is needed."""
  if key not in recipe.masks:
    return f")|keep({key!r})"
  mask = recipe.masks[key]
  return f", mask={mask!r})|keep({key!r}, {mask!r})"


def _way_out(reason: str, recipe: Recipe, key: str) -> str:
  if key not in recipe.inputs:
    return reason
  shape, dtype = recipe.inputs[key]
  axes = " ".join(map(str, shape[1:]))
  return (
    f"{reason} Or give arrays to the model yourself: {key} = {dtype} [B {axes}], "
    "as the model's card says."
  )
