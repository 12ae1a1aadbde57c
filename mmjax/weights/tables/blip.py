"""BLIP of the hub: captions, answers, retrieval, and its encoders.

"BLIP: bootstrapping language-image pre-training", Li et al. 2022. Which it is
of model_type "blip", the tensors say; an image or text encoder alone has a
model_type of its own. The reference's defaults are not what the released
weights were trained with: we follow the config, and warn.
"""

import warnings
from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import hub

MODEL_TYPES = ("blip", "blip_vision_model", "blip_text_model")

# What files may leave out.
IMAGE = dict(
  hidden_size=768,
  intermediate_size=3072,
  num_hidden_layers=12,
  num_attention_heads=12,
  image_size=384,
  patch_size=16,
  hidden_act="gelu",
  layer_norm_eps=1e-5,
)
TEXT = dict(
  vocab_size=30524,
  hidden_size=768,
  intermediate_size=3072,
  num_hidden_layers=12,
  num_attention_heads=8,
  encoder_hidden_size=768,
  max_position_embeddings=512,
  hidden_act="gelu",
  layer_norm_eps=1e-12,
)
EMBED_DIM, PROJECTION_DIM = 256, 512
HEAD = "text_decoder.cls.predictions.decoder.weight"
# Width -> heads, of BERT and ViT of the sizes that were released.
RELEASED_HEADS = {768: 12, 1024: 16}
RELEASED_IMAGE = {"layer_norm_eps": 1e-6}


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a BLIP, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow, or a BLIP of no task.
  """
  config = checkpoint.config
  kind = config.get("model_type")
  if kind not in MODEL_TYPES:
    return None
  if kind == "blip_vision_model":
    return _image_alone(checkpoint)
  if kind == "blip_text_model":
    return _text_alone(checkpoint)
  image = hub.part(config, "vision_config", IMAGE)
  text = hub.part(config, "text_config", TEXT)
  _warn(text, "text_config.")
  _warn(image, "vision_config.", **RELEASED_IMAGE)
  task = _task(checkpoint)
  # Without a tensor, or if either config ties them, the head is the table of
  # embeddings.
  tied = HEAD not in checkpoint.tensors or any(
    part.get("tie_word_embeddings", True) for part in (config, text)
  )
  heads, length = text["num_attention_heads"], text["max_position_embeddings"]
  inputs = {
    "image": hub.image_input(image),
    "tokens": ((1, min(length, 4)), "int32"),
  }
  ignore, keep = [r"\.position_ids$"], []
  embed_dim = config.get("image_text_hidden_size") or EMBED_DIM
  rules = rename.under("image/", "vision_model.", _image(image))
  if task in ("answer", "retrieval"):
    rules += rename.under("encoder/", "text_encoder.", _text(heads))
  if task in ("caption", "answer"):
    predictions = "text_decoder.cls.predictions."
    rules += rename.under("decoder/", "text_decoder.bert.", _text(heads))
    rules += rename.under("decoder/", predictions, _head(tied))
    if tied:  # the head's matrix is the table, and its bias is there twice
      ignore.append(r"cls\.predictions\.decoder\.(weight|bias)$")
    else:  # the reference reads the bias of its linear layer
      keep.append(r"cls\.predictions\.bias$")
  elif task == "contrastive":
    embed_dim = config.get("projection_dim") or PROJECTION_DIM
    rules += rename.under("encoder/", "text_model.", _text(heads, cross=False))
    rules += [
      *hub.linear("pooler/dense", "text_model.pooler.dense"),
      *hub.linear("image_projection", "visual_projection", bias=False),
      *hub.linear("text_projection", "text_projection", bias=False),
      Rule("log_t", "logit_scale"),
    ]
    # What reads texts over images is none of its outputs.
    keep.append(r"\.crossattention\.")
  else:
    rules += hub.linear("image_projection", "vision_proj")
    rules += hub.linear("text_projection", "text_proj")
    rules += hub.linear("match", "itm_head")
  if task == "answer":
    inputs["decoder_tokens"] = ((1, min(length, 4)), "int32")
  return Recipe(
    table="blip",
    model=dict(
      name="blip",
      task=task,
      image=dict(
        name="vit",
        **hub.sizes(image, "vision_config", patches=True),
        pool="tok",
        last_norm="both" if task == "contrastive" else "tokens",
      ),
      **hub.sizes(text, "text_config"),
      vocab_size=text["vocab_size"],
      length=length,
      embed_dim=embed_dim,
      tied=tied,
    ),
    inputs=inputs,
    rules=rules,
    config=config,
    ignore=ignore,
    keep=keep,
  )


def _image_alone(checkpoint: Checkpoint) -> Recipe:
  config = {**IMAGE, **checkpoint.config}
  _warn(config, "", **RELEASED_IMAGE)
  prefix = hub.prefix(checkpoint, "vision_model.")
  return Recipe(
    table="blip",
    model=dict(
      name="vit",
      **hub.sizes(config, patches=True),
      pool="tok",
      last_norm="both",
    ),
    inputs={"image": hub.image_input(config)},
    rules=rename.under("", prefix, _image(config)),
    config=checkpoint.config,
  )


def _text_alone(checkpoint: Checkpoint) -> Recipe:
  config = {**TEXT, **checkpoint.config}
  _warn(config, "")
  prefix = hub.prefix(checkpoint, "text_model.")
  cross = any(".crossattention." in n for n in checkpoint.tensors)
  pooler = f"{prefix}pooler.dense.weight" in checkpoint.tensors
  heads, length = (
    config["num_attention_heads"],
    config["max_position_embeddings"],
  )
  inputs: dict[str, Any] = {"tokens": ((1, min(length, 4)), "int32")}
  if cross:
    inputs["memory"] = ((1, 1, config["encoder_hidden_size"]), "float32")
  rules = rename.under("encoder/", prefix, _text(heads, cross=cross))
  if pooler:
    rules += hub.linear("pooler/dense", f"{prefix}pooler.dense")
  return Recipe(
    table="blip",
    model=dict(
      name="blip_text",
      **hub.sizes(config),
      vocab_size=config["vocab_size"],
      length=length,
      cross=cross,
      pooler=pooler,
    ),
    inputs=inputs,
    rules=rules,
    config=checkpoint.config,
    ignore=(r"position_ids$",),
  )


def _task(checkpoint: Checkpoint) -> str:
  names = checkpoint.tensors
  if any(n.startswith("text_decoder.") for n in names):
    answers = any(n.startswith("text_encoder.") for n in names)
    return "answer" if answers else "caption"
  if "itm_head.weight" in names:
    return "retrieval"
  if "logit_scale" in names:
    return "contrastive"
  raise errors.InputError(
    f"weights path = {str(checkpoint.path)!r}: a BLIP without text_decoder, "
    "itm_head and logit_scale; give one of BlipForConditionalGeneration, "
    "BlipForQuestionAnswering, BlipForImageTextRetrieval or BlipModel."
  )


def _warn(config: Mapping[str, Any], part: str, **released: float) -> None:
  """Warns of defaults that are not those of the released weights.

  Args:
    config: of an encoder.
    part: what the names of its fields begin with.
    **released: fields, and their values; the heads of its width are known.
  """
  heads = RELEASED_HEADS.get(config["hidden_size"])
  if heads is None:
    return
  for field, value in {"num_attention_heads": heads, **released}.items():
    if config[field] != value:
      warnings.warn(
        f"config.json {part}{field} = {config[field]!r} (stated, or the "
        f"reference's default), but BLIP of this width was trained with "
        f"{value!r}; write it into config.json unless this model is another.",
        stacklevel=4,
      )


def _image(config: Mapping[str, Any]) -> list[Rule]:
  width, heads = config["hidden_size"], config["num_attention_heads"]
  ours, block = "encoder/blocks", "encoder.layers.{n}."
  op = rename.to_heads(heads)
  rules = [
    Rule(
      "cls",
      "embeddings.class_embedding",
      rename.reshape((1, width), (1, 1, width)),
    ),
    *hub.positions(
      "embeddings.position_embedding", hub.grid(config), width, batched=True
    ),
    Rule(
      "embedding/kernel", "embeddings.patch_embedding.weight", rename.CONV2D
    ),
    Rule("embedding/bias", "embeddings.patch_embedding.bias"),
    *hub.norm(f"{ours}/norm1", f"{block}layer_norm1"),
    *hub.norm(f"{ours}/norm2", f"{block}layer_norm2"),
    *hub.linear(f"{ours}/mlp/up", f"{block}mlp.fc1"),
    *hub.linear(f"{ours}/mlp/down", f"{block}mlp.fc2"),
    *hub.norm("norm", "post_layernorm"),
    Rule(
      f"{ours}/attention/out/kernel",
      f"{block}self_attn.projection.weight",
      rename.from_heads(heads),
    ),
    Rule(f"{ours}/attention/out/bias", f"{block}self_attn.projection.bias"),
  ]
  for leaf, name in (("kernel", "weight"), ("bias", "bias")):
    rules += rename.packed(
      [(f"{ours}/attention/{x}/{leaf}", op) for x in ("query", "key", "value")],
      f"{block}self_attn.qkv.{name}",
      (width, width, width),
    )
  return rules


def _text(heads: int, *, cross: bool = True) -> list[Rule]:
  ours, block, e = "blocks/blocks", "encoder.layer.{n}.", "embeddings."
  rules = [
    Rule("embedding/table", f"{e}word_embeddings.weight"),
    Rule("posemb/table", f"{e}position_embeddings.weight"),
    *hub.norm("embed_norm", f"{e}LayerNorm"),
    *hub.linear(f"{ours}/mlp/up", f"{block}intermediate.dense"),
    *hub.linear(f"{ours}/mlp/down", f"{block}output.dense"),
    *hub.norm(f"{ours}/norm2", f"{block}output.LayerNorm"),
  ]
  kinds = [("attention", "norm1", f"{block}attention.")]
  if cross:
    kinds.append(("cross", "norm_cross", f"{block}crossattention."))
  for name, norm, theirs in kinds:
    rules += hub.attention(
      f"{ours}/{name}",
      [f"{theirs}self.{x}" for x in ("query", "key", "value")],
      f"{theirs}output.dense",
      heads,
    )
    rules += hub.norm(f"{ours}/{norm}", f"{theirs}output.LayerNorm")
  return rules


def _head(tied: bool) -> list[Rule]:
  words = [Rule("bias", "bias")]
  if not tied:
    words = [
      Rule("words", "decoder.weight", rename.LINEAR),
      Rule("bias", "decoder.bias"),
    ]
  return [
    *hub.linear("transform", "transform.dense"),
    *hub.norm("head_norm", "transform.LayerNorm"),
    *words,
  ]
