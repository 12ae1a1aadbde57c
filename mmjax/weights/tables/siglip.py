"""SigLIP and SigLIP 2, in the hub's layout.

"Sigmoid loss for language image pre-training", Zhai et al. 2023; "SigLIP 2",
Tschannen et al. 2025, whose models of a fixed size are of model_type "siglip"
too, and whose NaFlex is of "siglip2". Texts are padded to full length, 64
tokens: the last one is read, and nothing is masked. An image or text encoder
alone has a model_type of its own, and names with or without a prefix.
"""

import math
from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import hub

# Model types, and whether images are patches of any aspect (NaFlex).
MODEL_TYPES = {"siglip": False, "siglip2": True}

# What files may leave out; those of the base size leave out nearly all.
IMAGE = dict(
  hidden_size=768,
  intermediate_size=3072,
  num_hidden_layers=12,
  num_attention_heads=12,
  num_channels=3,
  image_size=224,
  patch_size=16,
  num_patches=256,
  hidden_act="gelu_pytorch_tanh",
  layer_norm_eps=1e-6,
  vision_use_head=True,
)
TEXT = dict(
  vocab_size=32000,
  hidden_size=768,
  intermediate_size=3072,
  num_hidden_layers=12,
  num_attention_heads=12,
  max_position_embeddings=64,
  hidden_act="gelu_pytorch_tanh",
  layer_norm_eps=1e-6,
)

