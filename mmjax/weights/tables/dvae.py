"""DALL-E's dVAE: OpenAI's state dicts, and the hub's FlavaImageCodebook.

OpenAI's encoder.pkl and decoder.pkl are pickled modules, which no one should
open unseen: save `module.state_dict()` as .safetensors or .pt. The two may
stand in one file under "encoder." and "decoder.", in files of these names in
one directory, or alone, under their prefix or none. FLAVA has the encoder only, under other names.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Op, Rule
from mmjax.weights.tables import image_tokens

MODEL_TYPES = ("flava_image_codebook",)
GROUPS = 4
_FLAVA = "image_codebook."


@dataclasses.dataclass(frozen=True)
class _Names:
  """How a library names a half's tensors.

  Attributes:
    group: between "blocks.group_1." and "block_1".
    path: between "res_path." and "conv_1".
    kernel: of a convolution.
    bias: of a convolution.
  """

  group: str
  path: str
  kernel: str
  bias: str


_OPENAI = _Names("", "", "w", "b")
_HUB = _Names("group.", "path.", "weight", "bias")


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a dVAE or half of it, or None for any other."""
  shapes = checkpoint.shapes
  if checkpoint.config.get("model_type") in MODEL_TYPES:
    return _flava(checkpoint)
  if all(n.startswith(_FLAVA) for n in shapes) and shapes:
    return _flava(checkpoint)
  prefixes = [
    p for p in ("", "encoder.", "decoder.") if f"{p}blocks.input.w" in shapes
  ]
  return _openai(checkpoint, prefixes) if prefixes else None


def _openai(checkpoint: Checkpoint, prefixes: list[str]) -> Recipe:
  halves: dict[str, str] = {}
  for prefix in prefixes:
    # Images come to the encoder through 7x7 pixels, ids to the decoder
    # through one.
    size = checkpoint.shapes[f"{prefix}blocks.input.w"][-1]
    half = "encoder" if size == 7 else "decoder"
    if half in halves or prefix not in ("", f"{half}."):
      raise errors.InputError(
        f"weights path = {str(checkpoint.path)!r}: {prefix}blocks.input.w has "
        f"a kernel of {size} pixels, which is that of the {half}; name the "
        "halves 'encoder.' (7 pixels) and 'decoder.' (1 pixel)."
      )
    halves[half] = prefix
  return _recipe(checkpoint, checkpoint.config, halves, _OPENAI)


def _flava(checkpoint: Checkpoint) -> Recipe:
  config = checkpoint.config
  config = config.get("image_codebook_config") or config
  prefixed = any(n.startswith(_FLAVA) for n in checkpoint.tensors)
  prefix = _FLAVA if prefixed else ""
  return _recipe(checkpoint, config, {"encoder": prefix}, _HUB)


def _recipe(
  checkpoint: Checkpoint,
  config: Mapping[str, Any],
  halves: Mapping[str, str],
  names: _Names,
) -> Recipe:
  """Returns the recipe of halves, each under its prefix."""
  path, shapes = checkpoint.path, checkpoint.shapes

  def shape(half: str, name: str) -> tuple[int, ...]:
    full = f"{halves[half]}blocks.{name}{names.kernel}"
    return image_tokens.need(path, shapes, full)

  found: dict[str, dict[str, Any]] = {}
  for half, prefix in halves.items():
    theirs = f"{prefix}blocks.group_1.{names.group}block_"
    image_tokens.need(
      path, shapes, f"{theirs}1.res_path.{names.path}conv_1.{names.kernel}"
    )
    blocks = {
      n.removeprefix(theirs).split(".")[0]
      for n in shapes
      if n.startswith(theirs)
    }
    found[half] = dict(num_blocks_per_group=len(blocks))
  if "encoder" in halves:
    vocab, _, _, _ = shape("encoder", "output.conv.")
    width, channels, _, _ = shape("encoder", "input.")
    found["encoder"] |= dict(
      hidden_size=width, vocab_size=vocab, input_channels=channels
    )
  first = 0
  if "decoder" in halves:
    first, vocab, _, _ = shape("decoder", "input.")
    doubled, width, _, _ = shape("decoder", "output.conv.")
    found["decoder"] |= dict(
      hidden_size=width, vocab_size=vocab, input_channels=doubled // 2
    )
  sizes, *rest = found.values()
  for other in rest:
    image_tokens.check_agrees(path, other, sizes)
  image_tokens.check_agrees(path, config, sizes)
  part = "both" if rest else next(iter(halves))
  blocks, vocab = sizes["num_blocks_per_group"], sizes["vocab_size"]
  channels = sizes["input_channels"]
  model: dict[str, Any] = dict(
    name="dvae",
    width=sizes["hidden_size"],
    blocks=blocks,
    vocab_size=vocab,
    channels=channels,
    part=part,
  )
  if first:
    model["first"] = first
  if "num_groups" in config:
    # In the reference too there are always four; this changes the gain only.
    model["gain_layers"] = config["num_groups"] * blocks
  width = sizes["hidden_size"]
  rules = []
  if "encoder" in halves:
    skips = {(i, 1) for i in range(2, GROUPS + 1)}
    rules += rename.under(
      "encoder/",
      halves["encoder"],
      [
        *_half(names, blocks, skips),
        *_conv(names, "input", "blocks.input."),
      ],
    )
  if "decoder" in halves:
    skips = {(i, 1) for i in range(1, GROUPS + 1)}
    if first == 8 * width:
      skips.remove((1, 1))
    # A 1x1 convolution of one-hot vectors is a table, [C V 1 1] of theirs.
    op = rename.chain(
      rename.reshape((first, vocab), (first, vocab, 1, 1)), rename.LINEAR
    )
    rules += rename.under(
      "decoder/",
      halves["decoder"],
      [
        *_half(names, blocks, skips),
        *_conv(names, "input", "blocks.input.", op),
      ],
    )
  codes = {"codes": ((1, 1, 1), "int32")}
  image = {"image": ((1, 8, 8, channels), "float32")}
  return Recipe(
    table="dvae",
    model=model,
    inputs=codes if part == "decoder" else image,
    rules=rules,
    config=checkpoint.config,
  )


def _half(
  names: _Names, blocks: int, skips: set[tuple[int, int]]
) -> list[Rule]:
  """Returns the rules of a half's groups and output.

  Args:
    names: of the library.
    blocks: of each group.
    skips: (group, block) whose width changes.
  """
  rules = _conv(names, "output", "blocks.output.conv.")
  for i in range(1, GROUPS + 1):
    for j in range(1, blocks + 1):
      ours = f"group_{i}_block_{j}"
      theirs = f"blocks.group_{i}.{names.group}block_{j}."
      for k in range(1, 5):
        path = f"{theirs}res_path.{names.path}conv_{k}."
        rules += _conv(names, f"{ours}/conv_{k}", path)
      if (i, j) in skips:
        rules += _conv(names, f"{ours}/skip", f"{theirs}id_path.")
  return rules


def _conv(
  names: _Names, ours: str, theirs: str, op: Op = rename.CONV2D
) -> list[Rule]:
  return image_tokens.conv(ours, theirs, names.kernel, names.bias, op)
