"""ViT as timm names it, also AudioMAE's encoder and DeiT's own files.

Files have no config, or timm's: {"architecture": "vit_base_patch16_224",
"global_pool": "token", "model_args": {"num_heads": 12, "img_size": [224,
224]}}. What it does not say is read off the tensors; the number of heads, which
nothing there shows, by the sizes that papers name. SigLIP's image encoders have
`attn_pool`, and some of them, by their architecture, the GELU with tanh.
AudioMAE ("Masked autoencoders that listen", Huang et al. 2022) has one channel
and spectrograms of 128 mels; of its pretraining only the encoder is read.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmjax import errors
from mmjax.weights import recipe, rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.tables import hub, timm_layers
from mmjax.weights.tables.timm_layers import Shapes

POOLS = {"token": "tok", "avg": "gap", "map": "map", "": "none"}
ACTS = {
  "gelu": "gelu_exact",
  "gelu_tanh": "gelu",
  "quick_gelu": "quick_gelu",
  "silu": "silu",
}
# Architectures of timm 1.0 whose GELU is the one with tanh.
_TANH = re.compile(
  r"vit_(base_patch32|so400m_patch16|giantopt_patch16)_siglip"
  r"|vit_large_patch16_siglip_(gap_)?512"
)
BINS = 128


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a ViT of timm, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow, or sizes that neither
      tensors nor config tell.
  """
  shapes = checkpoint.shapes
  if "model_type" in checkpoint.config or not timm_layers.marked(shapes):
    return None
  _, channels, patch, _ = shapes["patch_embed.proj.weight"]
  if _others(shapes, channels):
    return None
  config = recipe.Config(checkpoint.config, checkpoint.path)
  arguments = timm_layers.arguments(config, _READ, _TOLD)
  sizes = timm_layers.stack(checkpoint, heads=arguments.get("num_heads"))
  first = "blocks.0."
  gated = timm_layers.is_gated(shapes, sizes["mlp"])
  sound = channels == 1
  tokens = [
    name for name in ("cls", "distilled") if timm_layers.TOKENS[name] in shapes
  ]
  grid, placed = _grid(checkpoint, arguments, patch, len(tokens))
  registers = shapes.get("reg_token", (1, 0))[1]
  classes = shapes["head.weight"][0] if "head.weight" in shapes else None
  pooled = "fc_norm.weight" in shapes
  qkv_bias = f"{first}attn.qkv.bias" in shapes
  scaled = f"{first}ls1.gamma" in shapes
  pre_norm = "norm_pre.weight" in shapes
  pool = _pool(checkpoint, config, arguments, tokens)
  encoder = dict(
    **sizes,
    patch=patch,
    pool=pool,
    class_token="cls" in tokens,
    distilled="distilled" in tokens,
    registers=registers,
    token_posemb=placed > 0,
    pre_norm=pre_norm,
    last_norm="pooled" if pooled else "tokens",
    act=_act(config, arguments, gated),
    gated=gated,
    qkv_bias=qkv_bias,
    patch_bias="patch_embed.proj.bias" in shapes,
    layer_scale=1e-5 if scaled else None,
    epsilon=1e-5 if pre_norm else 1e-6,
    interpolate="bicubic_antialias",
    num_classes=classes,
  )
  counts = dict.fromkeys(tokens, 1)
  if registers:
    counts["registers"] = registers
  rules = [
    *timm_layers.embeddings(shapes, counts, grid, placed),
    *timm_layers.blocks(shapes, sizes),
    *(hub.norm("pre_norm", "norm_pre") if pre_norm else ()),
    *hub.norm("norm", "fc_norm" if pooled else "norm"),
    *(
      timm_layers.attention_pool(shapes, sizes["heads"])
      if pool == "map"
      else ()
    ),
  ]
  head = hub.linear("head", "head") if classes is not None else []
  if "distilled" in tokens and classes is not None:
    head += hub.linear("head_distilled", "head_dist")
  pixels = tuple(n * patch for n in grid)
  if sound:
    model = dict(
      name="audio_transformer", time_first=True, head_norm=False, **encoder
    )
    inputs = {"audio": ((1, *pixels), "float32")}
    rules = [*rename.under("encoder/", "", rules), *head]
  else:
    model = dict(name="vit", **encoder)
    inputs = {"image": ((1, *pixels, channels), "float32")}
    rules += head
  return Recipe(
    table="timm",
    model=model,
    inputs=inputs,
    rules=rules,
    config=checkpoint.config,
    ignore=(r"^decoder_",) if sound else (),
    keep=(r"^mask_token$",),
  )


