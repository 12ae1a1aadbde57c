"""DINOv2 of the model hub, with and without registers.

"DINOv2: learning robust visual features without supervision", Oquab et al.
2023; "Vision transformers need registers", Darcet et al. 2024. Positions are
stretched to any image: those released were trained at 518 pixels and are
mostly used at 224.
"""

from mmjax.weights import recipe, rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import LINEAR, SAME, Rule
from mmjax.weights.tables import hub, hub_vit

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


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a DINOv2, or None for any other checkpoint."""
  kind = checkpoint.config.get("model_type")
  if kind not in INTERPOLATE:
    return None
  config = recipe.Config({**DEFAULTS, **checkpoint.config}, checkpoint.path)
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
  return Recipe(
    table="dinov2",
    model=dict(
      name="vit",
      **sizes,
      num_classes=classes,
      pool="tok" if classes is None else "tok_gap",
      registers=registers,
      gated=gated,
      qkv_bias=qkv_bias,
      layer_scale=config.get("layerscale_value", 1.0),
    ),
    inputs={"image": hub.image_input(config)},
    rules=rules,
    config=checkpoint.config,
    ignore=(r"mask_token$",),
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
