"""ViLT of the model hub: bare, with words, answers, classes, for retrieval."""

from typing import Any

from mmjax import errors
from mmjax.weights import recipe, rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import bert_layers, hub, hub_vit

MODEL_TYPES = ("vilt",)
# What files may leave out.
DEFAULTS = {**hub_vit.DEFAULTS, "image_size": 384, "patch_size": 32} | dict(
  vocab_size=30522,
  type_vocab_size=2,
  modality_type_vocab_size=2,
  max_position_embeddings=40,
  qkv_bias=True,
  max_image_length=-1,
)


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a ViLT, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow.
  """
  if checkpoint.config.get("model_type") not in MODEL_TYPES:
    return None
  config = recipe.Config({**DEFAULTS, **checkpoint.config}, checkpoint.path)
  # The reference ties the head of words, whatever the config says.
  qkv_bias = config["qkv_bias"]
  for name in ("image_size", "patch_size"):
    if not isinstance(config[name], int):
      raise errors.InputError(
        f"config.json {name} = {config[name]!r}: the positions of a ViLT are "
        "of a square image; give one number."
      )
  names = checkpoint.tensors
  prefix = "vilt." if any(n.startswith("vilt.") for n in names) else ""
  # The bias has either name; one is a copy if both are there.
  biases = [
    n for n in ("mlm_score.bias", "mlm_score.decoder.bias") if n in names
  ]
  classes = checkpoint.shapes.get("classifier.3.weight", (None,))[0]
  # The head over answers reads what is pooled of one image, or of several.
  up, pooled = checkpoint.shapes.get("classifier.0.weight", (None, 0))
  of_words = checkpoint.shapes.get("classifier.weight", (None,))[0]
  pooler = f"{prefix}pooler.dense.weight" in names
  images = max(1, pooled // config["hidden_size"])
  matched = "rank_output.weight" in names
  grid = config["image_size"] // config["patch_size"]
  sizes = hub.sizes(config)
  model: dict[str, Any] = dict(
    name="vilt",
    **sizes,
    patch=config["patch_size"],
    grid=grid,
    vocab_size=config["vocab_size"],
    length=config["max_position_embeddings"],
    types=config["type_vocab_size"],
    modalities=config["modality_type_vocab_size"],
    masked_words=bool(biases),
    answers=classes,
    answers_width=up,
    matched=matched,
    classes=of_words,
    pooler=pooler,
    biases="qkvo" if qkv_bias else "o",
    images=images,
    max_patches=config["max_image_length"]
    if (config["max_image_length"] or -1) > 0
    else None,
    # As the reference: all tokens are seen if no mask is given.
    mask_pad=False,
  )
  rules = _encoder(prefix, sizes["width"], sizes["heads"], grid, qkv_bias)
  if pooler:
    rules += hub.linear("pooler/dense", f"{prefix}pooler.dense")
  if biases:
    rules += [
      *bert_layers.transform("masked_words/transform", "mlm_score.transform"),
      Rule("masked_words/bias", biases[0]),
    ]
  if classes is not None:
    rules += [
      *hub.linear("answer_up", "classifier.0"),
      *hub.norm("answer_norm", "classifier.1"),
      *hub.linear("answers_head", "classifier.3"),
    ]
  if matched:
    rules += hub.linear("matched", "rank_output")
  if of_words is not None:
    rules += hub.linear("classes_head", "classifier")
  return Recipe(
    table="vilt",
    model=model,
    inputs={
      "tokens": ((1, config["max_position_embeddings"]), "int32"),
      "image": _image(config, images),
    },
    rules=rules,
    config=checkpoint.config,
    texts={"tokens": config["max_position_embeddings"]},
    masks={"tokens": "mask"},
    missing={"image": "it takes several; prepare and stack them."}
    if images > 1
    else {},
    ignore=(
      r"text_embeddings\.(position_ids|token_type_ids)$",
      r"^mlm_score\.decoder\.(weight|bias)$",  # copies of tied weights
    ),
  )


def _image(config: recipe.Config, images: int) -> tuple[tuple[int, ...], str]:
  (_, *shape), dtype = hub.image_input(config)
  return (1, *([images] if images > 1 else []), *shape), dtype


def _encoder(
  prefix: str, width: int, heads: int, grid: int, qkv_bias: bool
) -> list[Rule]:
  e, block = f"{prefix}embeddings.", f"{prefix}encoder.layer.{{n}}."
  positions = f"{e}position_embeddings"
  return [
    *bert_layers.embeddings("embed", f"{e}text_embeddings"),
    Rule("modality/table", f"{e}token_type_embeddings.weight"),
    Rule("cls", f"{e}cls_token", rename.reshape((width,), (1, 1, width))),
    Rule(
      "cls_position",
      positions,
      rename.reshape((width,), (1, 1, width)),
      (0, 1, 1),
    ),
    Rule(
      "positions",
      positions,
      rename.reshape((grid, grid, width), (1, grid * grid, width)),
      (1, 1 + grid * grid, 1),
    ),
    Rule(
      "embedding/kernel",
      f"{e}patch_embeddings.projection.weight",
      rename.CONV2D,
    ),
    Rule("embedding/bias", f"{e}patch_embeddings.projection.bias"),
    *hub_vit.blocks(block, heads, qkv_bias=qkv_bias),
    *hub.norm("norm", f"{prefix}layernorm"),
  ]
