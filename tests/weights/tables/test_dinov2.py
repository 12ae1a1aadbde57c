"""DINOv2's table: published counts, registers, gates, traps."""

import math
import pathlib

import jax
import numpy as np
import pytest

from mmjax import build, errors
from mmjax.weights import files, loading

# As in facebook/dinov2-small, -base and -giant.
BASE = dict(
  model_type="dinov2",
  hidden_act="gelu",
  hidden_size=768,
  image_size=518,
  layer_norm_eps=1e-6,
  layerscale_value=1.0,
  mlp_ratio=4,
  num_attention_heads=12,
  num_channels=3,
  num_hidden_layers=12,
  patch_size=14,
  qkv_bias=True,
  use_swiglu_ffn=False,
)
SMALL = BASE | dict(hidden_size=384, num_attention_heads=6)
GIANT = BASE | dict(
  hidden_size=1536,
  num_attention_heads=24,
  num_hidden_layers=40,
  use_swiglu_ffn=True,
)
REGISTERS = SMALL | dict(
  model_type="dinov2_with_registers", num_register_tokens=4
)


@pytest.mark.parametrize(
  "config, published",
  [
    (SMALL, 22_056_576),
    (BASE, 86_580_480),
    (GIANT, 1_136_480_768),
    (REGISTERS, 22_058_112),
  ],
)
def test_published_parameter_counts(declared, config, published):
  recipe, leaves = declared(config)
  # The mask token is read in pretraining only.
  count = sum(math.prod(x.shape) for x in leaves.values())
  assert count + config["hidden_size"] == published
  assert recipe.ignored("embeddings.mask_token")


def test_gates_are_two_thirds_and_come_first(recorded):
  given = {}
  loaded, _, _ = recorded("dinov2_gated", tensors=given.update)
  assert (loaded.model.mlp, loaded.model.act) == (24, "silu")

  def swapped(tensors):
    name = "dinov2.encoder.layer.1.mlp.weights_in.weight"
    tensors[name] = np.roll(tensors[name], 24, axis=0)

  other, _, _ = recorded("dinov2_gated", tensors=swapped)
  mlp, turned = (
    x.variables["params"]["encoder"]["blocks"]["mlp"] for x in (loaded, other)
  )
  np.testing.assert_array_equal(
    mlp["gate"]["kernel"][1], turned["up"]["kernel"][1]
  )
  np.testing.assert_array_equal(
    mlp["gate"]["kernel"][0], turned["gate"]["kernel"][0]
  )


def test_registers_widen_the_kernel_when_positions_shrink(recorded):
  _, out, want = recorded("dinov2_registers")
  assert out[1]["tokens"].shape == (2, 1 + 3 + 2 * 6, 16)

  # Told to be without the wider kernel, the same weights miss the reference.
  def plain(config):
    config["model_type"] = "dinov2"

  def without(tensors):
    for name in list(tensors):
      value = tensors.pop(name)
      if not name.endswith("register_tokens"):
        tensors[name.replace("dinov2_with_registers.", "dinov2.")] = value

  _, other, _ = recorded("dinov2_registers", config=plain, tensors=without)
  assert np.abs(other[0] - want["0"]).max() > 1e-3


def test_unknown_registers_and_rectangular_patches_are_refused(recorded):
  def more(config):
    config["num_register_tokens"] = 5

  with pytest.raises(errors.InputError, match="register_tokens"):
    recorded("dinov2_registers", config=more)

  def oblong(config):
    config["patch_size"] = [7, 6]

  with pytest.raises(errors.InputError, match=r"patch_size = \[7, 6\]"):
    recorded("dinov2_registers", config=oblong)


