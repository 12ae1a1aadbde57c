"""T5 of both versions, mT5 and umT5, in the model hub's layout.

Whole, or the encoder alone; with a head of words, of classes of a text or of
each token, or of the ends of an answer. The head of words is the table of
embeddings unless the checkpoint holds another; whether features are scaled
before it, the config says on its own (`scale_decoder_outputs`), or in old
files by `tie_word_embeddings`.
"""

from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import LINEAR, Rule
from mmjax.weights.tables import hub

# What files may leave out.
T5 = dict(
  vocab_size=32128,
  d_model=512,
  d_kv=64,
  d_ff=2048,
  num_layers=6,
  num_decoder_layers=None,
  num_heads=8,
  relative_attention_num_buckets=32,
  relative_attention_max_distance=128,
  layer_norm_epsilon=1e-6,
  feed_forward_proj="relu",
  is_decoder=False,
  tie_word_embeddings=True,
  scale_decoder_outputs=None,
  decoder_start_token_id=None,
  pad_token_id=0,
  eos_token_id=1,
)
MT5 = {
  **T5,
  "vocab_size": 250112,
  "d_ff": 1024,
  "num_layers": 8,
  "num_heads": 6,
  "feed_forward_proj": "gated-gelu",
  "scale_decoder_outputs": False,  # whatever is tied
}
UMT5 = {**MT5, "scale_decoder_outputs": None}
MODEL_TYPES = {"t5": T5, "mt5": MT5, "umt5": UMT5}
BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"
# Theirs -> our activation and whether there is a gate. "gated-gelu" is the
# tanh form of GELU, whatever the config calls it.
FORWARD = {
  f"{gate}{act}": (ours, bool(gate))
  for act, ours in hub.ACTS.items()
  for gate in ("", "gated-")
} | {"gated-gelu": ("gelu", True)}


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a T5, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow, or that contradicts the
      tensors.
  """
  found = checkpoint.config
  kind = found.get("model_type")
  if kind not in MODEL_TYPES:
    return None
  config = {**MODEL_TYPES[kind], **found}
  forward = config["feed_forward_proj"]
  if forward not in FORWARD:
    raise errors.unknown("config.json feed_forward_proj", forward, FORWARD)
  act, gated = FORWARD[forward]
  if config.get("dense_act_fn") is not None:  # goes first, if it is there
    act = hub.act(config, field="dense_act_fn")
  gated = bool(config.get("is_gated_act", gated))
  names = checkpoint.shapes
  prefix = hub.prefix(checkpoint, "transformer.")
  # A config without tensors is of a whole model.
  whole = not names or any(n.startswith(f"{prefix}decoder.") for n in names)
  if config["is_decoder"] and not whole:  # of a whole one it says nothing
    raise errors.InputError(
      "config.json is_decoder = True: a T5 that is a decoder alone is not "
      "known; give a whole one, or the encoder."
    )
  heads, own = config["num_heads"], kind == "umt5"
  tied = "lm_head.weight" not in names
  scaled = config["scale_decoder_outputs"]
  if scaled is None:
    scaled = config["tie_word_embeddings"] is not False
  _check_sizes(checkpoint, config, prefix, gated)
  start = config["decoder_start_token_id"]
  depth = config["num_layers"]
  inputs = {"tokens": ((1, 1), "int32")}
  rules = _stack("encoder", heads, gated, own)
  if whole:
    inputs["decoder_tokens"] = ((1, 1), "int32")
    rules += _stack("decoder", heads, gated, own, cross=True)
  rules = rename.under("", prefix, rules)
  rules.append(Rule("embedding/table", _table(names, prefix)))
  if whole and not tied:
    rules.append(Rule("head/kernel", "lm_head.weight", LINEAR))
  reads, more = _reads(names)
  return Recipe(
    table="t5",
    model=dict(
      name="t5",
      vocab_size=config["vocab_size"],
      width=config["d_model"],
      depth=depth,
      decoder_depth=config["num_decoder_layers"] or depth,
      heads=config["num_heads"],
      head_dim=config["d_kv"],
      mlp=config["d_ff"],
      act=act,
      gated=gated,
      tied=tied,
      scale_head=scaled,
      buckets=config["relative_attention_num_buckets"],
      max_distance=config["relative_attention_max_distance"],
      layer_bias=own,
      **reads,
      start_id=config["pad_token_id"] if start is None else start,
      eos_id=config["eos_token_id"],
      epsilon=config["layer_norm_epsilon"],
    ),
    inputs=inputs,
    rules=[*rules, *more],
    config=found,
    ignore=(
      # Copies of the table.
      r"^(transformer\.)?(encoder|decoder)\.embed_tokens\.weight$",
      # Old files have a bias of distances that nothing reads.
      r"^(transformer\.)?decoder\.block\.0\.layer\.1\.EncDecAttention\."
      "relative_attention_bias",
    ),
  )


def _table(names: Mapping[str, Any], prefix: str) -> str:
  """Returns the name of the table, of which a file may hold any copy."""
  tables = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
  return hub.either(names, *(f"{prefix}{name}.weight" for name in tables))


def _reads(names: Mapping[str, Any]) -> tuple[dict[str, Any], list[Rule]]:
  """Returns keywords and rules of the head that classifies, if there is one."""
  for theirs, each_token in (
    ("classifier", True),
    ("classification_head.out_proj", False),
  ):
    if f"{theirs}.weight" in names:
      classes = names[f"{theirs}.weight"][0]
      rules = hub.linear("classes_head", theirs)
      if not each_token:
        rules += hub.linear("classes_dense", "classification_head.dense")
      return dict(classes=classes, each_token=each_token), rules
  if "qa_outputs.weight" in names:
    return dict(spans=True), hub.linear("spans_head", "qa_outputs")
  return {}, []


def _check_sizes(
  checkpoint: Checkpoint, config: Mapping[str, Any], prefix: str, gated: bool
) -> None:
  """Raises InputError where heads or gate contradict the tensors."""
  if not checkpoint.shapes:
    return
  first = f"{prefix}encoder.block.0."
  gate = f"{first}layer.1.DenseReluDense.wi_1.weight" in checkpoint.shapes
  if gate != gated:
    field, right = "feed_forward_proj", "gated-gelu" if gate else "relu"
    if "is_gated_act" in config:  # goes first
      field, right = "is_gated_act", gate
    raise errors.InputError(
      f"config.json {field} = {config[field]!r}, but the tensors "
      f"{'have' if gate else 'lack'} a gate (wi_1); give {right!r}."
    )
  name = f"{first}{BIAS}"
  shape = checkpoint.shapes.get(name)
  heads = config["num_heads"]
  if shape is not None and shape[1] != heads:
    raise errors.InputError(
      f"config.json num_heads = {heads}, but {name} is of {shape[1]} heads; "
      f"give {shape[1]}."
    )


def _stack(
  name: str, heads: int, gated: bool, own: bool, *, cross: bool = False
) -> list[Rule]:
  """Returns the rules of the encoder or the decoder.

  Args:
    name: of it.
    heads: N.
    gated: the MLP has a gate.
    own: each layer has its own bias of distances; else the first has it.
    cross: it reads a memory.
  """
  ours, block = f"{name}/blocks", f"{name}.block.{{n}}.layer."
  parts = [("attention", "SelfAttention", "norm1")]
  if cross:
    parts.append(("cross", "EncDecAttention", "norm_cross"))
  found = [
    Rule(f"{name}_bias/table", f"{name}.block.{'{n}' if own else 0}.{BIAS}"),
    Rule(f"{name}_norm/scale", f"{name}.final_layer_norm.weight"),
  ]
  for i, (attention, theirs, norm) in enumerate(parts):
    found.append(Rule(f"{ours}/{norm}/scale", f"{block}{i}.layer_norm.weight"))
    for letter, leaf in (("q", "query"), ("k", "key"), ("v", "value")):
      found.append(
        Rule(
          f"{ours}/{attention}/{leaf}/kernel",
          f"{block}{i}.{theirs}.{letter}.weight",
          rename.to_heads(heads),
        )
      )
    found.append(
      Rule(
        f"{ours}/{attention}/out/kernel",
        f"{block}{i}.{theirs}.o.weight",
        rename.from_heads(heads),
      )
    )
  last = f"{block}{len(parts)}."
  dense = f"{last}DenseReluDense."
  ups = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
  found.append(Rule(f"{ours}/norm2/scale", f"{last}layer_norm.weight"))
  for leaf, theirs in {**ups, "down": "wo"}.items():
    found += hub.linear(f"{ours}/mlp/{leaf}", f"{dense}{theirs}", bias=False)
  return found
