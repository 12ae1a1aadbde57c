"""What the model hub's checkpoints have in common: rules, and names in configs.

`rename.under` puts prefixes before the rules of a whole encoder.
"""

import dataclasses
from collections.abc import Container, Mapping, Sequence
from typing import Any

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.rename import LINEAR, Rule

# Their name of an activation -> ours: their "gelu" is the exact one. Theirs of
# "prelu" and "xielu" are missing, which have parameters.
ACTS = {
  "gelu": "gelu_exact",
  "gelu_10": "gelu_clipped",
  "gelu_python": "gelu_exact",
  "gelu_new": "gelu",
  "gelu_fast": "gelu",
  "gelu_accurate": "gelu",
  "gelu_pytorch_tanh": "gelu",
  "gelu_python_tanh": "gelu",
  "hardswish": "hard_silu",
  "laplace": "laplace",
  "leaky_relu": "leaky_relu",
  "linear": "linear",
  "mish": "mish",
  "quick_gelu": "quick_gelu",
  "relu": "relu",
  "relu2": "relu_squared",
  "relu6": "relu6",
  "sigmoid": "sigmoid",
  "silu": "silu",
  "swish": "silu",
  "tanh": "tanh",
}


def act(
  config: Mapping[str, Any], part: str = "", field: str = "hidden_act"
) -> str:
  """Returns our name of the activation of a config.

  Args:
    config: of the encoder.
    part: where it stands in config.json, "text_config", for the message.
    field: its name there.

  Raises:
    InputError: an activation that we do not have.
  """
  name = config[field]
  if name not in ACTS:
    where = f"{part}.{field}" if part else field
    raise errors.unknown(f"config.json {where}", name, ACTS)
  return ACTS[name]


def fixed(
  config: Mapping[str, Any], values: Mapping[str, Any], part: str = ""
) -> None:
  """Raises InputError for a field whose value is not the one we follow.

  Args:
    config: of the encoder; fields that are not there, or null, pass.
    values: by field, the one that we follow.
    part: where it stands in config.json, "text_config", for the message.
  """
  for name, want in values.items():
    value = config.get(name)
    if value is not None and value != want:
      where = f"{part}.{name}" if part else name
      raise errors.InputError(
        f"config.json {where} = {value!r}: mmjax follows {want!r} only; no "
        "change of the file helps if the weights were trained so."
      )


