"""ViT-MAE: the hub's autoencoder or its encoder alone, and MAE's own files.

"Masked autoencoders are scalable vision learners", He et al. 2022. Its authors'
files (github facebookresearch/mae) with a decoder have timm's names; those
without are read by `timm.py`. They have no config: one of ours may say
{"model_args": {...}} with the arguments of their constructor, and mask_ratio.
"""

import math

from mmjax import errors
from mmjax.weights import recipe, rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import hub, hub_vit, timm_layers

MODEL_TYPES = ("vit_mae",)
# What files may leave out.
DEFAULTS = dict(
  **hub_vit.DEFAULTS,
  decoder_hidden_size=512,
  decoder_num_hidden_layers=8,
  decoder_num_attention_heads=16,
  decoder_intermediate_size=2048,
  mask_ratio=0.75,
)
# The decoder's blocks in released files, and as transformers 5 writes them.
LAYERS = ("decoder.decoder_layers.", "decoder.decoder_encoder.layer.")
# Arguments of its authors' constructor that we read, and those that the tensors
# tell.
_READ = (
  "num_heads",
  "decoder_num_heads",
  "img_size",
  "norm_pix_loss",
  "mask_ratio",
)
_TOLD = (
  "patch_size",
  "in_chans",
  "embed_dim",
  "depth",
  "decoder_embed_dim",
  "decoder_depth",
)
# The decoder of all released models: width, depth and hidden units.
_DECODER = {(512, 8, 2048): 16}


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a ViT-MAE, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow or that contradicts the
      tensors, or sizes that neither tells.
  """
  kind = checkpoint.config.get("model_type")
  if kind is None and _official(checkpoint):
    return _own(checkpoint)
  if kind not in MODEL_TYPES:
    return None
  config = hub_vit.fields(checkpoint, DEFAULTS)
  hub_vit.check(config)
  shapes = checkpoint.shapes
  prefix = hub_vit.prefix(shapes, "vit")
  heads, width = config["num_attention_heads"], config["hidden_size"]
  grid = hub.grid(config)
  qkv_bias = config.get("qkv_bias", True)
  bare = "decoder.mask_token" not in shapes
  rules = rename.under(
    "encoder/",
    prefix,
    [
      *hub_vit.embeddings("embeddings.", grid, width),
      *hub_vit.blocks("encoder.layer.{n}.", heads, qkv_bias=qkv_bias),
      *hub.norm("norm", "layernorm"),
    ],
  )
  image, kind = hub.image_input(config)
  model = dict(
    name="vit_mae",
    encoder=dict(**hub.sizes(config, patches=True), qkv_bias=qkv_bias),
    bare=bare,
    channels=image[-1],
    mask_ratio=config["mask_ratio"],
    normalised_targets=config.get("norm_pix_loss", False),
  )
  if not bare:
    model["decoder"] = dict(
      width=config["decoder_hidden_size"],
      depth=config["decoder_num_hidden_layers"],
      heads=config["decoder_num_attention_heads"],
      mlp=config["decoder_intermediate_size"],
    )
    rules += _decoder(checkpoint, grid, config, qkv_bias)
  return Recipe(
    table="vit_mae",
    model=model,
    inputs={
      "image": (image, kind),
      "noise": ((1, grid[0] * grid[1]), "float32"),
    },
    rules=rules,
    config=checkpoint.config,
  )


def _decoder(
  checkpoint: Checkpoint,
  grid: tuple[int, int],
  config: recipe.Config,
  qkv_bias: bool,
) -> list[Rule]:
  width = config["decoder_hidden_size"]
  count = 1 + grid[0] * grid[1]
  layers = next(
    (x for x in LAYERS if any(n.startswith(x) for n in checkpoint.shapes)),
    LAYERS[0],
  )
  return [
    *hub.linear("decoder/embed", "decoder.decoder_embed"),
    Rule(
      "decoder/mask",
      "decoder.mask_token",
      rename.reshape((1, width), (1, 1, width)),
    ),
    Rule(
      "decoder/positions",
      "decoder.decoder_pos_embed",
      rename.reshape((count, width), (1, count, width)),
    ),
    *hub_vit.blocks(
      f"{layers}{{n}}.",
      config["decoder_num_attention_heads"],
      qkv_bias=qkv_bias,
      ours="decoder/stack/blocks",
    ),
    *hub.norm("decoder/norm", "decoder.decoder_norm"),
    *hub.linear("decoder/predict", "decoder.decoder_pred"),
  ]


def _official(checkpoint: Checkpoint) -> bool:
  shapes = checkpoint.shapes
  if not timm_layers.marked(shapes) or "decoder_pred.weight" not in shapes:
    return False
  # AudioMAE's encoder is read by `timm.py`.
  return shapes["patch_embed.proj.weight"][1] > 1


def _own(checkpoint: Checkpoint) -> Recipe:
  """Returns the recipe of a file of MAE's authors."""
  shapes = checkpoint.shapes
  said = timm_layers.arguments(checkpoint.config, _READ, _TOLD)
  encoder = timm_layers.stack(checkpoint, heads=said.get("num_heads"))
  decoder = timm_layers.stack(
    checkpoint,
    "decoder_blocks.",
    heads=said.get("decoder_num_heads"),
    field="decoder_num_heads",
    known=_DECODER,
  )
  _, channels, patch, _ = shapes["patch_embed.proj.weight"]
  timm_layers.agree(
    said,
    dict(
      patch_size=patch,
      in_chans=channels,
      embed_dim=encoder["width"],
      depth=encoder["depth"],
      decoder_embed_dim=decoder["width"],
      decoder_depth=decoder["depth"],
    ),
  )
  count = shapes["pos_embed"][1] - 1
  side = math.isqrt(count)  # their images are squares
  if side * side != count:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: pos_embed has {count} "
      "positions of patches, which are no square, as those of MAE are."
    )
  timm_layers.agree(said, dict(img_size=side * patch))
  width = decoder["width"]
  return Recipe(
    table="vit_mae",
    model=dict(
      name="vit_mae",
      encoder=dict(
        **encoder,
        patch=patch,
        act="gelu_exact",
        epsilon=1e-6,
        interpolate="bicubic",
      ),
      decoder=decoder,
      channels=channels,
      # As their constructor and call have it, if it is not said.
      mask_ratio=said.get("mask_ratio", 0.75),
      normalised_targets=said.get("norm_pix_loss", False),
    ),
    inputs={
      "image": ((1, side * patch, side * patch, channels), "float32"),
      "noise": ((1, count), "float32"),
    },
    rules=[
      *rename.under(
        "encoder/",
        "",
        [
          *timm_layers.embeddings(shapes, {"cls": 1}, (side, side), 1),
          *timm_layers.blocks(shapes, encoder),
          *hub.norm("norm", "norm"),
        ],
      ),
      *hub.linear("decoder/embed", "decoder_embed"),
      Rule(
        "decoder/mask", "mask_token", rename.reshape((1, width), (1, 1, width))
      ),
      Rule(
        "decoder/positions",
        "decoder_pos_embed",
        rename.reshape((count + 1, width), (1, count + 1, width)),
      ),
      *timm_layers.blocks(
        shapes, decoder, ours="decoder/stack/blocks/", theirs="decoder_blocks."
      ),
      *hub.norm("decoder/norm", "decoder_norm"),
      *hub.linear("decoder/predict", "decoder_pred"),
    ],
    config=checkpoint.config,
  )
