"""PyTorch's nn.LSTM and nn.GRU over frames, with or without a linear head.

A state dict names them `[prefix]weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`,
`bias_hh_l0`, and with `_reverse` behind it those of the way back. Gates are
packed on the first axis, i f g o or r z n, and tell which of the two it is. A
single Linear beside them is the head. No config is needed; one may say how
frames are put side by side and pooled (ours: `stack`, `stride`, `pool`), and
what it says of PyTorch's arguments must be so.
"""

import re
from typing import Any

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import hub

MODEL_TYPES = ("lstm", "gru")
_CELLS = {4: "lstm", 3: "gru"}
_FIRST = "weight_ih_l0"
_OURS = ("stack", "stride", "pool")  # keywords that tensors cannot tell
_SILENT = ("batch_first", "dropout", "architectures", "transformers_version")


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a recurrent encoder, or None for any other."""
  shapes, config = checkpoint.shapes, checkpoint.config
  kind = config.get("model_type")
  firsts = [n for n in shapes if n.endswith(_FIRST)]
  if len(firsts) != 1 or (kind is not None and kind not in MODEL_TYPES):
    return None
  prefix = firsts[0].removesuffix(_FIRST)
  own = re.compile(
    re.escape(prefix) + r"(weight_[ih]h|bias_[ih]h|weight_hr)_l\d+(_reverse)?"
  )
  head, rest = None, [n for n in shapes if not own.fullmatch(n)]
  if rest:
    head = rest[0].rpartition(".")[0]
    if sorted(rest) != [f"{head}.bias", f"{head}.weight"]:
      return None  # a recurrent layer within another model
  cell, gates = _cell(checkpoint, prefix)
  width = shapes[f"{prefix}weight_hh_l0"][1]
  found = re.compile(re.escape(prefix) + r"weight_ih_l(\d+)")
  depth = 1 + max(int(m[1]) for n in shapes if (m := found.fullmatch(n)))
  both = f"{firsts[0]}_reverse" in shapes
  stack = config.get("stack", 1)
  inner = shapes[firsts[0]][1]
  if not isinstance(stack, int) or stack < 1 or inner % stack:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: its config says stack = "
      f"{stack!r}, but the width of its input is {inner}, which must be a "
      "multiple of that; correct config.json."
    )
  _agree(
    checkpoint,
    dict(
      model_type=cell,
      input_size=inner,
      hidden_size=width,
      num_layers=depth,
      bidirectional=both,
      bias=True,
      proj_size=0,
    ),
  )
  op = rename.chain(
    rename.reshape((gates, width, -1), (gates * width, -1)),
    rename.transpose(2, 0, 1),
  )
  bias = rename.reshape((gates, width), (gates * width,))
  above = tuple(range(1, depth))
  rules = []
  for way, suffix in (("forward", ""), ("backward", "_reverse"))[: 1 + both]:
    for ours, theirs in (("input", "ih"), ("hidden", "hh")):
      for leaf, name, change in (
        ("kernel", "weight", op),
        ("bias", "bias", bias),
      ):
        place = f"{way}/{ours}/{leaf}"
        tensor = f"{prefix}{name}_{theirs}_l{{n}}{suffix}"
        first = tensor.replace("{n}", "0")
        rules.append(Rule(f"encoder/first/{place}", first, change))
        if above:
          rules.append(
            Rule(f"encoder/blocks/{place}", tensor, change, layers=above)
          )
  model: dict[str, Any] = dict(
    name="audio_rnn",
    cell=cell,
    width=width,
    depth=depth,
    bidirectional=both,
    **{name: config[name] for name in _OURS if name in config},
  )
  if head:
    model["num_classes"] = shapes[f"{head}.weight"][0]
    rules += hub.linear("head", head)
  return Recipe(
    table="audio_rnn",
    model=model,
    inputs={"audio": ((1, 4, inner // stack), "float32")},
    rules=rules,
    config=config,
  )


def _cell(checkpoint: Checkpoint, prefix: str) -> tuple[str, int]:
  """Returns the name of the cell and the number of its gates."""
  shapes, where = checkpoint.shapes, str(checkpoint.path)
  for name, what in (
    ("weight_hr_l0", "a projection (proj_size)"),
    ("bias_ih_l0", "no biases (bias=False)"),
  ):
    if (f"{prefix}{name}" in shapes) == (name == "weight_hr_l0"):
      raise errors.InputError(
        f"weights path = {where!r}: its recurrent layers have {what}, which "
        "models.audio_rnn has not; train it with PyTorch's defaults."
      )
  shape = shapes.get(f"{prefix}weight_hh_l0", (0, 1))
  gates, left = divmod(shape[0], shape[1])
  if left or gates not in _CELLS:
    raise errors.InputError(
      f"weights path = {where!r}: {prefix}weight_hh_l0 {shape} is of no LSTM "
      "(4 gates) and no GRU (3); models.audio_rnn has no other cells."
    )
  return _CELLS[gates], gates


def _agree(checkpoint: Checkpoint, told: dict[str, Any]) -> None:
  """Raises InputError if the config contradicts what the tensors tell."""
  for name, value in checkpoint.config.items():
    if name in told and value != told[name]:
      raise errors.InputError(
        f"weights path = {str(checkpoint.path)!r}: its config says {name} = "
        f"{value!r}, its tensors are of {name} = {told[name]!r}; correct "
        "config.json."
      )
    if name not in told and name not in (*_OURS, *_SILENT):
      raise errors.unknown("config.json field", name, {*told, *_OURS, *_SILENT})
