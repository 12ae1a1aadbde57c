"""The text towers of open_clip's models that are BERTs of the model hub.

No table: what `open_clip_towers.py` reads under "text.". The config names the
hub's model, whose own config.json is not there: what it says beside sizes is
known here by name, and `hf_model_config` may say it anew.
"""

from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.rename import Rule
from mmjax.weights.tables import (
  bert,
  bert_layers,
  hub,
  open_clip_config,
  timm_layers,
)

EMBEDDINGS = "text.transformer.embeddings."
# Text models of the hub: what their config.json says that tensors do not.
TEXTS: dict[str, dict[str, Any]] = {
  **{
    f"{prefix}{name}": dict(
      model_type=kind, num_attention_heads=heads, layer_norm_eps=1e-5
    )
    for prefix in ("", "FacebookAI/")
    for name, kind, heads in (
      ("roberta-base", "roberta", 12),
      ("roberta-large", "roberta", 16),
      ("xlm-roberta-base", "xlm-roberta", 12),
      ("xlm-roberta-large", "xlm-roberta", 16),
    )
  },
  **{
    f"{prefix}bert-{size}-{case}": dict(
      model_type="bert", num_attention_heads=heads
    )
    for prefix in ("", "google-bert/")
    for size, heads in (("base", 12), ("large", 16))
    for case in ("cased", "uncased")
  },
}
# By hf_pooler_type, where there is no dense layer for the first token.
POOLS = {
  "mean_pooler": "mean",
  "cls_pooler": "cls",
  "cls_last_hidden_state_pooler": "cls",
}
PROJECTIONS = ("mlp", "linear", None)
# Fields of hf_model_config: sizes, which are used or checked, and rates.
_OVERRIDES = (
  "num_attention_heads",
  "layer_norm_eps",
  "pad_token_id",
  "hidden_act",
)
_CHECKED = (
  "vocab_size",
  "hidden_size",
  "num_hidden_layers",
  "intermediate_size",
  "max_position_embeddings",
  "type_vocab_size",
)
_RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob")


def hub_text(
  checkpoint: Checkpoint, said: open_clip_config.Said
) -> tuple[dict[str, Any], int, list[Rule], list[Rule]]:
  """Returns keywords, length, rules and rules of the projection.

  A projection of two layers is part of the tower, as `models.projected`.

  Args:
    checkpoint: of open_clip.
    said: its checked config.

  Raises:
    InputError: a model, pooler, projection or field that we cannot follow, or
      that contradicts the tensors.
  """
  shapes = checkpoint.shapes
  config = _hub_config(shapes, said)
  pad, longest = config["pad_token_id"], config["max_position_embeddings"]
  roberta = config["model_type"] != "bert"
  if roberta:  # rows up to that of padding are no token's
    longest -= pad + 1
  inner = "transformer."
  pooler = f"text.{inner}pooler.dense.weight" in shapes
  default = "mean_pooler" if roberta else "cls_pooler"
  kind = said.fields.get("text_cfg.hf_pooler_type") or default
  if kind not in POOLS:
    raise errors.unknown(
      "open_clip config text_cfg.hf_pooler_type", kind, POOLS
    )
  pool = "pooler" if pooler and kind == "cls_pooler" else POOLS[kind]
  tower: dict[str, Any] = dict(
    name="bert",
    **hub.sizes(config),
    vocab_size=config["vocab_size"],
    length=config["max_position_embeddings"],
    types=config["type_vocab_size"],
    offset=pad if roberta else None,
    pool=pool,
    pooler=pooler,
    pad_id=pad,
  )
  rules = [
    *bert_layers.embeddings("embed", f"{inner}embeddings"),
    *bert_layers.layers(
      "encoder", f"{inner}encoder.layer.{{n}}", config["num_attention_heads"]
    ),
  ]
  if pooler:
    rules += hub.linear("pooler/dense", f"{inner}pooler.dense")
  embed = said.fields["embed_dim"]
  kind = said.fields.get("text_cfg.hf_proj_type", "mlp")
  if kind not in PROJECTIONS:
    raise errors.unknown(
      "open_clip config text_cfg.hf_proj_type", kind, map(str, PROJECTIONS)
    )
  length = min(said.fields.get("text_cfg.context_length", 77), longest)
  if kind == "mlp":
    up = "text.proj.0.weight"
    if up not in shapes:
      raise errors.InputError(
        f"open_clip config text_cfg.hf_proj_type = 'mlp': there is no {up!r}; "
        "check that config and weights are of one model."
      )
    tower = dict(
      name="projected",
      encoder=tower,
      embed_dim=embed,
      act="gelu_exact",
      hidden=shapes[up][0],
    )
    rules = [
      *rename.under("encoder/", "", rules),
      *hub.linear("projection/up", "proj.0", bias=False),
      *hub.linear("projection/down", "proj.2", bias=False),
    ]
    return tower, length, rules, []
  # Without a type there is none where the widths are equal.
  linear = hub.linear("text_projection", "text.proj", bias=False)
  return tower, length, rules, linear if kind else []


def _hub_config(
  shapes: Mapping[str, Any], said: open_clip_config.Said
) -> dict[str, Any]:
  """Returns what the text model's config.json says, with all its values."""
  name = said.fields.get("text_cfg.hf_model_name")
  if name not in TEXTS:
    raise errors.unknown("open_clip config text_cfg.hf_model_name", name, TEXTS)
  over = said.fields.get("text_cfg.hf_model_config") or {}
  for field in over:
    if field not in (*_OVERRIDES, *_CHECKED, *_RATES):
      raise errors.unknown(
        "open_clip config text_cfg.hf_model_config",
        field,
        (*_OVERRIDES, *_CHECKED, *_RATES),
      )
  e, layer = EMBEDDINGS, "text.transformer.encoder.layer."
  vocab, width = shapes[f"{e}word_embeddings.weight"]
  end = ".intermediate.dense.weight"
  found = dict(
    vocab_size=vocab,
    hidden_size=width,
    num_hidden_layers=sum(
      n.startswith(layer) and n.endswith(end) for n in shapes
    ),
    intermediate_size=shapes[f"{layer}0{end}"][0],
    max_position_embeddings=shapes[f"{e}position_embeddings.weight"][0],
    type_vocab_size=shapes[f"{e}token_type_embeddings.weight"][0],
  )
  timm_layers.agree(over, found, "text_cfg.hf_model_config")
  kind = TEXTS[name]["model_type"]
  known = {**bert.MODEL_TYPES[kind], **TEXTS[name], **over, **found}
  hub.check_heads(
    known["num_attention_heads"], width, ("num_attention_heads", "hidden_size")
  )
  return known
