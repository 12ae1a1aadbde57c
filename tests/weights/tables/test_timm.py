"""timm's names: sizes read off the tensors, and what these do not tell."""

import math
import pathlib

import jax
import numpy as np
import pytest

from mmjax import build, errors
from mmjax.weights import files, loading
from mmjax.weights.tables import timm


def vit(
  width=768,
  depth=12,
  mlp=3072,
  patch=16,
  channels=3,
  positions=197,
  registers=0,
  norm="norm",
  classes=1000,
):
  """Returns {name: shape}, written out by hand."""
  found = {
    "cls_token": (1, 1, width),
    "pos_embed": (1, positions, width),
    "patch_embed.proj.weight": (width, channels, patch, patch),
    "patch_embed.proj.bias": (width,),
    f"{norm}.weight": (width,),
    f"{norm}.bias": (width,),
  }
  if registers:
    found["reg_token"] = (1, registers, width)
  if classes:
    found |= {"head.weight": (classes, width), "head.bias": (classes,)}
  for n in range(depth):
    for name, shape in {
      "norm1": (width,),
      "norm2": (width,),
      "attn.qkv": (3 * width, width),
      "attn.proj": (width, width),
      "mlp.fc1": (mlp, width),
      "mlp.fc2": (width, mlp),
    }.items():
      found[f"blocks.{n}.{name}.weight"] = shape
      found[f"blocks.{n}.{name}.bias"] = shape[:1]
  return found


def checkpoint(shapes, config=None):
  tensors = {
    name: files.Tensor(shape, np.dtype("float32"), lambda: 1 / 0)
    for name, shape in shapes.items()
  }
  return files.Checkpoint(pathlib.Path("there"), tensors, config or {})


def count(found, recipe):
  """Every tensor has its place; returns the number of parameters."""
  model = build.build("models", **recipe.model)
  declared = loading._declared(model, recipe)
  loading._check(recipe, found, loading.rules.unbox(declared))
  return sum(math.prod(x.shape) for x in jax.tree.leaves(declared))


def test_base_has_the_published_count_and_every_tensor_its_place():
  found = checkpoint(vit())
  recipe = timm.build(found)
  assert count(found, recipe) == 86_567_656
  assert recipe.model["heads"] == 12 and recipe.model["pool"] == "tok"
  assert recipe.inputs == {"image": ((1, 224, 224, 3), "float32")}


def test_audiomae_is_one_channel_of_128_mels():
  shapes = vit(channels=1, positions=513, norm="fc_norm", classes=0)
  found = checkpoint(shapes)
  recipe = timm.build(found)
  assert count(found, recipe) == 85_648_128  # 85.66M with a small head
  assert recipe.inputs == {"audio": ((1, 1024, 128), "float32")}
  # Of its pretraining, the encoder.
  shapes |= {"decoder_embed.weight": (512, 768), "mask_token": (1, 1, 512)}
  found = checkpoint(shapes)
  assert count(found, timm.build(found)) == 85_648_128


def test_deits_own_files_have_two_tokens_and_two_heads():
  shapes = vit(192, 12, 768, positions=198)
  shapes |= {
    "dist_token": (1, 1, 192),
    "head_dist.weight": (1000, 192),
    "head_dist.bias": (1000,),
  }
  found = checkpoint(shapes)
  recipe = timm.build(found)
  assert count(found, recipe) == 5_910_800
  assert recipe.model["pool"] == "pair"


def test_tokens_with_and_without_positions():
  for positions, placed in ((257, True), (256, False)):
    found = checkpoint(vit(positions=positions, registers=4))
    recipe = timm.build(found)
    assert recipe.model["token_posemb"] == placed
    assert recipe.inputs["image"][0] == (1, 256, 256, 3)
    assert count(found, recipe)


