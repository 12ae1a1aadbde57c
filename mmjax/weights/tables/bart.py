"""BART and mBART in the model hub's layout, bare or with a head.

The head of words is the table of embeddings, unless the config unties them;
what it adds stands in `final_logits_bias`, which a bare model lacks. Without
an encoder it is the decoder as a language model, whose attention to a memory
is written again, and not read.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import LINEAR, Rule
from mmjax.weights.tables import hub

HEAD = "lm_head.weight"
# Whether norms come first.
MODEL_TYPES = {"bart": False, "mbart": True}

# What files may leave out.
DEFAULTS = dict(
  vocab_size=50265,
  max_position_embeddings=1024,
  encoder_layers=12,
  encoder_ffn_dim=4096,
  encoder_attention_heads=16,
  decoder_layers=12,
  decoder_ffn_dim=4096,
  decoder_attention_heads=16,
  activation_function="gelu",
  d_model=1024,
  scale_embedding=False,
  tie_word_embeddings=True,
  decoder_start_token_id=2,
  eos_token_id=2,
)
# What old configs say of models that are no BART of the paper: norms before
# the branches and at the end (as mBART's), or none after the embeddings.
NORMS = ("normalize_before", "add_final_layer_norm")
FIXED = dict(
  normalize_embedding=True,
  static_position_embeddings=False,
  add_bias_logits=False,
)


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a BART, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow.
  """
  found = checkpoint.config
  kind = found.get("model_type")
  if kind not in MODEL_TYPES:
    return None
  config, norms_first = {**DEFAULTS, **found}, MODEL_TYPES[kind]
  _check(config, norms_first)
  names = checkpoint.shapes
  prefix = hub.prefix(checkpoint, "model.")
  if any(f"{prefix}decoder." in n for n in names) and not any(
    n.startswith(f"{prefix}encoder.") for n in names
  ):
    return _decoder(checkpoint, config, prefix, norms_first)
  tied = bool(config["tie_word_embeddings"])
  bias = "final_logits_bias" in names
  vocab = config["vocab_size"]
  rules = [
    *_tables(names, prefix, tied),
    *rename.under("", prefix, _stack("encoder", config, cross=False)),
    *rename.under("", prefix, _stack("decoder", config, cross=True)),
  ]
  if bias:
    rules.append(
      Rule(
        "head_bias",
        "final_logits_bias",
        rename.reshape((vocab,), (1, vocab)),
        collection="constants",
      )
    )
  if norms_first:
    for part in ("encoder", "decoder"):
      rules += hub.norm(f"{part}_last", f"{prefix}{part}.layer_norm")
  head = names.get("classification_head.out_proj.weight")
  if head is not None:
    rules += hub.linear("classes_dense", "classification_head.dense")
    rules += hub.linear("classes_head", "classification_head.out_proj")
  spans = "qa_outputs.weight" in names
  if spans:
    rules += hub.linear("spans_head", "qa_outputs")
  return Recipe(
    table="bart",
    model=dict(
      name="bart",
      vocab_size=vocab,
      width=config["d_model"],
      depth=config["encoder_layers"],
      decoder_depth=config["decoder_layers"],
      heads=config["encoder_attention_heads"],
      decoder_heads=config["decoder_attention_heads"],
      mlp=config["encoder_ffn_dim"],
      decoder_mlp=config["decoder_ffn_dim"],
      length=config["max_position_embeddings"],
      act=hub.ACTS[config["activation_function"]],
      scale_embedding=config["scale_embedding"],
      bias=bias,
      norms_first=norms_first,
      two_tables=not tied,
      tied=tied or HEAD not in names,
      classes=None if head is None else head[0],
      spans=spans,
      # mBART's start is the language, the text's last token.
      start_id=None if norms_first else config["decoder_start_token_id"],
      eos_id=config["eos_token_id"],
    ),
    inputs={
      "tokens": ((1, 1), "int32"),
      "decoder_tokens": ((1, 1), "int32"),
    },
    rules=rules,
    config=found,
    # Copies of the table; and where they are no copies, one that is not read.
    ignore=(
      r"^lm_head\.weight$",
      r"^(model\.)?(encoder|decoder)\.embed_tokens\.weight$",
    )
    if tied
    else (),
    keep=() if tied else (r"^(model\.)?shared\.weight$",),
  )


