"""ViT-MAE of the model hub: the autoencoder, or its encoder alone."""

from mmjax.weights import recipe, rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import hub, hub_vit

MODEL_TYPES = ("vit_mae",)
# The decoder's blocks in released files, and as transformers 5 writes them.
LAYERS = ("decoder.decoder_layers.", "decoder.decoder_encoder.layer.")


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a ViT-MAE, or None for any other checkpoint."""
  if checkpoint.config.get("model_type") not in MODEL_TYPES:
    return None
  config = recipe.Config(checkpoint.config, checkpoint.path)
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