def test_the_config_says_what_tensors_do_not():
  config = dict(
    architecture="vit_base_patch16_clip_quickgelu_224",
    global_pool="avg",
    model_args=dict(num_heads=6, img_size=[112, 448]),
  )
  recipe = timm.build(checkpoint(vit(), config))
  assert recipe.model["heads"] == 6 and recipe.model["act"] == "quick_gelu"
  assert recipe.model["pool"] == "gap"
  assert recipe.inputs["image"][0] == (1, 112, 448, 3)


@pytest.mark.parametrize(
  "shapes, config, words",
  [
    (dict(width=96), {}, r"12 blocks of width 96.*num_heads"),
    (dict(positions=211), {}, r"pos_embed has 211.*img_size"),
    ({}, dict(model_args=dict(img_size=240)), "pos_embed has 197"),
    ({}, dict(model_args=dict(qk_norm=True)), "model_args.*'qk_norm'"),
    ({}, dict(global_pool="map"), "global_pool = 'map'"),
  ],
)
def test_what_cannot_be_followed_is_named(shapes, config, words):
  with pytest.raises(errors.InputError, match=words):
    timm.build(checkpoint(vit(**shapes), config))


def test_other_checkpoints_are_not_its_own():
  assert timm.build(checkpoint({"blocks.0.attn.qkv.weight": (3, 1)})) is None
  assert timm.build(checkpoint(vit(), {"model_type": "hiera"})) is None


def test_gates_are_told_by_the_shapes(recorded):
  loaded, out, want = recorded("timm_registers")
  assert loaded.model.gated and loaded.model.registers == 3
  np.testing.assert_allclose(
    out[0], want["0"], atol=1e-5 * np.abs(want["0"]).max()
  )


def siglip(heads=12, width=768):
  """Returns the shapes of a SigLIP's image encoder of 224 pixels."""
  shapes = vit(positions=196, classes=0)
  del shapes["cls_token"]
  for name, shape in {
    "q": (width, width),
    "kv": (2 * width, width),
    "proj": (width, width),
    "norm": (width,),
    "mlp.fc1": (3072, width),
    "mlp.fc2": (width, 3072),
  }.items():
    shapes[f"attn_pool.{name}.weight"] = shape
    shapes[f"attn_pool.{name}.bias"] = shape[:1]
  return shapes | {"attn_pool.latent": (1, 1, width)}


def test_siglip_has_the_published_count_and_a_pool_that_attends():
  name = "vit_base_patch16_siglip_224"
  found = checkpoint(siglip(), dict(architecture=name, global_pool="map"))
  recipe = timm.build(found)
  assert count(found, recipe) == 92_884_224
  assert recipe.model["pool"] == "map" and recipe.model["act"] == "gelu_exact"


@pytest.mark.parametrize(
  "architecture, act",
  [
    ("vit_base_patch32_siglip_256", "gelu"),
    ("vit_so400m_patch16_siglip_gap_384", "gelu"),
    ("vit_giantopt_patch16_siglip_384", "gelu"),
    ("vit_large_patch16_siglip_512", "gelu"),
    ("vit_large_patch16_siglip_384", "gelu_exact"),
    ("vit_so400m_patch14_siglip_384", "gelu_exact"),
  ],
)
def test_the_architecture_says_which_gelu(architecture, act):
  config = dict(architecture=architecture)
  assert timm.build(checkpoint(siglip(), config)).model["act"] == act
  config["model_args"] = dict(act_layer="quick_gelu")
  recipe = timm.build(checkpoint(siglip(), config))
  assert recipe.model["act"] == "quick_gelu"


@pytest.mark.parametrize(
  "shapes, config, message",
  [
    (siglip, dict(global_pool="avg"), "'avg', but there is an attn_pool"),
    (vit, dict(global_pool="map"), "'map', but there is no attn_pool"),
    (vit, dict(model_args=dict(act_layer="mish")), "act_layer = 'mish'"),
  ],
)
def test_pools_and_activations_that_cannot_be_are_named(
  shapes, config, message
):
  with pytest.raises(errors.InputError, match=message):
    timm.build(checkpoint(shapes(), config))
