"""BERT and RoBERTa of the model hub, and sentence-transformers' directories.

Heads are those of words, of the next sentence, of classes (of a text, or of
each token) and of spans. What a text's head reads is RoBERTa's own dense layer
in place of its pooler, which such files may hold without a reader.

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
from mmjax.weights.rename import LINEAR, Rule
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
  is_decoder=False,
  tie_word_embeddings=True,
)
ROBERTA = {**BERT, "vocab_size": 50265, "pad_token_id": 1}
MODEL_TYPES = {
  "bert": BERT,
  "roberta": ROBERTA,
  "xlm-roberta": ROBERTA,
  "camembert": ROBERTA,
}
# What `classifier` reads, by the end of the class's name.
EACH_TOKEN = {
  "ForTokenClassification": True,
  "ForSequenceClassification": False,
  "ForMultipleChoice": False,
}
# Values that we cannot follow, by what they would have to be.
FIXED = {
  "position_embedding_type": "absolute",
  "add_cross_attention": False,
  "pruned_heads": {},
}
SENTENCES = "sentence_transformers"
TEXT_HEAD = "classifier.dense"  # RoBERTa's


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
  pooler, classes, each_token = _classes(checkpoint, f"{prefix}pooler.dense")
  spans = "qa_outputs.weight" in names
  head = "lm_head." if roberta else "cls.predictions."
  tied = bool(config["tie_word_embeddings"])
  bias = [f"{head}bias", f"{head}decoder.bias"]
  bias = hub.either(names, *(bias if tied else bias[::-1]))
  words = pool is None and bias in names
  follows = pool is None and "cls.seq_relationship.weight" in names
  ignore = [r"embeddings\.(position_ids|token_type_ids)$"]
  keep = []  # what nothing reads
  if tied:  # these are copies
    ignore.append(r"^(cls\.predictions|lm_head)\.decoder\.(weight|bias)$")
  else:
    keep.append(r"^(cls\.predictions|lm_head)\.bias$")
  if pooler == TEXT_HEAD:
    keep.append(r"^\w+\.pooler\.dense\.")
  if pool is not None:
    keep.append(r"^(cls|lm_head)\.")
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
      pooler=pooler is not None,
      masked_words=words,
      tied=tied or not words,
      causal=bool(config["is_decoder"]),
      next_sentence=follows,
      classes=classes,
      each_token=each_token,
      spans=spans,
      # As the reference: all tokens are seen if no mask is given. Its
      # sentence encoders always give one.
      mask_pad=pool is not None,
      pad_id=pad or 0,
      head_act="gelu_exact" if roberta else None,
    ),
    inputs={"tokens": ((1, longest), "int32")},
    texts={"tokens": longest},
    rules=[
      *_rules(config, names, prefix, pooler, tied),
      *(_words(names, bias) if words else ()),
      *(
        [Rule("masked_words/kernel", f"{head}decoder.weight", LINEAR)]
        if words and not tied
        else ()
      ),
      *(hub.linear("next_sentence", "cls.seq_relationship") if follows else ()),
      *(
        hub.linear(
          "classes_head",
          "classifier.out_proj" if pooler == TEXT_HEAD else "classifier",
        )
        if classes is not None
        else ()
      ),
      *(hub.linear("spans_head", "qa_outputs") if spans else ()),
    ],
    config={**checkpoint.config, SENTENCES: sentences}
    if sentences
    else checkpoint.config,
    ignore=ignore,
    keep=keep,
  )


def _classes(
  checkpoint: Checkpoint, pooler: str
) -> tuple[str | None, int | None, bool]:
  """Returns what is pooled by, a number of classes, and whether of each token.

  Args:
    checkpoint: of the model.
    pooler: name of its pooler, which may not be there.

  Raises:
    InputError: neither names nor config say what the classes are of.
  """
  shapes = checkpoint.shapes
  if f"{TEXT_HEAD}.weight" in shapes:
    return TEXT_HEAD, shapes["classifier.out_proj.weight"][0], False
  pooled = pooler if f"{pooler}.weight" in shapes else None
  if "classifier.weight" not in shapes:
    return pooled, None, False
  classes = shapes["classifier.weight"][0]
  if pooled is None:
    return None, classes, True
  named = checkpoint.config.get("architectures") or [None]
  for end, each_token in EACH_TOKEN.items():
    if str(named[0]).endswith(end):
      return pooled, classes, each_token
  raise errors.InputError(
    f"config.json architectures = {named!r}: the classifier may read a text or "
    "each token; name the model's class, such as BertForSequenceClassification "
    "or BertForTokenClassification."
  )


def _rules(
  config: Mapping[str, Any],
  names: Mapping[str, Any],
  prefix: str,
  pooler: str | None,
  tied: bool,
) -> list[Rule]:
  leaves = bert_layers.leaves(names)
  heads = config["num_attention_heads"]
  rules = [
    *bert_layers.embeddings("embed", f"{prefix}embeddings", leaves),
    *bert_layers.layers(
      "encoder", f"{prefix}encoder.layer.{{n}}", heads, leaves
    ),
  ]
  if pooler is not None:
    rules += hub.linear("pooler/dense", pooler)
  if not tied:
    return rules
  # Of tied tensors a file may hold any one.
  return hub.renamed(
    rules,
    f"{prefix}embeddings.word_embeddings.weight",
    hub.either(
      names,
      f"{prefix}embeddings.word_embeddings.weight",
      "cls.predictions.decoder.weight",
      "lm_head.decoder.weight",
    ),
  )


def _words(names: Mapping[str, Any], bias: str) -> list[Rule]:
  """Returns the rules of the head of words, BERT's or RoBERTa's."""
  ours = "masked_words"
  if bias.startswith("cls."):
    leaves = bert_layers.leaves(names)
    rules = bert_layers.masked_words(ours, "cls.predictions", leaves)
    return hub.renamed(rules, "cls.predictions.bias", bias)
  return [
    *hub.linear(f"{ours}/transform/dense", "lm_head.dense"),
    *hub.norm(f"{ours}/transform/norm", "lm_head.layer_norm"),
    Rule(f"{ours}/bias", bias),
  ]


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
