"""BLIP of the hub: captions, answers, retrieval (model_type "blip").

"BLIP: bootstrapping language-image pre-training", Li et al. 2022. Which of the
three it is, the tensors say. The reference's defaults are not what the
released weights were trained with: we follow the config, and warn.
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

MODEL_TYPES = ("blip",)

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
  max_position_embeddings=512,
  hidden_act="gelu",
  layer_norm_eps=1e-12,
)
EMBED_DIM = 256
HEAD = "text_decoder.cls.predictions.decoder.weight"
# Width -> heads, of BERT and ViT of the sizes that were released.
RELEASED_HEADS = {768: 12, 1024: 16}
RELEASED_EPSILON = 1e-6


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a BLIP, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow, or a BLIP without
      cross-attention.
  """
  config = checkpoint.config
  if config.get("model_type") not in MODEL_TYPES:
    return None
  image = hub.part(config, "vision_config", IMAGE)
  text = hub.part(config, "text_config", TEXT)
  _warn(image, text)
  task = _task(checkpoint)
  if HEAD in checkpoint.tensors:
    # Else, or if either config ties them, it is the table of embeddings.
    if not config.get("tie_word_embeddings", True):
      hub.fixed(text, {"tie_word_embeddings": True}, "text_config")
  heads, length = text["num_attention_heads"], text["max_position_embeddings"]
  inputs = {
    "image": hub.image_input(image),
    "tokens": ((1, min(length, 4)), "int32"),
  }
  rules = rename.under("image/", "vision_model.", _image(image))
  if task != "caption":
    rules += rename.under("encoder/", "text_encoder.", _text(heads))
  if task != "retrieval":
    rules += rename.under("decoder/", "text_decoder.bert.", _text(heads))
    rules += rename.under("decoder/", "text_decoder.cls.predictions.", _head())
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
      ),
      **hub.sizes(text, "text_config"),
      vocab_size=text["vocab_size"],
      length=length,
      embed_dim=config.get("image_text_hidden_size") or EMBED_DIM,
    ),
    inputs=inputs,
    rules=rules,
    config=config,
    ignore=(
      r"\.position_ids$",
      # The head's matrix is the table of embeddings, and its bias is twice.
      r"cls\.predictions\.decoder\.(weight|bias)$",
    ),
  )


def _task(checkpoint: Checkpoint) -> str:
  names = checkpoint.tensors
  if any(n.startswith("text_decoder.") for n in names):
    answers = any(n.startswith("text_encoder.") for n in names)
    return "answer" if answers else "caption"
  if "itm_head.weight" in names:
    return "retrieval"
  raise errors.InputError(
    f"weights path = {str(checkpoint.path)!r}: a BLIP without text_decoder and "
    "itm_head; give one of BlipForConditionalGeneration, "
    "BlipForQuestionAnswering or BlipForImageTextRetrieval."
  )


def _warn(image: Mapping[str, Any], text: Mapping[str, Any]) -> None:
  """Warns of defaults that are not those of the released weights."""
  for part, field, value, released in (
    (
      "text_config",
      "num_attention_heads",
      text["num_attention_heads"],
      RELEASED_HEADS.get(text["hidden_size"]),
    ),
    (
      "vision_config",
      "num_attention_heads",
      image["num_attention_heads"],
      RELEASED_HEADS.get(image["hidden_size"]),
    ),
    (
      "vision_config",
      "layer_norm_eps",
      image["layer_norm_eps"],
      RELEASED_EPSILON if image["hidden_size"] in RELEASED_HEADS else None,
    ),
  ):
    if released is not None and value != released:
      warnings.warn(
        f"config.json {part}.{field} = {value!r} (stated, or the reference's "
        f"default), but BLIP of this width was trained with {released!r}; "
        "write it into config.json unless this model is another.",
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


def _text(heads: int) -> list[Rule]:
  ours, block, e = "blocks/blocks", "encoder.layer.{n}.", "embeddings."
  rules = [
    Rule("embedding/table", f"{e}word_embeddings.weight"),
    Rule("posemb/table", f"{e}position_embeddings.weight"),
    *hub.norm("embed_norm", f"{e}LayerNorm"),
    *hub.linear(f"{ours}/mlp/up", f"{block}intermediate.dense"),
    *hub.linear(f"{ours}/mlp/down", f"{block}output.dense"),
    *hub.norm(f"{ours}/norm2", f"{block}output.LayerNorm"),
  ]
  for name, norm, theirs in (
    ("attention", "norm1", f"{block}attention."),
    ("cross", "norm_cross", f"{block}crossattention."),
  ):
    rules += hub.attention(
      f"{ours}/{name}",
      [f"{theirs}self.{x}" for x in ("query", "key", "value")],
      f"{theirs}output.dense",
      heads,
    )
    rules += hub.norm(f"{ours}/{norm}", f"{theirs}output.LayerNorm")
  return rules


def _head() -> list[Rule]:
  return [
    *hub.linear("transform", "transform.dense"),
    *hub.norm("head_norm", "transform.LayerNorm"),
    Rule("bias", "bias"),
  ]