def part(
  config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns an encoder's config, a part of a model's, with all its values.

  Files leave out what is the default.

  Args:
    config: of the model.
    name: of the part, "text_config".
    defaults: what the reference takes for values that are not there.
  """
  return {**defaults, **(config.get(name) or {})}


def grid(config: Mapping[str, Any]) -> tuple[int, int]:
  """Returns rows and columns of patches, of an image encoder's config."""
  rows, columns = pixels(config)
  return rows // config["patch_size"], columns // config["patch_size"]


def pixels(config: Mapping[str, Any]) -> tuple[int, int]:
  """Returns rows and columns of the image, of an image encoder's config."""
  size = config["image_size"]
  if isinstance(size, int):
    return size, size
  rows, columns = size
  return rows, columns


def either(names: Container[str], *options: str) -> str:
  """Returns the first option that is there, or else the first of all.

  Of tensors that are one, libraries write now the one and now the other.
  """
  return next((name for name in options if name in names), options[0])


def renamed(rules: Sequence[Rule], theirs: str, to: str) -> list[Rule]:
  """Returns the rules with another name for one tensor of theirs."""
  return [
    dataclasses.replace(rule, theirs=to) if rule.theirs == theirs else rule
    for rule in rules
  ]


def norm(ours: str, theirs: str) -> list[Rule]:
  """Returns the rules of a LayerNorm."""
  return [
    Rule(f"{ours}/scale", f"{theirs}.weight"),
    Rule(f"{ours}/bias", f"{theirs}.bias"),
  ]


def linear(ours: str, theirs: str, bias: bool = True) -> list[Rule]:
  """Returns the rules of a dense layer."""
  kernel = Rule(f"{ours}/kernel", f"{theirs}.weight", LINEAR)
  return [kernel, Rule(f"{ours}/bias", f"{theirs}.bias")] if bias else [kernel]


def attention(ours: str, qkv: list[str], out: str, heads: int) -> list[Rule]:
  """Returns the rules of an attention layer with four projections."""
  op = rename.to_heads(heads)
  rules = []
  for name, theirs in zip(("query", "key", "value"), qkv, strict=True):
    rules += [
      Rule(f"{ours}/{name}/kernel", f"{theirs}.weight", op),
      Rule(f"{ours}/{name}/bias", f"{theirs}.bias", op),
    ]
  return rules + _out(ours, out, heads)


def packed_attention(
  ours: str, theirs: str, heads: int, width: int
) -> list[Rule]:
  """Returns the rules of PyTorch's MultiheadAttention, of one width.

  Query, key and value are packed in this order in `in_proj_weight` [3D D] and
  `in_proj_bias` [3D].
  """
  op = rename.to_heads(heads)
  rules = []
  for leaf, name in (("kernel", "weight"), ("bias", "bias")):
    rules += rename.packed(
      [(f"{ours}/{x}/{leaf}", op) for x in ("query", "key", "value")],
      f"{theirs}.in_proj_{name}",
      (width, width, width),
    )
  return rules + _out(ours, f"{theirs}.out_proj", heads)


def _out(ours: str, theirs: str, heads: int) -> list[Rule]:
  return [
    Rule(f"{ours}/out/kernel", f"{theirs}.weight", rename.from_heads(heads)),
    Rule(f"{ours}/out/bias", f"{theirs}.bias"),
  ]


def positions(
  theirs: str,
  grid: tuple[int, int],
  width: int,
  *,
  extra: int = 1,
  batched: bool = False,
) -> list[Rule]:
  """Returns the rules of an image encoder's positions.

  Args:
    theirs: name of a tensor [E+P D]: those of E tokens such as the class
      token, then those of the P patches, row by row.
    grid: rows and columns of patches.
    width: D.
    extra: E.
    batched: theirs is [1 E+P D].
  """
  lead = (1,) if batched else ()
  axis, count = len(lead), grid[0] * grid[1]
  rules = [
    Rule(
      "posemb/grid",
      theirs,
      rename.reshape((*grid, width), (*lead, count, width)),
      (extra, extra + count, axis) if extra else None,
    )
  ]
  if extra:
    op = rename.reshape((extra, width), (*lead, extra, width))
    rules.append(Rule("posemb/extra", theirs, op, (0, extra, axis)))
  return rules


def period(letters: str) -> str:
  """Returns the shortest letters that give all these, again and again."""
  count = len(letters)
  return next(
    (
      letters[:n]
      for n in range(1, count)
      if count % n == 0 and letters[:n] * (count // n) == letters
    ),
    letters,
  )


def clip_layers(heads: int) -> list[Rule]:
  """Returns the rules of the blocks of an encoder of CLIP or SigLIP."""
  ours, block = "encoder/blocks", "encoder.layers.{n}."
  return [
    *norm(f"{ours}/norm1", f"{block}layer_norm1"),
    *norm(f"{ours}/norm2", f"{block}layer_norm2"),
    *attention(
      f"{ours}/attention",
      [f"{block}self_attn.{x}_proj" for x in "qkv"],
      f"{block}self_attn.out_proj",
      heads,
    ),
    *linear(f"{ours}/mlp/up", f"{block}mlp.fc1"),
    *linear(f"{ours}/mlp/down", f"{block}mlp.fc2"),
  ]


def clip_text(heads: int) -> list[Rule]:
  """Returns the rules of the text encoder of CLIP or SigLIP."""
  return [
    Rule("embedding/table", "embeddings.token_embedding.weight"),
    Rule("posemb/table", "embeddings.position_embedding.weight"),
    *clip_layers(heads),
    *norm("norm", "final_layer_norm"),
  ]


def sizes(
  config: Mapping[str, Any], part: str = "", *, patches: bool = False
) -> dict[str, Any]:
  """Returns the keywords that our encoders share, from an encoder's config.

  Args:
    config: of the encoder.
    part: where it stands in config.json, "text_config", for messages.
    patches: it is an image encoder.

  Raises:
    InputError: an activation that we do not have.
  """
  found: dict[str, Any] = dict(
    width=config["hidden_size"],
    depth=config["num_hidden_layers"],
    heads=config["num_attention_heads"],
    mlp=config["intermediate_size"],
    act=act(config, part),
    epsilon=config["layer_norm_eps"],
  )
  if patches:
    found["patch"] = config["patch_size"]
    # Images of other sizes, as with interpolate_pos_encoding=True; their
    # convolution leaves out what fills no patch.
    found["interpolate"] = "bicubic"
    found["crop"] = True
  return found


def image_input(config: Mapping[str, Any]) -> tuple[tuple[int, ...], str]:
  """Returns shape and dtype of one image, of an image encoder's config."""
  return (1, *pixels(config), config.get("num_channels", 3)), "float32"


def prefix(checkpoint: Checkpoint, name: str) -> str:
  """Returns what the names of a model begin with: a bare one has no prefix."""
  return name if any(n.startswith(name) for n in checkpoint.shapes) else ""


def image_only(checkpoint: Checkpoint) -> bool:
  """Has this CLIP or SigLIP no text encoder, so that it classifies images?"""
  names = checkpoint.tensors
  seen = any(n.startswith("vision_model.") for n in names)
  return seen and not any(n.startswith("text_model.") for n in names)


def check_heads(heads: int, width: int, names: tuple[str, str]) -> None:
  """Raises InputError unless the heads, a field of a config, divide D."""
  if width % heads:
    raise errors.InputError(
      f"config.json {names[0]} = {heads} does not divide {names[1]} = {width}; "
      "one of them is wrong."
    )
