"""Gemma (the first) in the model hub's layout (model_type "gemma").

"Gemma: open models based on Gemini research and technology", 2024.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mmjax import errors
from mmjax.weights import recipe, rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import LINEAR, Rule
from mmjax.weights.tables import decoder_heads, hub

MODEL_TYPES = ("gemma",)

# What files may leave out.
DEFAULTS = dict(
  vocab_size=256_000,
  hidden_size=3072,
  intermediate_size=24_576,
  num_hidden_layers=28,
  num_attention_heads=16,
  num_key_value_heads=16,
  head_dim=256,
  max_position_embeddings=8192,
  rms_norm_eps=1e-6,
  attention_bias=False,
  attention_dropout=0.0,
  pad_token_id=0,
  tie_word_embeddings=True,
)
THETA = 10_000.0
ACT = "gelu_pytorch_tanh"


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a Gemma, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow.
  """
  if checkpoint.config.get("model_type") not in MODEL_TYPES:
    return None
  return decoder("gemma", checkpoint, DEFAULTS, keywords, rules)


def decoder(
  table: str,
  checkpoint: Checkpoint,
  defaults: Mapping[str, Any],
  keywords: Callable[[Mapping[str, Any]], dict[str, Any]],
  rules: Callable[[Mapping[str, Any]], list[Rule]],
) -> Recipe:
  """Returns the recipe of a Gemma of any generation, bare or with a head.

  Args:
    table: its name.
    checkpoint: that holds it.
    defaults: what its config may leave out.
    keywords, rules: of the decoder, given the config.
  """
  config = recipe.Config({**defaults, **checkpoint.config}, checkpoint.path)
  prefix = hub.prefix(checkpoint, "model.")
  found = rename.under("", prefix, rules(config))
  words = f"{prefix}embed_tokens.weight"
  known = decoder_heads.table(checkpoint, config, words)
  model, found = decoder_heads.headed(
    checkpoint,
    config,
    dict(name="decoder_lm", **keywords(config)),
    hub.renamed(found, words, known),
  )
  return Recipe(
    table=table,
    model=model,
    inputs={"tokens": ((1, 2), "int32")},
    rules=found,
    config=checkpoint.config,
    ignore=(r"rotary_emb\.inv_freq$", *decoder_heads.copies(config)),
  )


def keywords(config: Mapping[str, Any], part: str = "") -> dict[str, Any]:
  """Returns the keywords of the model of a config.

  Args:
    config: of the decoder.
    part: where it stands in config.json, "text_config", for messages.

  Raises:
    InputError: a config value that we cannot follow.
  """
  where = f"config.json {part}." if part else "config.json "
  if config.get("use_bidirectional_attention"):
    raise errors.InputError(
      f"{where}use_bidirectional_attention = True: this model is causal; only "
      "false can be loaded."
    )
  heads = config["num_attention_heads"]
  kv_heads = config.get("num_key_value_heads") or heads
  if heads % kv_heads:
    raise errors.InputError(
      f"{where}num_attention_heads = {heads} is no multiple of "
      f"num_key_value_heads = {kv_heads}; one of them is wrong."
    )
  return dict(
    vocab_size=config["vocab_size"],
    width=config["hidden_size"],
    depth=config["num_hidden_layers"],
    heads=heads,
    kv_heads=kv_heads,
    head_dim=config["head_dim"],
    mlp=config["intermediate_size"],
    length=config["max_position_embeddings"],
    posemb="rotary",
    theta=theta(config, where),
    act=_act(config, where),
    gated=True,
    norm="rms_plus_one",
    epsilon=config["rms_norm_eps"],
    biases="qkvo" if config["attention_bias"] else "",
    mlp_bias=False,
    embed_scale=True,
    attention_dropout=config["attention_dropout"],
  )


def theta(config: Mapping[str, Any], where: str = "config.json ") -> float:
  """Returns theta of rotary positions, in the words of either generation.

  Raises:
    InputError: positions that are stretched, or two values that disagree.
  """
  said = config.get("rope_parameters") or {}
  scaling = config.get("rope_scaling")
  if scaling or said.get("rope_type", "default") != "default":
    name = "rope_scaling" if scaling else "rope_parameters.rope_type"
    value = scaling or said["rope_type"]
    raise errors.InputError(
      f"{where}{name} = {value!r}: only plain rotary positions can be loaded "
      "(null, or 'default')."
    )
  found = {
    name: float(value)
    for name, value in (
      ("rope_parameters.rope_theta", said.get("rope_theta")),
      ("rope_theta", config.get("rope_theta")),
    )
    if value is not None
  }
  if len(set(found.values())) > 1:
    raise errors.InputError(
      f"{where}rope_theta = {config['rope_theta']}, but "
      f"rope_parameters.rope_theta = {said['rope_theta']}; keep the right one."
    )
  return next(iter(found.values()), THETA)


def _act(config: Mapping[str, Any], where: str) -> str:
  # Early files say "gelu" and mean its approximation; later ones have
  # `hidden_activation`, which wins over that.
  found = {
    name: ACT if config[name] == "gelu" else config[name]
    for name in ("hidden_activation", "hidden_act")
    if config.get(name)
  }
  if len(set(found.values())) > 1:
    raise errors.InputError(
      f"{where}hidden_activation = {config['hidden_activation']!r}, but "
      f"hidden_act = {config['hidden_act']!r}; keep the right one."
    )
  name = next(iter(found.values()), ACT)
  if name not in hub.ACTS:
    raise errors.unknown(f"{where}{next(iter(found))}", name, hub.ACTS)
  return hub.ACTS[name]


def rules(config: Mapping[str, Any]) -> list[Rule]:
  """Returns the rules of the decoder, its head not included."""
  heads = config["num_attention_heads"]
  kv_heads = config.get("num_key_value_heads") or heads
  ours, block = "decoder/blocks/", "layers.{n}."
  found = [
    Rule("embedding/table", "embed_tokens.weight"),
    Rule("final_norm/scale", "norm.weight"),
    Rule(f"{ours}norm1/scale", f"{block}input_layernorm.weight"),
    Rule(f"{ours}norm2/scale", f"{block}post_attention_layernorm.weight"),
    *(
      Rule(f"{ours}mlp/{x}/kernel", f"{block}mlp.{x}_proj.weight", LINEAR)
      for x in ("gate", "up", "down")
    ),
  ]
  leaves = [("kernel", "weight")]
  if config["attention_bias"]:
    leaves.append(("bias", "bias"))
  for mine, theirs, n in (
    ("query", "q", heads),
    ("key", "k", kv_heads),
    ("value", "v", kv_heads),
    ("out", "o", heads),
  ):
    for leaf, name in leaves:
      op = rename.to_heads(n)
      if mine == "out":
        op = rename.from_heads(n) if leaf == "kernel" else rename.SAME
      found.append(
        Rule(
          f"{ours}attention/{mine}/{leaf}",
          f"{block}self_attn.{theirs}_proj.{name}",
          op,
        )
      )
  return found
