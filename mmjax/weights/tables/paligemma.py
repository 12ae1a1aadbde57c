"""PaliGemma 1 and 2 of the hub (model_type "paligemma").

"PaliGemma: a versatile 3B VLM for transfer", Beyer et al. 2024; "PaliGemma 2: a
family of versatile VLMs for transfer", Steiner et al. 2024, whose text_config
has the model_type "gemma2". The hub's files say `vision_tower.vision_model.`
and `language_model.model.`; what transformers 5 writes leaves out the inner
names, or puts `model.` before all.
"""

from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.weights import recipe, rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import gemma, gemma2, hub, siglip

MODEL_TYPES = ("paligemma",)
IMAGES = ("siglip_vision_model", "siglip")
LANGUAGES: dict[str, Any] = {"gemma": gemma, "gemma2": gemma2}

# What files may leave out as a whole.
IMAGE = dict(
  hidden_size=1152,
  intermediate_size=4096,
  num_hidden_layers=27,
  num_attention_heads=16,
  image_size=224,
  patch_size=14,
)
TEXT = dict(
  hidden_size=2048,
  intermediate_size=16_384,
  num_hidden_layers=18,
  num_attention_heads=8,
  num_key_value_heads=1,
  vocab_size=257_152,
)


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a PaliGemma, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow.
  """
  config = checkpoint.config
  if config.get("model_type") not in MODEL_TYPES:
    return None
  image = {**siglip.IMAGE, **(config.get("vision_config") or IMAGE)}
  text = config.get("text_config") or TEXT
  kind = text.get("model_type", "gemma")
  if kind not in LANGUAGES:
    raise errors.unknown("config.json text_config.model_type", kind, LANGUAGES)
  table = LANGUAGES[kind]
  text = {**table.DEFAULTS, **text}
  _check(config, image, text)
  image["vision_use_head"] = False  # its pooling head is not read
  # It says that prompts are seen both ways, which the model does by itself.
  text.pop("use_bidirectional_attention", None)
  language = recipe.Config(text, checkpoint.path)
  towers = _prefix(checkpoint, "embeddings.patch_embedding.weight")
  projector = _prefix(checkpoint, "multi_modal_projector.linear.weight")
  words = _prefix(checkpoint, "embed_tokens.weight")
  head = []
  heads = _prefix(checkpoint, "lm_head.weight")
  own = f"{heads}lm_head.weight" in checkpoint.tensors
  if own and config.get("tie_word_embeddings") is False:
    head.append(Rule("language/head", f"{heads}lm_head.weight", rename.LINEAR))
  return Recipe(
    table="paligemma",
    model=dict(
      name="paligemma",
      image=siglip.image_model(image, False, "vision_config"),
      language=dict(
        name="decoder_lm",
        **table.keywords(language, "text_config"),
        tied=not head,
      ),
    ),
    inputs={"image": hub.image_input(image), "tokens": ((1, 2), "int32")},
    rules=[
      *rename.under("image/", towers, siglip.image_rules(image, False)),
      *hub.linear("projection", f"{projector}multi_modal_projector.linear"),
      *rename.under("language/", words, table.rules(language)),
      *head,
    ],
    config=config,
    prompts={"tokens": "suffix"},
    ignore=(
      r"\.position_ids$",
      r"rotary_emb\.inv_freq$",
      # A copy of the embeddings.
      *([] if head else [r"(^|\.)lm_head\.weight$"]),
    ),
    keep=(r"vision_tower\.(vision_model\.)?head\.",),
  )


def _prefix(checkpoint: Checkpoint, name: str) -> str:
  """Returns what stands before a tensor's name; "" if there is none."""
  found = [n for n in checkpoint.tensors if n.endswith(name)]
  return found[0].removesuffix(name) if found else ""


def _check(
  config: Mapping[str, Any], image: Mapping[str, Any], text: Mapping[str, Any]
) -> None:
  kind, known = image.get("model_type", IMAGES[0]), IMAGES
  if kind not in known:
    raise errors.unknown("config.json vision_config.model_type", kind, known)
  if text.get("model_type") == "gemma2":
    return
  for name in ("final_logit_softcapping", "sliding_window"):
    if text.get(name):
      raise errors.InputError(
        f"config.json text_config.{name} = {text[name]!r}: Gemma, the first, "
        "has none; only null can be loaded."
      )
