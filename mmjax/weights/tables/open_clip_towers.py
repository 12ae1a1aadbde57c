"""open_clip's dual encoders with a tower of timm's or of the hub's.

SigLIP as open_clip has it: a ViT of timm with an attention pool, under
"visual.trunk.", beside open_clip's own text tower with a biased projection.
And texts by BERT, RoBERTa or XLM-R of the hub, under "text.transformer.",
beside open_clip's own ViT or that of timm. open_clip_config.json must be
there: neither heads nor activations of these towers are told by tensors. What
goes beyond `openai_clip.py` is checked here by the names of the config.

"Sigmoid loss for language image pre-training", Zhai et al. 2023;
"Reproducible scaling laws for contrastive language-image learning", Cherti et
al. 2023.
"""

import math
from typing import Any

from mmjax import errors
from mmjax.weights import open_clip_front, rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import (
  hub,
  open_clip_config,
  open_clip_texts,
  openai_clip,
  timm_layers,
)

TRUNK = "visual.trunk."
BIASED = "text.text_projection.weight"
# Trunks of timm: heads, and whether GELU is the tanh one. Pixels and widths
# stand in the tensors, and are checked against the names.
TRUNKS = {
  f"vit_{size}_patch{patch}_siglip_{pixels}": (heads, tanh)
  for size, heads, patch, pixels, tanh in (
    ("base", 12, 16, 224, False),
    ("base", 12, 16, 256, False),
    ("base", 12, 16, 384, False),
    ("base", 12, 16, 512, False),
    ("base", 12, 32, 256, True),
    ("large", 16, 16, 256, False),
    ("large", 16, 16, 384, False),
    ("large", 16, 16, 512, True),
    ("so400m", 16, 14, 224, False),
    ("so400m", 16, 14, 378, False),
    ("so400m", 16, 14, 384, False),
    ("so400m", 16, 16, 256, True),
    ("so400m", 16, 16, 384, True),
    ("so400m", 16, 16, 512, True),
    ("giantopt", 16, 16, 256, True),
    ("giantopt", 16, 16, 384, True),
  )
}
Tower = tuple[dict[str, Any], Any, list[Rule]]


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of such a model, or None for any other checkpoint.

  Raises:
    InputError: there is no config, or a tower or value of it that we cannot
      follow, or that contradicts the tensors.
  """
  shapes = checkpoint.shapes
  if checkpoint.config.get("model_type") is not None:
    return None
  trunk = any(n.startswith(TRUNK) for n in shapes)
  hubs = any(n.startswith(open_clip_texts.EMBEDDINGS) for n in shapes)
  if not (trunk or hubs or BIASED in shapes) or "logit_scale" not in shapes:
    return None
  if any(n.startswith("text_decoder.") for n in shapes):  # CoCa
    return None
  said = open_clip_config.read(checkpoint.config, towers=True)
  if said is None:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: it is of open_clip, with "
      f"{'timm' if trunk else 'hub'} towers of which tensors do not tell the "
      "heads; put its open_clip_config.json beside it."
    )
  image, pixels, image_rules = (_trunk if trunk else _own_image)(
    checkpoint, said
  )
  text, length, text_rules, projection = (
    open_clip_texts.hub_text if hubs else _own_text
  )(checkpoint, said)
  embed = said.fields["embed_dim"]
  projected = [
    side
    for side, there in (("image", not trunk), ("text", bool(projection)))
    if there
  ]
  biased = any(rule.ours.endswith("bias") for rule in projection)
  if biased and not trunk:
    raise errors.InputError(
      "open_clip config text_cfg.proj_bias = True: beside an image tower whose "
      "projection has no bias, such as open_clip's own ViT, it is not known."
    )
  model: dict[str, Any] = dict(name="dual_encoder", image=image, text=text)
  if projected:
    model |= dict(
      embed_dim=embed,
      projected="both" if len(projected) == 2 else projected[0],
      projection_bias=biased,
    )
  rules = [
    *rename.under("image/", "visual.", image_rules),
    *rename.under("text/", "text.", text_rules),
    *projection,
    openai_clip.scalar("log_t", "logit_scale", shapes),
  ]
  if not trunk:
    rules.append(Rule("image_projection/kernel", "visual.proj"))
  if "logit_bias" in shapes:
    model["bias_init"] = -10.0
    rules.append(openai_clip.scalar("b", "logit_bias", shapes))
  name = "visual.trunk.patch_embed.proj" if trunk else "visual.conv1"
  channels = shapes[f"{name}.weight"][1]
  return Recipe(
    table="open_clip_towers",
    model=model,
    inputs={
      "image": ((1, *pixels, channels), "float32"),
      "text": ((1, length), "int32"),
    },
    rules=rules,
    config=checkpoint.config,
    ignore=(r"attn_mask$", r"embeddings\.(position_ids|token_type_ids)$"),
    **open_clip_front.fields(
      checkpoint, pixels, length, text.get("vocab_size")
    ),
  )


def _own_image(checkpoint: Checkpoint, said: open_clip_config.Said) -> Tower:
  if "visual.class_embedding" not in checkpoint.shapes:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: beside a text tower of the hub "
      "the image towers that are known are open_clip's ViT and timm's SigLIP."
    )
  return openai_clip.vit(checkpoint.shapes, said, said.act)


def _trunk(checkpoint: Checkpoint, said: open_clip_config.Said) -> Tower:
  """Returns keywords, pixels and rules of a SigLIP ViT of timm."""
  name = said.fields.get("vision_cfg.timm_model_name")
  if name not in TRUNKS:
    raise errors.unknown(
      "open_clip config vision_cfg.timm_model_name", name, TRUNKS
    )
  for field, known in (("timm_pool", "map"), ("timm_proj", "none")):
    value = said.fields.get(f"vision_cfg.{field}")
    if value != known:
      raise errors.InputError(
        f"open_clip config vision_cfg.{field} = {value!r}: with a trunk of timm "
        f"mmjax follows {known!r} only."
      )
  given = timm_layers.arguments(
    {"model_args": said.fields.get("vision_cfg.timm_model_kwargs")},
    ("num_heads",),
    ("depth", "embed_dim", "img_size", "mlp_ratio", "patch_size"),
  )
  shapes = {
    k.removeprefix(TRUNK): v
    for k, v in checkpoint.shapes.items()
    if k.startswith(TRUNK)
  }
  heads, tanh = TRUNKS[name]
  heads = given.get("num_heads", heads)
  sizes = timm_layers.stack(checkpoint, f"{TRUNK}blocks.", heads=heads)
  width, _, patch, _ = shapes["patch_embed.proj.weight"]
  count = shapes["pos_embed"][1]
  side = math.isqrt(count)
  timm_layers.agree(
    given,
    dict(depth=sizes["depth"], embed_dim=width, patch_size=patch),
    "vision_cfg.timm_model_kwargs",
  )
  pixels = said.pixels
  grid = (pixels[0] // patch, pixels[1] // patch)
  if grid[0] * grid[1] != count:
    raise errors.InputError(
      f"open_clip config vision_cfg.image_size = {pixels}: patches of {patch} "
      f"pixels make {grid[0]} x {grid[1]}, but the tensors have {count} "
      f"positions ({side} x {side})."
    )
  rules = [
    *timm_layers.embeddings(shapes, {}, grid, 0),
    *timm_layers.blocks(shapes, sizes),
    *hub.norm("norm", "norm"),
    *timm_layers.attention_pool(shapes, heads),
  ]
  model = dict(
    name="vit",
    **sizes,
    patch=patch,
    pool="map",
    act="gelu" if tanh else "gelu_exact",
    epsilon=1e-6,
    crop=True,
    interpolate="bicubic_antialias",
  )
  return model, pixels, rename.under("", "trunk.", rules)


def _own_text(
  checkpoint: Checkpoint, said: open_clip_config.Said
) -> tuple[dict[str, Any], int, list[Rule], list[Rule]]:
  """Returns keywords, length, rules and rules of the projection."""
  shapes = checkpoint.shapes
  tower, length, rules = openai_clip.text(shapes, "text.", said, said.act)
  if BIASED in shapes:
    width = shapes[BIASED][0]
    projection = hub.linear("text_projection", "text.text_projection")
  elif said.fields.get("text_cfg.proj_type", "linear") == "none":
    width, projection = tower["width"], []
  else:
    width = shapes["text.text_projection"][1]
    projection = [Rule("text_projection/kernel", "text.text_projection")]
  open_clip_config.agree(said, "embed_dim", width)
  return tower, length, rules, projection