Inputs = dict[str, tuple[tuple[int, ...], str]]


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a SigLIP, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow.
  """
  config = checkpoint.config
  for kind, flexible in MODEL_TYPES.items():
    if config.get("model_type") == kind:
      if hub.image_only(checkpoint):
        return _classes(checkpoint, flexible)
      return _both(config, flexible)
    if config.get("model_type") == f"{kind}_vision_model":
      return _image_alone(checkpoint, flexible)
    if config.get("model_type") == f"{kind}_text_model":
      return _text_alone(checkpoint)
  return None


def _both(config: Mapping[str, Any], flexible: bool) -> Recipe:
  image = hub.part(config, "vision_config", IMAGE)
  text = hub.part(config, "text_config", TEXT)
  if not image["vision_use_head"]:
    raise errors.InputError(
      "config.json vision_config.vision_use_head = False: without its pooling "
      "head the image encoder has no embedding to compare with a text's."
    )
  scalar = rename.reshape((), (1,))
  image_inputs = {
    # The dual encoder's image and text have arguments of these names.
    name if name == "image" else f"image_{name}": value
    for name, value in _image_inputs(image, flexible).items()
  }
  return Recipe(
    table="siglip",
    model=dict(
      name="dual_encoder",
      image=image_model(image, flexible, "vision_config"),
      text=_text_model(text, "text_config"),
      # Where the sizes of the two differ, the text's head makes up for it.
      embed_dim=_projection(text),
      projected="text",
      projection_bias=True,
      temperature_init=10.0,
      bias_init=-10.0,
    ),
    inputs={**image_inputs, "text": _text_input(text)},
    rules=[
      *rename.under("image/", "vision_model.", image_rules(image, flexible)),
      *rename.under(
        "text/", "text_model.", hub.clip_text(text["num_attention_heads"])
      ),
      *hub.linear("text_projection", "text_model.head"),
      Rule("log_t", "logit_scale", scalar),
      Rule("b", "logit_bias", scalar),
    ],
    config=config,
    texts={"text": text["max_position_embeddings"]},
    ignore=(r"\.position_ids$",),
  )


def _classes(checkpoint: Checkpoint, flexible: bool) -> Recipe:
  """Returns the recipe of an image classifier, by the mean of all patches."""
  config = hub.part(checkpoint.config, "vision_config", IMAGE)
  config["vision_use_head"] = False  # its pooling head is not read
  model = image_model(config, flexible, "vision_config")
  weight = checkpoint.shapes.get("classifier.weight")
  head = [] if weight is None else hub.linear("head", "classifier")
  return Recipe(
    table="siglip",
    model={
      **model,
      "pool": "gap",
      "num_classes": None if weight is None else weight[0],
    },
    inputs=_image_inputs(config, flexible),
    rules=[
      *rename.under("", "vision_model.", image_rules(config, flexible)),
      *head,
    ],
    config=checkpoint.config,
    ignore=(r"position_ids$",),
    keep=(r"^vision_model\.head\.",),
  )


def _image_alone(checkpoint: Checkpoint, flexible: bool) -> Recipe:
  config = {**IMAGE, **checkpoint.config}
  prefix = hub.prefix(checkpoint, "vision_model.")
  return Recipe(
    table="siglip",
    model=image_model(config, flexible),
    inputs=_image_inputs(config, flexible),
    rules=rename.under("", prefix, image_rules(config, flexible)),
    config=checkpoint.config,
    ignore=(r"position_ids$",),
  )


def _text_alone(checkpoint: Checkpoint) -> Recipe:
  config = {**TEXT, **checkpoint.config}
  prefix = hub.prefix(checkpoint, "text_model.")
  return Recipe(
    table="siglip",
    model=dict(
      name="projected",
      encoder=_text_model(config),
      embed_dim=_projection(config),
      use_bias=True,
    ),
    inputs={"tokens": _text_input(config)},
    rules=[
      *rename.under(
        "encoder/", prefix, hub.clip_text(config["num_attention_heads"])
      ),
      *hub.linear("projection", f"{prefix}head"),
    ],
    config=checkpoint.config,
    ignore=(r"position_ids$",),
  )


def _projection(text: Mapping[str, Any]) -> int:
  return text.get("projection_size") or text["hidden_size"]


def _text_model(text: Mapping[str, Any], part: str = "") -> dict[str, Any]:
  return dict(
    name="text_encoder",
    **hub.sizes(text, part),
    vocab_size=text["vocab_size"],
    length=text["max_position_embeddings"],
    pool="last",
    mask_pad=False,
  )


def _text_input(text: Mapping[str, Any]) -> tuple[tuple[int, ...], str]:
  return (1, text["max_position_embeddings"]), "int32"


def image_model(
  image: Mapping[str, Any], flexible: bool, part: str = ""
) -> dict[str, Any]:
  """Returns the keywords of an image encoder of this config.

  Args:
    image: its config.
    flexible: it is NaFlex.
    part: where it stands in config.json, "vision_config", for messages.
  """
  pool = "map" if image["vision_use_head"] else "none"
  if not flexible:
    return dict(name="vit", **hub.sizes(image, part, patches=True), pool=pool)
  return dict(
    name="naflex",
    **hub.sizes(image, part),
    patch=image["patch_size"],
    side=_side(image, part),
    channels=image["num_channels"],
    pool=pool,
  )


def _side(image: Mapping[str, Any], part: str) -> int:
  count = image["num_patches"]
  side = math.isqrt(count)
  if side * side != count:
    where = f"{part}.num_patches" if part else "num_patches"
    raise errors.InputError(
      f"config.json {where} = {count}: the positions are a square grid; give "
      "the number of rows of vision_model.embeddings.position_embedding."
    )
  return side


def _image_inputs(image: Mapping[str, Any], flexible: bool) -> Inputs:
  if not flexible:
    return {"image": hub.image_input(image)}
  count = image["num_patches"]
  size = image["patch_size"] ** 2 * image["num_channels"]
  return {
    "image": ((1, count, size), "float32"),
    "mask": ((1, count), "int32"),
    "shapes": ((1, 2), "int32"),
  }


def image_rules(config: Mapping[str, Any], flexible: bool) -> list[Rule]:
  """Returns the rules of an image encoder; see `image_model`."""
  width, heads = config["hidden_size"], config["num_attention_heads"]
  grid, kernel = None, rename.CONV2D
  if flexible:  # patches, pixel by pixel: a matrix [D patch*patch*C]
    p, side = config["patch_size"], math.isqrt(config["num_patches"])
    shape = (p, p, config["num_channels"], width)
    flat = rename.reshape(shape, (-1, width))
    grid, kernel = (side, side), rename.chain(rename.LINEAR, flat)
  rules = [
    *hub.positions(
      "embeddings.position_embedding.weight",
      grid or hub.grid(config),
      width,
      extra=0,
    ),
    Rule("embedding/kernel", "embeddings.patch_embedding.weight", kernel),
    Rule("embedding/bias", "embeddings.patch_embedding.bias"),
    *hub.clip_layers(heads),
    *hub.norm("norm", "post_layernorm"),
  ]
  if not config["vision_use_head"]:
    return rules
  return [
    *rules,
    Rule("pool/probe", "head.probe", rename.reshape((1, width), (1, 1, width))),
    *hub.packed_attention("pool/attention", "head.attention", heads, width),
    *hub.norm("pool/norm", "head.layernorm"),
    *hub.linear("pool/mlp/up", "head.mlp.fc1"),
    *hub.linear("pool/mlp/down", "head.mlp.fc2"),
  ]
