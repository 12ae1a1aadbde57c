"""LXMERT: the model hub's ("lxmert."), and the authors' own files ("bert.").

The authors' (github airsplay/lxmert) are state dicts without a config, whose
names may begin with "module."; a config.json beside them, of the hub's kind,
is followed. Without one all sizes come from the tensors, heads are of width 64
and the activation is GELU, as in the paper.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mmjax import errors
from mmjax.weights import recipe
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import LINEAR, Rule
from mmjax.weights.tables import bert_layers, hub

MODEL_TYPES = ("lxmert",)
# What files may leave out.
DEFAULTS = dict(
  vocab_size=30522,
  hidden_size=768,
  num_attention_heads=12,
  num_qa_labels=9500,
  num_object_labels=1600,
  num_attr_labels=400,
  intermediate_size=3072,
  hidden_act="gelu",
  max_position_embeddings=512,
  type_vocab_size=2,
  l_layers=9,
  x_layers=5,
  r_layers=5,
  visual_feat_dim=2048,
  visual_pos_dim=4,
)
# The reference takes no notice of an epsilon.
FIXED = {"layer_norm_eps": 1e-12, "position_embedding_type": "absolute"}
HEAD_DIM = 64
# Keyword of the model -> its head, and theirs.
REGION_HEADS = {
  "objects": ("objects_head", "obj"),
  "attributes": ("attributes_head", "attr"),
  "predict_features": ("features_head", "feat"),
}
_CROSS = "encoder.x_layers.0.visual_attention.att.query.weight"


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of an LXMERT, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow.
  """
  names = checkpoint.tensors
  fields = checkpoint.config
  if fields.get("model_type") not in MODEL_TYPES:
    if fields.get("model_type") or not any(n.endswith(_CROSS) for n in names):
      return None
    fields = {**_sizes(checkpoint), **fields}
  config = recipe.Config({**DEFAULTS, **fields}, checkpoint.path)
  hub.fixed(config, FIXED)
  prefix = bert_layers.prefix(names, "lxmert.")
  # Heads stand beside the encoder, within what wraps both.
  root = "module." if prefix.startswith("module.") else ""
  answers = _ending(names, "logit_fc.0.weight").removesuffix("0.weight")
  heads = {
    "masked_words": f"{root}cls.predictions.bias",
    "matched": f"{root}cls.seq_relationship.weight",
    "objects": f"{root}obj_predict_head.decoder_dict.obj.weight",
    "attributes": f"{root}obj_predict_head.decoder_dict.attr.weight",
    "predict_features": f"{root}obj_predict_head.decoder_dict.feat.weight",
    "answers": f"{answers}0.weight",
  }
  there = {name for name, tensor in heads.items() if tensor in names}
  decoder = f"{root}cls.predictions.decoder.weight"
  tied = config.get("tie_word_embeddings", True) or decoder not in names
  classes = {
    "objects": "num_object_labels",
    "attributes": "num_attr_labels",
    "answers": "num_qa_labels",
  }
  parts = {
    name: config[classes[name]] if name in classes else True for name in there
  }
  return Recipe(
    table="lxmert",
    model=dict(
      name="cross_modal",
      vocab_size=config["vocab_size"],
      width=config["hidden_size"],
      text_depth=config["l_layers"],
      region_depth=config["r_layers"],
      cross_depth=config["x_layers"],
      heads=config["num_attention_heads"],
      mlp=config["intermediate_size"],
      features=config["visual_feat_dim"],
      length=config["max_position_embeddings"],
      types=config["type_vocab_size"],
      box=config["visual_pos_dim"],
      act=hub.act(config),
      tied=tied,
      # As the reference: all tokens are seen if no mask is given.
      mask_pad=False,
      **parts,
    ),
    inputs={
      "tokens": ((1, config["max_position_embeddings"]), "int32"),
      "features": ((1, 36, config["visual_feat_dim"]), "float32"),
      "boxes": ((1, 36, config["visual_pos_dim"]), "float32"),
    },
    rules=[
      *_rules(config, names, prefix, root, answers, there),
      *([] if tied else [Rule("masked_words/kernel", decoder, LINEAR)]),
    ],
    config=fields,
    texts={"tokens": config["max_position_embeddings"]},
    ignore=(
      r"embeddings\.position_ids$",
      # A copy of the embedding.
      *([r"cls\.predictions\.decoder\.weight$"] if tied else []),
    ),
    # Before heads over regions of which there are none.
    keep=() if there & REGION_HEADS.keys() else (r"obj_predict_head\.",),
  )


def _ending(names: Iterable[str], end: str) -> str:
  """Returns the name with this ending, "" if there is none."""
  return next((name for name in names if name.endswith(end)), "")


