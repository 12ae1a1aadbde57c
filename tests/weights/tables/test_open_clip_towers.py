"""open_clip with towers of timm and the hub: counts, pieces, refusals."""

import copy
import json
import math
import pathlib

import jax
import numpy as np
import pytest

from mmjax import build, errors
from mmjax.weights import files, loading

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"


def recorded(name, change=None, tensors=None):
  """Returns a recorded checkpoint, changed, of which only shapes are there."""
  with np.load(GOLDEN / f"{name}.npz") as file:
    config = json.loads(str(file["config"]))
    shapes = {
      key.removeprefix("tensor/"): file[key].shape
      for key in file.files
      if key.startswith("tensor/")
    }
  if change:
    change(config["model_cfg"])
  if tensors:
    tensors(shapes)
  return opened(shapes, config)


def opened(shapes, config):
  found = {
    name: files.Tensor(shape, np.dtype("float32"), lambda: 1 / 0)
    for name, shape in shapes.items()
  }
  return files.Checkpoint(pathlib.Path("there"), found, copy.deepcopy(config))


def checked(checkpoint):
  """Every tensor has its place; returns the recipe and the parameters."""
  recipe = loading.recognise(checkpoint)
  assert recipe.table == "open_clip_towers"
  model = build.build("models", **recipe.model)
  declared = loading._declared(model, recipe)
  loading._check(recipe, checkpoint, loading.rules.unbox(declared))
  leaves = jax.tree.leaves(declared)
  return recipe, sum(math.prod(x.shape) for x in leaves)


def layers(found, block, width, mlp, names):
  for name, shape in dict(
    zip(
      names,
      ((width,), (width,), (width, width), (mlp, width), (width, mlp)),
      strict=True,
    )
  ).items():
    found |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}


def siglip_b16():
  """Returns the shapes of ViT-B-16-SigLIP, written out by hand."""
  w, mlp, t = 768, 3072, "visual.trunk."
  found = {
    f"{t}pos_embed": (1, 196, w),
    f"{t}patch_embed.proj.weight": (w, 3, 16, 16),
    f"{t}patch_embed.proj.bias": (w,),
    f"{t}attn_pool.latent": (1, 1, w),
    f"{t}attn_pool.kv.weight": (2 * w, w),
    f"{t}attn_pool.kv.bias": (2 * w,),
    f"{t}attn_pool.q.weight": (w, w),
    f"{t}attn_pool.q.bias": (w,),
    "text.positional_embedding": (64, w),
    "text.token_embedding.weight": (32000, w),
    "text.text_projection.weight": (w, w),
    "text.text_projection.bias": (w,),
    "logit_scale": (),
    "logit_bias": (),
  }
  for name in (f"{t}norm", f"{t}attn_pool.norm", "text.ln_final"):
    found |= {f"{name}.weight": (w,), f"{name}.bias": (w,)}
  for name, shape in (
    ("proj", (w, w)),
    ("mlp.fc1", (mlp, w)),
    ("mlp.fc2", (w, mlp)),
  ):
    key = f"{t}attn_pool.{name}"
    found |= {f"{key}.weight": shape, f"{key}.bias": shape[:1]}
  for n in range(12):
    block, other = f"{t}blocks.{n}.", f"text.transformer.resblocks.{n}."
    names = ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2")
    layers(found, block, w, mlp, names)
    names = ("ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
    layers(found, other, w, mlp, names)
    for qkv, bias in (
      (f"{block}attn.qkv.weight", f"{block}attn.qkv.bias"),
      (f"{other}attn.in_proj_weight", f"{other}attn.in_proj_bias"),
    ):
      found |= {qkv: (3 * w, w), bias: (3 * w,)}
  return found


# open_clip's ViT-B-16-SigLIP.json.
SIGLIP = dict(
  embed_dim=768,
  init_logit_bias=-10,
  custom_text=True,
  vision_cfg=dict(
    image_size=224,
    timm_model_name="vit_base_patch16_siglip_224",
    timm_model_pretrained=False,
    timm_pool="map",
    timm_proj="none",
  ),
  text_cfg=dict(
    context_length=64,
    vocab_size=32000,
    hf_tokenizer_name="timm/ViT-B-16-SigLIP",
    tokenizer_kwargs={"clean": "canonicalize"},
    width=768,
    heads=12,
    layers=12,
    no_causal_mask=True,
    proj_bias=True,
    pool_type="last",
    norm_kwargs={"eps": 1e-6},
  ),
)


def test_siglip_has_the_count_of_open_clips_profile():
  recipe, count = checked(opened(siglip_b16(), SIGLIP))
  # docs/model_profile.csv: 203.16 million; as the hub's siglip-base.
  assert count == 203_155_970
  assert recipe.model["projected"] == "text"
  assert recipe.model["projection_bias"] and recipe.model["embed_dim"] == 768
  # SigLIP in open_clip has the exact GELU, unlike the hub's.
  assert recipe.model["image"]["act"] == "gelu_exact"
  assert recipe.model["text"]["act"] == "gelu_exact"
  assert recipe.model["image"]["heads"] == 12


def test_the_trunks_name_tells_the_gelu_and_the_texts_config_its_own():
  recipe, _ = checked(recorded("open_clip_siglip"))
  acts = [recipe.model[side]["act"] for side in ("image", "text")]
  assert acts == ["gelu_exact", "gelu"]
  recipe, _ = checked(recorded("open_clip_bert"))
  assert recipe.model["image"]["act"] == "gelu"
  assert recipe.model["text"]["pool"] == "pooler"


def test_without_any_projection_nothing_stands_between():
  def plain(config):
    config["text_cfg"]["hf_proj_type"] = None

  def without(shapes):
    del shapes["text.proj.weight"]

  recipe, _ = checked(recorded("open_clip_bert", plain, without))
  assert "embed_dim" not in recipe.model


def test_a_config_is_needed():
  with pytest.raises(errors.InputError, match=r"put its open_clip_config"):
    loading.recognise(opened(siglip_b16(), {}))


@pytest.mark.parametrize(
  "field, value, words",
  [
    ("vision_cfg.timm_model_name", "eva02_base_patch16_clip_224", "'eva02_"),
    ("vision_cfg.timm_pool", "avg", "timm_pool = 'avg'"),
    ("vision_cfg.timm_proj", "linear", "timm_proj = 'linear'"),
    ("vision_cfg.image_size", 224, "make 28 x 28, but the tensors have 24"),
    ("vision_cfg.timm_model_kwargs", {"reg_tokens": 1}, "'reg_tokens'"),
    (
      "vision_cfg.timm_model_kwargs",
      {"num_heads": 4, "depth": 3},
      "timm_model_kwargs.depth = 3: the tensors have 2",
    ),
    ("text_cfg.layers", 3, "text_cfg.layers = 3"),
    ("text_cfg.embed_cls", True, "text_cfg.embed_cls = True"),
    ("embed_dim", 20, "embed_dim = 20: the tensors have 16"),
  ],
)
def test_what_cannot_be_followed_is_named(field, value, words):
  def change(config):
    *part, name = field.split(".")
    (config[part[0]] if part else config)[name] = value

  with pytest.raises(errors.InputError, match=words):
    checked(recorded("open_clip_siglip", change))