def official(width=384, depth=12, mlp=1536, registers=0, gated=False):
  """Returns the shapes of an official file, written out by hand."""
  found = {
    "cls_token": (1, 1, width),
    "pos_embed": (1, 1 + 37 * 37, width),
    "mask_token": (1, width),
    "patch_embed.proj.weight": (width, 3, 14, 14),
    "patch_embed.proj.bias": (width,),
    "norm.weight": (width,),
    "norm.bias": (width,),
  }
  if registers:
    found["register_tokens"] = (1, registers, width)
  up, down = ("mlp.w12", "mlp.w3") if gated else ("mlp.fc1", "mlp.fc2")
  for n in range(depth):
    b = f"blocks.{n}."
    for name, shape in {
      "norm1": (width,),
      "attn.qkv": (3 * width, width),
      "attn.proj": (width, width),
      "norm2": (width,),
      up: ((1 + gated) * mlp, width),
      down: (width, mlp),
    }.items():
      found |= {f"{b}{name}.weight": shape, f"{b}{name}.bias": shape[:1]}
    found |= {f"{b}ls1.gamma": (width,), f"{b}ls2.gamma": (width,)}
  return found


def opened(shapes, config=None):
  tensors = {
    name: files.Tensor(shape, np.dtype("float32"), lambda: 1 / 0)
    for name, shape in shapes.items()
  }
  return files.Checkpoint(pathlib.Path("there"), tensors, config or {})


@pytest.mark.parametrize(
  "shapes, published, heads, method",
  [
    (official(), 22_056_576, 6, "bicubic_offset"),
    (official(registers=4), 22_058_112, 6, "bicubic_antialias"),
    (official(1536, 40, 4096, 0, True), 1_136_480_768, 24, "bicubic_offset"),
  ],
)
def test_its_authors_files(shapes, published, heads, method):
  found = opened(shapes)
  recipe = loading.recognise(found)
  model = build.build("models", **recipe.model)
  leaves = loading._declared(model, recipe)
  loading._check(recipe, found, loading.rules.unbox(leaves))
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(leaves))
  assert count + recipe.model["width"] == published  # the mask token
  assert recipe.table == "dinov2" and recipe.model["heads"] == heads
  assert recipe.model["interpolate"] == method
  # What is written has no mask token, but says what it is.
  del shapes["mask_token"]
  assert loading.recognise(opened(shapes, recipe.config)).model == recipe.model


@pytest.mark.parametrize(
  "said, words",
  [
    (dict(num_heads=7), "num_heads = 7 does not divide"),
    (dict(patch_size=16), "patch_size = 16: the tensors have 14"),
    (dict(interpolate_offset=0.2), "'interpolate_offset': 0.2.*known are"),
    (dict(block_chunks=4), "model_args.*'block_chunks'"),
  ],
)
def test_arguments_of_its_authors_that_contradict(said, words):
  with pytest.raises(errors.InputError, match=words):
    loading.recognise(opened(official(), {"model_args": said}))


def test_chunks_and_odd_positions_of_its_authors_files():
  shapes = {
    k.replace("blocks.", "blocks.0."): v
    for k, v in official(registers=4).items()
  }
  with pytest.raises(errors.InputError, match="block_chunks=0"):
    loading.recognise(opened(shapes))
  shapes = official() | {"pos_embed": (1, 1 + 37 * 36, 384)}
  with pytest.raises(errors.InputError, match=r"1332 positions.*no square"):
    loading.recognise(opened(shapes))


def test_the_offset_of_the_scale_matters(recorded):
  """Of the same weights read as the hub's do, the reference is missed."""
  _, out, want = recorded("dinov2_official")

  def plain(config):
    config["model_args"]["interpolate_offset"] = 0.0

  _, other, _ = recorded("dinov2_official", config=plain)
  scale = np.abs(want["0"]).max()
  assert np.abs(out[0] - want["0"]).max() < 1e-5 * scale
  assert np.abs(other[0] - want["0"]).max() > 1e-3 * scale


def test_no_registers_may_be_an_empty_tensor(recorded):
  name = "embeddings.register_tokens"

  def none(tensors):
    tensors[name] = tensors[name][:, :0]

  def config(found):
    found["num_register_tokens"] = 0

  loaded, out, _ = recorded("dinov2_registers_encoder", config, none)
  assert np.isfinite(out[0]).all()
  assert loaded.recipe.kept[name].shape[1] == 0
  assert "registers" not in loaded.variables["params"]
  with pytest.raises(errors.InputError, match=r"register_tokens.*not expected"):
    recorded("dinov2_registers_encoder", config)
