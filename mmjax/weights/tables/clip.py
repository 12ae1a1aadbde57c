"""CLIP with a ViT, in the model hub's layout (model_type "clip").

An image or text encoder alone ("clip_vision_model", "clip_text_model") may
have its projection, and has names with or without a prefix. A file of model_type
"clip" without a text encoder is an image classifier.

"Learning transferable visual models from natural language supervision",
Radford et al. 2021. The scale of the logits has no upper limit here: it binds
in training only, and released models stand at it (100).
"""

from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import hub

MODEL_TYPES = ("clip",)

# What files may leave out.
IMAGE = dict(
  hidden_size=768,
  intermediate_size=3072,
  num_hidden_layers=12,
  num_attention_heads=12,
  num_channels=3,
  image_size=224,
  patch_size=32,
  hidden_act="quick_gelu",
  layer_norm_eps=1e-5,
)
TEXT = dict(
  vocab_size=49408,
  hidden_size=512,
  intermediate_size=2048,
  num_hidden_layers=12,
  num_attention_heads=8,
  max_position_embeddings=77,
  hidden_act="quick_gelu",
  layer_norm_eps=1e-5,
  eos_token_id=49407,
)
EMBED_DIM = 512
# In configs written before the id was corrected. Those models are read at the
# text's greatest id, which is the end of text in OpenAI's vocabulary.
LEGACY_EOS = 2


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a CLIP, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow.
  """
  config = checkpoint.config
  kind = config.get("model_type")
  if kind == "clip_vision_model":
    image = {**IMAGE, **config}
    return _alone(
      checkpoint,
      _image_model(image),
      {"image": hub.image_input(image)},
      _image(image),
      ("vision_model.", "visual_projection"),
    )
  if kind == "clip_text_model":
    text = {**TEXT, **config}
    return _alone(
      checkpoint,
      _text_model(text),
      {"tokens": _text_input(text)},
      hub.clip_text(text["num_attention_heads"]),
      ("text_model.", "text_projection"),
    )
  if kind not in MODEL_TYPES:
    return None
  if hub.image_only(checkpoint):
    return _classes(checkpoint)
  return _both(config)


def _both(config: Mapping[str, Any]) -> Recipe:
  image = _part(config, "vision_config", IMAGE)
  text = _part(config, "text_config", TEXT)
  return Recipe(
    table="clip",
    model=dict(
      name="dual_encoder",
      image=_image_model(image, "vision_config"),
      text=_text_model(text, "text_config"),
      embed_dim=config.get("projection_dim") or EMBED_DIM,
    ),
    inputs={"image": hub.image_input(image), "text": _text_input(text)},
    rules=[
      *rename.under("image/", "vision_model.", _image(image)),
      *rename.under(
        "text/", "text_model.", hub.clip_text(text["num_attention_heads"])
      ),
      *hub.linear("image_projection", "visual_projection", bias=False),
      *hub.linear("text_projection", "text_projection", bias=False),
      Rule("log_t", "logit_scale"),
    ],
    config=config,
    texts={"text": text["max_position_embeddings"]},
    ignore=(r"\.position_ids$",),
  )


def _classes(checkpoint: Checkpoint) -> Recipe:
  """Returns the recipe of an image classifier, by the mean of all patches."""
  image = _part(checkpoint.config, "vision_config", IMAGE)
  weight = checkpoint.shapes.get("classifier.weight")
  head = [] if weight is None else hub.linear("head", "classifier")
  # Neither the class token nor the last norm is read.
  rules = [r for r in _image(image) if not r.ours.startswith("norm/")]
  return Recipe(
    table="clip",
    model={
      **_image_model(image, "vision_config"),
      "pool": "gap",
      "class_token": True,
      "last_norm": "none",
      "num_classes": None if weight is None else weight[0],
    },
    inputs={"image": hub.image_input(image)},
    rules=[*rename.under("", "vision_model.", rules), *head],
    config=checkpoint.config,
    ignore=(r"position_ids$",),
    keep=(r"^vision_model\.post_layernorm\.",),
  )


def _alone(
  checkpoint: Checkpoint,
  model: dict[str, Any],
  inputs: dict[str, tuple[tuple[int, ...], str]],
  rules: list[Rule],
  names: tuple[str, str],
) -> Recipe:
  """Returns the recipe of one encoder, with or without its projection."""
  prefix = hub.prefix(checkpoint, names[0])
  rules = rename.under("", prefix, rules)
  weight = checkpoint.shapes.get(f"{names[1]}.weight")
  if weight is not None:
    model = dict(name="projected", encoder=model, embed_dim=weight[0])
    rules = rename.under("encoder/", "", rules)
    rules += hub.linear("projection", names[1], bias=False)
  return Recipe(
    table="clip",
    model=model,
    inputs=inputs,
    rules=rules,
    config=checkpoint.config,
    ignore=(r"position_ids$",),
  )


def _image_model(image: Mapping[str, Any], part: str = "") -> dict[str, Any]:
  return dict(
    name="vit",
    **hub.sizes(image, part, patches=True),
    pool="tok",
    pre_norm=True,
    patch_bias=False,
  )


def _text_model(text: Mapping[str, Any], part: str = "") -> dict[str, Any]:
  return dict(
    name="text_encoder",
    **hub.sizes(text, part),
    vocab_size=text["vocab_size"],
    length=text["max_position_embeddings"],
    causal=True,
    pool="eot",
    eot_id=_eot(text, part),
    # Padding comes after the token that is read, which never sees it.
    mask_pad=False,
  )


def _text_input(text: Mapping[str, Any]) -> tuple[tuple[int, ...], str]:
  return (1, text["max_position_embeddings"]), "int32"


def _part(
  config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]
) -> dict[str, Any]:
  # Early files say it twice. The reference lets "text_config_dict" win, with
  # the defaults of what it leaves out.
  found = hub.part(config, name, defaults)
  early = config.get(f"{name}_dict")
  return found if early is None else {**found, **defaults, **early}


def _eot(text: Mapping[str, Any], part: str) -> int | None:
  eos = text["eos_token_id"]
  if eos == LEGACY_EOS:
    return None
  if not isinstance(eos, int):
    where = f"{part}.eos_token_id" if part else "eos_token_id"
    raise errors.InputError(
      f"config.json {where} = {eos!r}: CLIP's text is read at one id; give the "
      "id of the end of text."
    )
  return eos


def _image(config: Mapping[str, Any]) -> list[Rule]:
  width = config["hidden_size"]
  return [
    Rule(
      "cls",
      "embeddings.class_embedding",
      rename.reshape((1, width), (width,)),
    ),
    *hub.positions(
      "embeddings.position_embedding.weight", hub.grid(config), width
    ),
    Rule(
      "embedding/kernel", "embeddings.patch_embedding.weight", rename.CONV2D
    ),
    *hub.norm("pre_norm", "pre_layrnorm"),  # their spelling
    *hub.clip_layers(config["num_attention_heads"]),
    *hub.norm("norm", "post_layernorm"),
  ]