def _tables(names: Mapping[str, Any], prefix: str, tied: bool) -> list[Rule]:
  """Returns the rules of the tables of tokens, and of a head of its own."""
  copies = [
    f"{prefix}{part}.weight"
    for part in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
  ]
  if tied:  # a file may hold any one
    return [Rule("embedding/table", hub.either(names, *copies))]
  found = [
    Rule("embedding/table", copies[1]),
    Rule("decoder_embedding/table", copies[2]),
  ]
  if HEAD in names:
    found.append(Rule("head/kernel", HEAD, LINEAR))
  return found


def _decoder(
  checkpoint: Checkpoint,
  config: Mapping[str, Any],
  prefix: str,
  norms_first: bool,
) -> Recipe:
  """A decoder without an encoder."""
  names, tied = checkpoint.shapes, bool(config["tie_word_embeddings"])
  table = f"{prefix}decoder.embed_tokens.weight"
  rules = [
    Rule("embedding/table", hub.either(names, table, HEAD) if tied else table),
    *(() if tied else (Rule("head/kernel", HEAD, LINEAR),)),
    *rename.under("", prefix, _stack("decoder", config, cross=False)),
  ]
  if norms_first:
    rules += hub.norm("last_norm", f"{prefix}decoder.layer_norm")
  ours = {"decoder_places/": "places/", "decoder_norm/": "embedding_norm/"}
  for old, new in ours.items():
    rules = [
      dataclasses.replace(rule, ours=rule.ours.replace(old, new))
      for rule in rules
    ]
  return Recipe(
    table="bart",
    model=dict(
      name="bart_decoder",
      vocab_size=config["vocab_size"],
      width=config["d_model"],
      depth=config["decoder_layers"],
      heads=config["decoder_attention_heads"],
      mlp=config["decoder_ffn_dim"],
      length=config["max_position_embeddings"],
      act=hub.ACTS[config["activation_function"]],
      scale_embedding=config["scale_embedding"],
      norms_first=norms_first,
      tied=tied,
    ),
    inputs={"tokens": ((1, 1), "int32")},
    rules=rules,
    config=checkpoint.config,
    ignore=(r"^lm_head\.weight$",) if tied else (),
    keep=(r"\.encoder_attn(_layer_norm)?\.",),
  )


def _check(config: Mapping[str, Any], norms_first: bool) -> None:
  act = config["activation_function"]
  if act not in hub.ACTS:
    raise errors.unknown("config.json activation_function", act, hub.ACTS)
  norms = {name: norms_first for name in NORMS}
  for name, value in {**FIXED, **norms}.items():
    if config.get(name, value) != value:
      raise errors.InputError(
        f"config.json {name} = {config[name]!r}: not the BART that we have; "
        f"only {value!r} is known."
      )
  for side in ("encoder", "decoder"):
    heads = config[f"{side}_attention_heads"]
    if config["d_model"] % heads:
      raise errors.InputError(
        f"config.json {side}_attention_heads = {heads} does not divide d_model "
        f"= {config['d_model']}; one of them is wrong."
      )


def _stack(name: str, config: Mapping[str, Any], *, cross: bool) -> list[Rule]:
  """Returns the rules of the encoder or the decoder."""
  ours, block = f"{name}/blocks", f"{name}.layers.{{n}}."
  parts = [("attention", "self_attn", "norm1")]
  if cross:
    parts.append(("cross", "encoder_attn", "norm_cross"))
  found = [
    Rule(f"{name}_places/table", f"{name}.embed_positions.weight"),
    *hub.norm(f"{name}_norm", f"{name}.layernorm_embedding"),
    *hub.norm(f"{ours}/norm2", f"{block}final_layer_norm"),
    *hub.linear(f"{ours}/mlp/up", f"{block}fc1"),
    *hub.linear(f"{ours}/mlp/down", f"{block}fc2"),
  ]
  for attention, theirs, norm in parts:
    found += hub.norm(f"{ours}/{norm}", f"{block}{theirs}_layer_norm")
    found += hub.attention(
      f"{ours}/{attention}",
      [f"{block}{theirs}.{x}_proj" for x in "qkv"],
      f"{block}{theirs}.out_proj",
      config[f"{name}_attention_heads"],
    )
  return found
