"""Gemma 2 in the model hub's layout (model_type "gemma2").

"Gemma 2: improving open language models at a practical size", 2024: branches
end in a norm, every second layer sees a band, scores and logits are capped.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import gemma, hub

MODEL_TYPES = ("gemma2",)

# What files may leave out.
DEFAULTS = gemma.DEFAULTS | dict(
  hidden_size=2304,
  intermediate_size=9216,
  num_hidden_layers=26,
  num_attention_heads=8,
  num_key_value_heads=4,
  query_pre_attn_scalar=256,
  sliding_window=4096,
  layer_types=None,
  attn_logit_softcapping=50.0,
  final_logit_softcapping=30.0,
  hidden_activation=gemma.ACT,
)
LETTERS = {"full_attention": "g", "sliding_attention": "b"}
_NORMS = (
  ("norm1", "input"),
  ("norm1_after", "post_attention"),
  ("norm2", "pre_feedforward"),
  ("norm2_after", "post_feedforward"),
)


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a Gemma 2, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow.
  """
  if checkpoint.config.get("model_type") not in MODEL_TYPES:
    return None
  return gemma.decoder("gemma2", checkpoint, DEFAULTS, keywords, rules)


def keywords(config: Mapping[str, Any], part: str = "") -> dict[str, Any]:
  """Returns the keywords of the model, as `gemma.keywords` does."""
  scalar = config["query_pre_attn_scalar"]
  where = f"config.json {part}." if part else "config.json "
  if not scalar or scalar < 0:
    raise errors.InputError(
      f"{where}query_pre_attn_scalar = {scalar}: scores are divided by its "
      "root, so it must be above 0; Gemma 2 has 256, the largest 144."
    )
  pattern = _pattern(config, where)
  found = gemma.keywords(config, part)
  if config.get("hidden_activation") == "gelu":
    # Of the first Gemma that is the approximation, by an old mistake.
    found["act"] = hub.ACTS["gelu"]
  return dict(
    **found,
    pattern=pattern,
    window=config["sliding_window"] if "b" in pattern else None,
    scale=scalar**-0.5,
    softcap=config["attn_logit_softcapping"],
    logits_cap=config["final_logit_softcapping"],
    norm_after=True,
  )


def _pattern(config: Mapping[str, Any], where: str = "config.json ") -> str:
  """Returns the shortest letters that give the kinds of the layers, in turn."""
  depth, kinds = config["num_hidden_layers"], config["layer_types"]
  if kinds is None:
    both = ("sliding_attention", "full_attention")
    kinds = [both[n % 2] for n in range(depth)]
  for kind in kinds:
    if kind not in LETTERS:
      raise errors.unknown(f"{where}layer_types", kind, LETTERS)
  if len(kinds) != depth:
    raise errors.InputError(
      f"{where}layer_types names {len(kinds)} layers, but num_hidden_layers = "
      f"{depth}; make them agree."
    )
  # Without layers any letter serves.
  return hub.period("".join(LETTERS[kind] for kind in kinds)) or "g"


def rules(config: Mapping[str, Any]) -> list[Rule]:
  """Returns the rules of the decoder, its head not included."""
  norms = [
    Rule(
      f"decoder/blocks/{ours}/scale", f"layers.{{n}}.{name}_layernorm.weight"
    )
    for ours, name in _NORMS
  ]
  block = [
    rule
    for rule in gemma.rules(config)
    if rule.stacked and "norm" not in rule.ours
  ]
  once = [rule for rule in gemma.rules(config) if not rule.stacked]
  depth, pattern = config["num_hidden_layers"], _pattern(config)
  if len(pattern) == 1:
    return [*once, *norms, *block]
  # Blocks that see alike are stacked together.
  return once + [
    dataclasses.replace(
      rule,
      ours=rule.ours.replace("blocks/", f"blocks/block{i}/"),
      layers=tuple(range(i, depth, len(pattern))),
    )
    for i in range(len(pattern))
    for rule in norms + block
  ]
