"""BERT and RoBERTa of the model hub, and sentence-transformers' directories.

A sentence-transformers directory says in modules.json what comes after the
encoder; of its modules a pool (mean or first token) and a scaling to length 1
are known. Our files say the same in config.json, as "sentence_transformers".
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.weights import recipe
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import bert_layers, hub

# What files may leave out.
BERT = dict(
  vocab_size=30522,
  hidden_size=768,
  num_hidden_layers=12,
  num_attention_heads=12,
  intermediate_size=3072,
  hidden_act="gelu",
  max_position_embeddings=512,
  type_vocab_size=2,
  layer_norm_eps=1e-12,
  pad_token_id=0,
)
ROBERTA = {**BERT, "vocab_size": 50265, "pad_token_id": 1}
MODEL_TYPES = {"bert": BERT, "roberta": ROBERTA, "xlm-roberta": ROBERTA}
# Values that we cannot follow, by what they would have to be.
FIXED = {
  "position_embedding_type": "absolute",
  "is_decoder": False,
  "add_cross_attention": False,
  "pruned_heads": {},
}
SENTENCES = "sentence_transformers"


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a BERT, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow.
  """
  kind = checkpoint.config.get("model_type")
  if kind not in MODEL_TYPES:
    return None
  config = recipe.Config(
    {**MODEL_TYPES[kind], **checkpoint.config}, checkpoint.path
  )
  hub.fixed(config, FIXED)
  roberta = kind != "bert"
  pad = config["pad_token_id"]
  if roberta and not isinstance(pad, int):
    raise errors.InputError(
      f"config.json pad_token_id = {pad!r}: RoBERTa's positions count tokens "
      "that are no padding; give its id, 1 in released models."
    )
  longest = config["max_position_embeddings"]
  if roberta:  # rows up to that of padding are no token's
    longest -= pad + 1
  names = checkpoint.tensors
  prefix = bert_layers.prefix(names, "roberta." if roberta else "bert.")
  sentences = _sentences(checkpoint)
  pool = sentences.get("pool")
  pooler = f"{prefix}pooler.dense.weight" in names
  head = "lm_head." if roberta else "cls.predictions."
  words = pool is None and f"{head}bias" in names
  follows = pool is None and "cls.seq_relationship.weight" in names
  if words:
    hub.fixed(config, {"tie_word_embeddings": True})
  ignore = [
    r"embeddings\.(position_ids|token_type_ids)$",
    # Copies of tied weights.
    r"^(cls\.predictions|lm_head)\.decoder\.(weight|bias)$",
  ]
  if pool is not None:
    ignore.append(r"^(cls|lm_head)\.")
  return Recipe(
    table="bert",
    model=dict(
      name="bert",
      **hub.sizes(config),
      vocab_size=config["vocab_size"],
      length=config["max_position_embeddings"],
      types=config["type_vocab_size"],
      offset=pad if roberta else None,
      pool=pool,
      normalise=sentences.get("normalise", False),
      pooler=pooler,
      masked_words=words,
      next_sentence=follows,
      # As the reference: all tokens are seen if no mask is given. Its
      # sentence encoders always give one.
      mask_pad=pool is not None,
      pad_id=pad or 0,
      head_act="gelu_exact" if roberta else None,
    ),
    inputs={"tokens": ((1, longest), "int32")},
    texts={"tokens": longest},
    rules=_rules(config, names, prefix, roberta, pooler, words, follows),
    config={**checkpoint.config, SENTENCES: sentences}
    if sentences
    else checkpoint.config,
    ignore=ignore,
  )


def _rules(
  config: Mapping[str, Any],
  names: Mapping[str, Any],
  prefix: str,
  roberta: bool,
  pooler: bool,
  words: bool,
  follows: bool,
) -> list[Rule]:
  leaves = bert_layers.leaves(names)
  heads = config["num_attention_heads"]
  rules = [
    *bert_layers.embeddings("embed", f"{prefix}embeddings", leaves),
    *bert_layers.layers(
      "encoder", f"{prefix}encoder.layer.{{n}}", heads, leaves
    ),
  ]
  if pooler:
    rules += hub.linear("pooler/dense", f"{prefix}pooler.dense")
  if words and roberta:
    rules += [
      *hub.linear("masked_words/transform/dense", "lm_head.dense"),
      *hub.norm("masked_words/transform/norm", "lm_head.layer_norm"),
      Rule("masked_words/bias", "lm_head.bias"),
    ]
  elif words:
    rules += bert_layers.masked_words("masked_words", "cls.predictions", leaves)
  if follows:
    rules += hub.linear("next_sentence", "cls.seq_relationship")
  return rules


def _sentences(checkpoint: Checkpoint) -> dict[str, Any]:
  """Returns {"pool", "normalise"} of a sentence encoder, {} of any other."""
  file = checkpoint.path / "modules.json"
  if not file.is_file():
    return dict(checkpoint.config.get(SENTENCES) or {})
  found: dict[str, Any] = {}
  for module in _read(file):
    kind = str(module["type"]).rpartition(".")[2]
    if kind == "Pooling":
      folder = checkpoint.path / module["path"]
      found["pool"] = _pool(folder / "config.json")
    elif kind == "Normalize":
      found["normalise"] = True
    elif kind != "Transformer":
      raise errors.InputError(
        f"{file}: type = {module['type']!r}: after the encoder mmjax knows "
        "Pooling and Normalize; delete modules.json to load the encoder alone."
      )
  return found


def _pool(file: pathlib.Path) -> str:
  """Returns our name of a pool, from 1_Pooling/config.json."""
  said = _read(file)
  prefix = "pooling_mode_"
  modes = [said["pooling_mode"]] if "pooling_mode" in said else []
  modes = modes or [
    name.removeprefix(prefix)
    for name, on in said.items()
    if name.startswith(prefix) and on
  ]
  known = {"mean_tokens": "mean", "cls_token": "cls"}
  known |= {"mean": "mean", "cls": "cls"}
  if len(modes) != 1 or modes[0] not in known:
    raise errors.InputError(
      f"{file}: pooling_mode = {', '.join(map(str, modes)) or None}: mmjax "
      "pools sentences by mean_tokens or by cls_token, one of them; delete "
      "modules.json to load the encoder alone."
    )
  if said.get("include_prompt", True) is not True:
    raise errors.InputError(
      f"{file}: include_prompt = {said['include_prompt']!r}: mmjax pools all "
      "tokens of a text; delete modules.json to load the encoder alone."
    )
  return known[modes[0]]


def _read(file: pathlib.Path) -> Any:
  try:
    return json.loads(file.read_text())
  except (OSError, ValueError) as e:
    raise errors.InputError(
      f"{file}: it cannot be read ({e}); fetch the directory anew."
    ) from e
