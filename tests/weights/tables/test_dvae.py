"""The dVAE's table: OpenAI's halves, FLAVA's names, what is refused."""

import math
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from mmjax import build, errors, weights
from mmjax.weights import files, loading
from mmjax.weights.tables import dvae

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"


def checkpoint(shapes, config=None):
  """A checkpoint whose tensors can be asked for their shapes only."""
  tensors = {
    name: files.Tensor(shape, np.dtype("float32"), lambda: 1 / 0)
    for name, shape in shapes.items()
  }
  return files.Checkpoint(pathlib.Path("there"), tensors, config or {})


def half(kind, width=4, blocks=2, first=5, vocab=37):
  """Shapes of a state dict of OpenAI's encoder or decoder."""
  encoder = kind == "encoder"
  found = {
    "blocks.input.w": (width, 3, 7, 7) if encoder else (first, vocab, 1, 1),
    "blocks.output.conv.w": (vocab, 8 * width, 1, 1)
    if encoder
    else (6, width, 1, 1),
  }
  given = width if encoder else first
  for i, n in enumerate((1, 2, 4, 8) if encoder else (8, 4, 2, 1)):
    for j in range(blocks):
      made, hidden = n * width, n * width // 4
      name = f"blocks.group_{i + 1}.block_{j + 1}."
      widths = (given, hidden, hidden, hidden, made)
      for k, s in enumerate((3, 3, 3, 1) if encoder else (1, 3, 3, 3)):
        shape = (widths[k + 1], widths[k], s, s)
        found[f"{name}res_path.conv_{k + 1}.w"] = shape
      if given != made:
        found[f"{name}id_path.w"] = (made, given, 1, 1)
      given = made
  for name, shape in list(found.items()):
    found[name[:-1] + "b"] = shape[:1]
  return found


def under(prefix, shapes):
  return {prefix + name: shape for name, shape in shapes.items()}


def count(found):
  """Returns the parameters of the model that a checkpoint names."""
  recipe = dvae.build(found)
  model = build.build("models", **recipe.model)
  declared = loading._declared(model, recipe)
  loading._check(recipe, found, loading.rules.unbox(declared))
  return sum(math.prod(x.shape) for x in jax.tree.leaves(declared))


FULL = dict(width=256, first=128, vocab=8192)


def test_openais_halves_have_the_published_counts_and_their_place():
  encoder, decoder = half("encoder", **FULL), half("decoder", **FULL)
  assert count(checkpoint(encoder)) == 53_786_240
  assert count(checkpoint(under("encoder.", encoder))) == 53_786_240
  assert count(checkpoint(decoder)) == 43_829_766
  assert count(checkpoint(under("decoder.", decoder))) == 43_829_766
  both = {**under("encoder.", encoder), **under("decoder.", decoder)}
  assert count(checkpoint(both)) == 97_616_006
  recipe = dvae.build(checkpoint(both))
  assert recipe.model["part"] == "both" and recipe.model["first"] == 128
  alone = dvae.build(checkpoint(decoder))
  assert alone.model["part"] == "decoder" and "codes" in alone.inputs


def test_a_decoder_whose_first_group_keeps_the_width_has_no_skip_there():
  decoder = half("decoder", width=4, first=32)
  assert "blocks.group_1.block_1.id_path.w" not in decoder
  assert count(checkpoint(decoder)) == sum(map(math.prod, decoder.values()))


def test_flavas_names_and_the_gain_of_its_groups():
  with np.load(GOLDEN / "dvae_flava.npz") as file:
    shapes = {
      k.removeprefix("tensor/"): file[k].shape
      for k in file.files
      if k.startswith("tensor/")
    }
  assert "blocks.group_1.group.block_1.res_path.path.conv_1.weight" in shapes
  config = dict(model_type="flava_image_codebook", num_groups=3)
  recipe = dvae.build(checkpoint(shapes, config))
  assert recipe.model["gain_layers"] == 3 and recipe.model["blocks"] == 1
  # The same tensors as they stand in FLAVA's own files.
  whole = under("image_codebook.", shapes)
  config = dict(model_type="flava", image_codebook_config=dict(num_groups=5))
  assert count(checkpoint(whole, config)) == count(
    checkpoint(shapes, {"model_type": "flava_image_codebook"})
  )
  assert dvae.build(checkpoint(whole, config)).model["gain_layers"] == 5
  # Without a config the shapes say all but the gain, which is that of 4.
  assert "gain_layers" not in dvae.build(checkpoint(whole)).model
  more = {**whole, "text_model.embeddings.weight": (3, 3)}
  assert dvae.build(checkpoint(more, config)) is None


@pytest.mark.parametrize(
  "field, value",
  [
    ("hidden_size", 16),
    ("vocab_size", 8192),
    ("num_blocks_per_group", 3),
    ("input_channels", 1),
  ],
)
def test_a_config_that_contradicts_is_refused(field, value):
  with pytest.raises(errors.InputError, match=f"{field} = {value}, but"):
    dvae.build(checkpoint(half("encoder"), {field: value}))


def test_halves_of_two_models_and_swapped_names_are_refused():
  encoder, decoder = half("encoder"), half("decoder", width=8)
  both = {**under("encoder.", encoder), **under("decoder.", decoder)}
  with pytest.raises(errors.InputError, match="hidden_size = 8"):
    dvae.build(checkpoint(both))
  with pytest.raises(errors.InputError, match=r"7 pixels.*of the encoder"):
    dvae.build(checkpoint(under("decoder.", encoder)))
  short = half("encoder")
  del short["blocks.group_1.block_1.res_path.conv_1.w"]
  with pytest.raises(errors.InputError, match=r"block_1\.res_path\.conv_1\.w"):
    dvae.build(checkpoint(short))


def test_pickled_modules_are_refused_missing_tensors_are_named(tmp_path):
  (tmp_path / "encoder.pkl").write_bytes(b"\x80\x04.")
  with pytest.raises(errors.InputError, match=r"encoder\.pkl.*not a format"):
    weights.load(tmp_path / "encoder.pkl")
  tensors = {
    name: np.zeros(shape, np.float32) for name, shape in half("encoder").items()
  }
  del tensors["blocks.group_3.block_1.id_path.b"]
  save_file(tensors, tmp_path / "encoder.safetensors")
  with pytest.raises(errors.InputError, match=r"group_3\.block_1\.id_path\.b"):
    weights.load(tmp_path / "encoder.safetensors")


def test_a_directory_with_a_file_for_each_half(tmp_path):
  for kind in ("encoder", "decoder"):
    tensors = {
      name: np.zeros(shape, np.float32) for name, shape in half(kind).items()
    }
    save_file(tensors, tmp_path / f"{kind}.safetensors")
  loaded = weights.load(tmp_path)
  assert loaded.variables["params"].keys() == {"encoder", "decoder"}


def test_other_checkpoints_are_left_alone():
  assert dvae.build(checkpoint({})) is None
  assert dvae.build(checkpoint({"blocks.0.w": (3, 3)})) is None