def _others(shapes: Shapes, channels: int) -> bool:
  """Has it timm's names, but a table of its own?"""
  if "register_tokens" in shapes or len(shapes.get("mask_token", ())) == 2:
    return True  # DINOv2
  # MAE with its decoder; of AudioMAE the encoder is read here.
  return "decoder_pred.weight" in shapes and channels > 1


# Arguments that we read, and those that the tensors tell.
_READ = ("num_heads", "img_size", "global_pool", "act_layer")
_TOLD = (
  "class_token",
  "depth",
  "dynamic_img_size",
  "embed_dim",
  "fc_norm",
  "in_chans",
  "init_values",
  "mlp_ratio",
  "no_embed_class",
  "num_classes",
  "patch_size",
  "pre_norm",
  "qkv_bias",
  "reg_tokens",
)


def _act(
  config: Mapping[str, Any], arguments: Mapping[str, Any], gated: bool
) -> str:
  said = arguments.get("act_layer")
  if said is not None:
    if said not in ACTS:
      raise errors.unknown("config.json model_args.act_layer", said, ACTS)
    return ACTS[said]
  if gated:
    return "silu"
  architecture = config.get("architecture") or ""
  if _TANH.match(architecture):
    return "gelu"
  return "quick_gelu" if "quickgelu" in architecture else "gelu_exact"


def _pool(
  checkpoint: Checkpoint,
  config: Mapping[str, Any],
  arguments: Mapping[str, Any],
  tokens: Sequence[str],
) -> str:
  shapes = checkpoint.shapes
  if "distilled" in tokens:
    return "pair"
  said = arguments.get("global_pool", config.get("global_pool"))
  attends = "attn_pool.latent" in shapes
  if said is None and attends:
    said = "map"
  if said is None:
    said = "token" if tokens and "fc_norm.weight" not in shapes else "avg"
  if said not in POOLS:
    raise errors.unknown("config.json global_pool", said, POOLS)
  if (said == "map") != attends:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: config.json global_pool = "
      f"{said!r}, but there is {'an' if attends else 'no'} attn_pool; 'map' is "
      "the pool that attends."
    )
  return POOLS[said]


def _grid(
  checkpoint: Checkpoint,
  arguments: Mapping[str, Any],
  patch: int,
  tokens: int,
) -> tuple[tuple[int, int], int]:
  """Returns rows and columns, and how many tokens have a position."""
  shapes = checkpoint.shapes
  count = shapes["pos_embed"][1]
  size = arguments.get("img_size")
  for placed in (tokens, 0):
    rest = count - placed
    if size is not None:
      pixels = (size, size) if isinstance(size, int) else size
      rows, columns = (n // patch for n in pixels)
    elif shapes["patch_embed.proj.weight"][1] == 1:
      columns = max(BINS // patch, 1)
      rows = rest // columns
    else:
      rows = columns = math.isqrt(rest)
    if rest > 0 and rows * columns == rest:
      return (rows, columns), placed
  raise errors.InputError(
    f"weights path = {str(checkpoint.path)!r}: pos_embed has {count} "
    f"positions, which are no grid beside {tokens} tokens; add "
    '{"model_args": {"img_size": [rows, columns]}} in pixels to its '
    "config.json."
  )