def _sizes(checkpoint: Checkpoint) -> dict[str, Any]:
  """Returns a config of the hub's kind, from the tensors alone."""
  shapes = checkpoint.shapes

  def depth(kind: str) -> int:
    pattern = re.compile(rf"encoder\.{kind}\.(\d+)\.")
    found = (pattern.search(name) for name in shapes)
    return 1 + max((int(m[1]) for m in found if m), default=-1)

  def rows(end: str) -> dict[int, int]:
    return dict(enumerate(shapes.get(_ending(shapes, end), ())))

  width = rows(_CROSS)[0]
  if width % HEAD_DIM:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: an LXMERT of width {width} "
      f"without a config; its heads cannot be of width {HEAD_DIM}. Put a "
      "config.json beside it that says model_type 'lxmert' and "
      "num_attention_heads."
    )
  found = dict(
    vocab_size=rows("embeddings.word_embeddings.weight").get(0),
    max_position_embeddings=rows("embeddings.position_embeddings.weight").get(
      0
    ),
    type_vocab_size=rows("embeddings.token_type_embeddings.weight").get(0),
    visual_feat_dim=rows("visn_fc.visn_fc.weight").get(1),
    visual_pos_dim=rows("visn_fc.box_fc.weight").get(1),
    intermediate_size=rows("x_layers.0.lang_inter.dense.weight").get(0),
    num_qa_labels=rows("logit_fc.3.weight").get(0),
    num_object_labels=rows("decoder_dict.obj.weight").get(0),
    num_attr_labels=rows("decoder_dict.attr.weight").get(0),
  )
  return dict(
    model_type="lxmert",
    hidden_size=width,
    num_attention_heads=width // HEAD_DIM,
    l_layers=depth("layer"),
    x_layers=depth("x_layers"),
    r_layers=depth("r_layers"),
    **{name: value for name, value in found.items() if value is not None},
  )


def _rules(
  config: Mapping[str, Any],
  names: Iterable[str],
  prefix: str,
  root: str,
  answers: str,
  there: set[str],
) -> list[Rule]:
  leaves = bert_layers.leaves(names)
  heads = config["num_attention_heads"]
  e, regions = f"{prefix}encoder.", f"{prefix}encoder.visn_fc."
  rules = [
    *bert_layers.embeddings("embed", f"{prefix}embeddings", leaves),
    *hub.linear("features", f"{regions}visn_fc"),
    *bert_layers.norm("features_norm", f"{regions}visn_layer_norm", leaves),
    *hub.linear("boxes", f"{regions}box_fc"),
    *bert_layers.norm("boxes_norm", f"{regions}box_layer_norm", leaves),
    *hub.linear("pooler/dense", f"{prefix}pooler.dense"),
  ]
  # A stack of no layers has no leaves.
  if config["l_layers"]:
    rules += bert_layers.layers("text", f"{e}layer.{{n}}", heads, leaves)
  if config["r_layers"]:
    rules += bert_layers.layers("regions", f"{e}r_layers.{{n}}", heads, leaves)
  if config["x_layers"]:
    rules += _cross(f"{e}x_layers.{{n}}.", heads, leaves)
  if "masked_words" in there:
    rules += bert_layers.masked_words(
      "masked_words", f"{root}cls.predictions", leaves
    )
  if "matched" in there:
    rules += hub.linear("matched", f"{root}cls.seq_relationship")
  head = f"{root}obj_predict_head."
  if there & REGION_HEADS.keys():
    rules += bert_layers.transform(
      "region_transform", f"{head}transform", leaves
    )
  for name, (ours, theirs) in REGION_HEADS.items():
    if name in there:
      rules += hub.linear(ours, f"{head}decoder_dict.{theirs}")
  if "answers" in there:
    rules += [
      *hub.linear("answer_up", f"{answers}0"),
      *bert_layers.norm("answer_norm", f"{answers}2", leaves),
      *hub.linear("answers_head", f"{answers}3"),
    ]
  return rules


def _cross(x: str, heads: int, leaves: tuple[str, str]) -> list[Rule]:
  b = "cross/blocks/"
  rules = bert_layers.attention(
    (f"{b}cross", f"{b}norm_cross"),
    (f"{x}visual_attention.att", f"{x}visual_attention.output"),
    heads,
    leaves,
  )
  for ours, theirs in (("text", "lang"), ("regions", "visn")):
    self_attention = f"{x}{theirs}_self_att"
    rules += bert_layers.attention(
      (f"{b}{ours}_attention", f"{b}{ours}_norm1"),
      (f"{self_attention}.self", f"{self_attention}.output"),
      heads,
      leaves,
    )
    rules += bert_layers.mlp(
      (f"{b}{ours}_mlp", f"{b}{ours}_norm2"),
      (f"{x}{theirs}_inter", f"{x}{theirs}_output"),
      leaves,
    )
  return rules
