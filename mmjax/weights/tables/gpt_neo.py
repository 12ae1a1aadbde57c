"""GPT-Neo in the model hub's layout (model_type "gpt_neo").

"GPT-Neo: large scale autoregressive language modeling", Black et al. 2021: a
public model of GPT-3's kind, whose layers see all before them or a band, and
whose scores are not scaled.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.weights import recipe, rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import decoder_heads, hub

MODEL_TYPES = ("gpt_neo",)

# What files may leave out.
DEFAULTS = dict(
  vocab_size=50_257,
  max_position_embeddings=2048,
  hidden_size=2048,
  num_layers=24,
  attention_types=[[["global", "local"], 12]],
  num_heads=16,
  intermediate_size=None,
  window_size=256,
  activation_function="gelu_new",
  layer_norm_epsilon=1e-5,
  resid_dropout=0.0,
  embed_dropout=0.0,
  attention_dropout=0.0,
  pad_token_id=None,
  tie_word_embeddings=True,
)
LETTERS = {"global": "g", "local": "b"}


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a GPT-Neo, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow.
  """
  if checkpoint.config.get("model_type") not in MODEL_TYPES:
    return None
  config = recipe.Config({**DEFAULTS, **checkpoint.config}, checkpoint.path)
  heads, width = config["num_heads"], config["hidden_size"]
  hub.check_heads(heads, width, ("num_heads", "hidden_size"))
  pattern, depth = _pattern(config), config["num_layers"]
  model: dict[str, Any] = dict(
    name="decoder_lm",
    vocab_size=config["vocab_size"],
    width=width,
    depth=depth,
    heads=heads,
    mlp=config["intermediate_size"] or 4 * width,
    length=config["max_position_embeddings"],
    pattern=pattern,
    window=config["window_size"],
    scale=1.0,
    biases="o",
    act=hub.act(config, field="activation_function"),
    epsilon=config["layer_norm_epsilon"],
    dropout=config["resid_dropout"],
    embed_dropout=config["embed_dropout"],
    attention_dropout=config["attention_dropout"],
  )
  prefix = hub.prefix(checkpoint, "transformer.")
  rules = decoder_heads.ends(checkpoint, prefix, config)
  for i in range(len(pattern)):
    # Blocks that see alike are stacked together.
    place = f"block{i}/" if len(pattern) > 1 else ""
    layers = tuple(range(i, depth, len(pattern)))
    rules += [
      dataclasses.replace(rule, layers=layers)
      for rule in rename.under(
        f"decoder/blocks/{place}", f"{prefix}h.{{n}}.", _block(heads)
      )
    ]
  model, rules = decoder_heads.headed(checkpoint, config, model, rules)
  return Recipe(
    table="gpt_neo",
    model=model,
    inputs={"tokens": ((1, 2), "int32")},
    rules=rules,
    config=checkpoint.config,
    # Masks in old files, and the copy of the tied head.
    ignore=(
      r"\.attn\.attention\.(masked_)?bias$",
      *decoder_heads.copies(config),
    ),
  )


def _pattern(config: Mapping[str, Any]) -> str:
  """Returns the shortest letters that give the kinds of the layers, in turn."""
  kinds = [
    kind for some, n in config["attention_types"] for kind in list(some) * n
  ]
  for kind in kinds:
    if kind not in LETTERS:
      raise errors.unknown("config.json attention_types", kind, LETTERS)
  depth = config["num_layers"]
  if len(kinds) != depth:
    raise errors.InputError(
      f"config.json attention_types = {config['attention_types']!r} names "
      f"{len(kinds)} layers, but num_layers = {depth}; make them agree."
    )
  # Without layers any letter serves.
  return hub.period("".join(LETTERS[kind] for kind in kinds)) or "g"


def _block(heads: int) -> list[Rule]:
  attention = [
    Rule(
      f"attention/{ours}/kernel",
      f"attn.attention.{theirs}_proj.weight",
      rename.to_heads(heads),
    )
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"))
  ]
  return [
    *hub.norm("norm1", "ln_1"),
    *hub.norm("norm2", "ln_2"),
    *attention,
    Rule(
      "attention/out/kernel",
      "attn.attention.out_proj.weight",
      rename.from_heads(heads),
    ),
    Rule("attention/out/bias", "attn.attention.out_proj.bias"),
    *hub.linear("mlp/up", "mlp.c_fc"),
    *hub.linear("mlp/down", "mlp.c_proj"),
  ]
