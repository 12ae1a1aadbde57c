"""DINOv2: of the model hub and of its authors, with and without registers.

"DINOv2: learning robust visual features without supervision", Oquab et al.
2023; "Vision transformers need registers", Darcet et al. 2024. Positions are
stretched to any image: those released were trained at 518 pixels and are
mostly used at 224. Its authors' files (github facebookresearch/dinov2) have
timm's names, and no config: one of ours may say {"model_args": {...}} with the
arguments of their constructor.
"""

import math
from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.weights import recipe, rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import LINEAR, SAME, Rule
from mmjax.weights.tables import hub, hub_vit, timm_layers

# How the reference stretches positions.
INTERPOLATE = {
  "dinov2": "bicubic",
  "dinov2_with_registers": "bicubic_antialias",
}
# What files may leave out.
DEFAULTS = dict(
  hidden_size=768,
  num_hidden_layers=12,
  num_attention_heads=12,
  mlp_ratio=4,
  hidden_act="gelu",
  layer_norm_eps=1e-6,
  image_size=224,
  num_channels=3,
)

# Arguments of its authors' constructor that the tensors tell, beside the heads
# and how positions are stretched, which they do not.
_TOLD = (
  "depth",
  "embed_dim",
  "ffn_layer",
  "img_size",
  "in_chans",
  "init_values",
  "num_register_tokens",
  "patch_size",
)
# By (interpolate_antialias, interpolate_offset); the first is that of the
# released models without registers, the second of those with.
WAYS: dict[tuple[Any, ...], str] = {
  (False, 0.1): "bicubic_offset",
  (True, 0.0): "bicubic_antialias",
  (False, 0.0): "bicubic",
}


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a DINOv2, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow or that contradicts the
      tensors, or sizes that neither tells.
  """
  kind = checkpoint.config.get("model_type")
  if kind is None and _official(checkpoint):
    return _own(checkpoint)
  if kind not in INTERPOLATE:
    return None
  # Their patches differ, where it is not said.
  patch = 14 if kind == "dinov2" else 16
  config = hub_vit.fields(checkpoint, {**DEFAULTS, "patch_size": patch})
  hub_vit.check(config)
  shapes = checkpoint.shapes
  prefix = hub_vit.prefix(shapes, kind)
  heads, width = config["num_attention_heads"], config["hidden_size"]
  qkv_bias = config.get("qkv_bias", True)
  gated = config.get("use_swiglu_ffn", False)
  mlp = int(width * config["mlp_ratio"])
  if gated:
    # Two thirds, because there are three matrices; a multiple of 8.
    mlp = (int(mlp * 2 / 3) + 7) // 8 * 8
  registers = 0
  if kind == "dinov2_with_registers":
    registers = config.get("num_register_tokens", 4)
  classes = hub_vit.classes(shapes, "classifier")
  classifier = classes is not None or hub_vit.named(
    checkpoint, "ForImageClassification"
  )
  sizes = hub.sizes(
    recipe.Config({**config, "intermediate_size": mlp}, checkpoint.path),
    patches=True,
  )
  sizes.update(interpolate=INTERPOLATE[kind])
  if gated:
    sizes.update(act="silu")
  e, block = f"{prefix}embeddings.", f"{prefix}encoder.layer.{{n}}."
  ours = "encoder/blocks"
  rules = [
    *hub_vit.embeddings(e, hub.grid(config), width),
    *hub.norm(f"{ours}/norm1", f"{block}norm1"),
    *hub.norm(f"{ours}/norm2", f"{block}norm2"),
    *hub_vit.attention(block, heads, qkv_bias=qkv_bias),
    Rule(f"{ours}/layer_scale1", f"{block}layer_scale1.lambda1"),
    Rule(f"{ours}/layer_scale2", f"{block}layer_scale2.lambda1"),
    *(_gated(block, mlp) if gated else _plain(block)),
    *hub.norm("norm", f"{prefix}layernorm"),
  ]
  if registers:
    op = rename.reshape((registers, width), (1, registers, width))
    rules.append(Rule("registers", f"{e}register_tokens", op))
  if classes is not None:
    rules += hub.linear("head", "classifier")
  # A file of no registers may hold the empty tensor.
  empty = checkpoint.shapes.get(f"{e}register_tokens") == (1, 0, width)
  return Recipe(
    table="dinov2",
    model=dict(
      name="vit",
      **sizes,
      num_classes=classes,
      pool="tok_gap" if classifier else "tok",
      registers=registers,
      gated=gated,
      qkv_bias=qkv_bias,
      layer_scale=config.get("layerscale_value", 1.0),
    ),
    inputs={"image": hub.image_input(config)},
    rules=rules,
    config=checkpoint.config,
    keep=(r"mask_token$", *([r"register_tokens$"] if empty else [])),
  )


def _plain(block: str) -> list[Rule]:
  ours = "encoder/blocks/mlp"
  return [
    *hub.linear(f"{ours}/up", f"{block}mlp.fc1"),
    *hub.linear(f"{ours}/down", f"{block}mlp.fc2"),
  ]


def _gated(block: str, mlp: int) -> list[Rule]:
  """Gate and up are packed in one matrix."""
  ours = "encoder/blocks/mlp"
  rules = hub.linear(f"{ours}/down", f"{block}mlp.weights_out")
  for leaf, theirs, op in (
    ("kernel", "weight", LINEAR),
    ("bias", "bias", SAME),
  ):
    rules += rename.packed(
      [(f"{ours}/{x}/{leaf}", op) for x in ("gate", "up")],
      f"{block}mlp.weights_in.{theirs}",
      (mlp, mlp),
    )
  return rules


def _official(checkpoint: Checkpoint) -> bool:
  shapes = checkpoint.shapes
  if "blocks.0.0.norm1.weight" in shapes and "register_tokens" in shapes:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: blocks.0.0 is of a DINOv2 "
      "whose blocks are in chunks, as in its training; save the model anew "
      "with block_chunks=0, as those released are."
    )
  if not timm_layers.marked(shapes):
    return False
  # MAE's mask token has a dimension more. We write none, but the config.
  masked = len(shapes.get("mask_token", ())) == 2
  said = "interpolate_offset" in (checkpoint.config.get("model_args") or {})
  return masked or said or "register_tokens" in shapes


def _own(checkpoint: Checkpoint) -> Recipe:
  """Returns the recipe of a file of DINOv2's authors."""
  shapes = checkpoint.shapes
  said = timm_layers.arguments(
    checkpoint.config,
    ("num_heads", "interpolate_antialias", "interpolate_offset"),
    _TOLD,
  )
  gated = "blocks.0.mlp.w12.weight" in shapes
  layers = ("mlp.w12", "mlp.w3") if gated else timm_layers.MLP
  sizes = timm_layers.stack(
    checkpoint, heads=said.get("num_heads"), layers=layers
  )
  width, channels, patch, _ = shapes["patch_embed.proj.weight"]
  count = shapes["pos_embed"][1] - 1
  side = math.isqrt(count)  # trained on squares
  if side * side != count:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: pos_embed has {count} "
      "positions of patches, which are no square, as those of DINOv2 are."
    )
  registers = shapes.get("register_tokens", (1, 0))[1]
  tokens = {"cls": 1, **({"registers": registers} if registers else {})}
  found: dict[str, Any] = dict(
    patch_size=patch,
    in_chans=channels,
    embed_dim=width,
    depth=sizes["depth"],
    img_size=side * patch,
    num_register_tokens=registers,
  )
  timm_layers.agree(said, found)
  way = _way(said, registers)
  scaled = "blocks.0.ls1.gamma" in shapes
  return Recipe(
    table="dinov2",
    model=dict(
      name="vit",
      **sizes,
      patch=patch,
      pool="tok",
      registers=registers,
      act="silu" if gated else "gelu_exact",
      gated=gated,
      qkv_bias="blocks.0.attn.qkv.bias" in shapes,
      layer_scale=1.0 if scaled else None,
      epsilon=1e-6,
      interpolate=WAYS[tuple(way.values())],
    ),
    inputs={"image": ((1, side * patch, side * patch, channels), "float32")},
    rules=[
      *timm_layers.embeddings(
        shapes,
        tokens,
        (side, side),
        1,
        names=timm_layers.TOKENS | {"registers": "register_tokens"},
      ),
      *timm_layers.blocks(shapes, sizes, layers=layers),
      *hub.norm("norm", "norm"),
    ],
    # What was decided stays with what is written.
    config={**checkpoint.config, "model_args": {**said, **way}},
    keep=(r"^mask_token$",),
  )


def _way(said: Mapping[str, Any], registers: int) -> dict[str, Any]:
  """Returns how positions are stretched, by the constructor's arguments."""
  way = dict(
    interpolate_antialias=registers > 0,
    interpolate_offset=0.0 if registers else 0.1,
  )
  way.update((k, v) for k, v in said.items() if k in way)
  if tuple(way.values()) not in WAYS:
    raise errors.InputError(
      f"config.json model_args {way}: known are the values {sorted(WAYS)}."
    )
  return way
