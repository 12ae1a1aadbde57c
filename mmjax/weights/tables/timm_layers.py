"""What checkpoints with timm's names of a ViT have in common.

No table: timm's own, DeiT's, MAE's, AST's, DINOv2's and open_clip's files name
blocks, patches and positions alike, and none says how many heads it has.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmjax import errors
from mmjax.layers.transformer import SIZES
from mmjax.weights import rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.rename import LINEAR, SAME, Rule
from mmjax.weights.tables import hub

Shapes = Mapping[str, tuple[int, ...]]

MARKS = ("blocks.0.attn.qkv.weight", "patch_embed.proj.weight", "pos_embed")
# Our names of the tokens before the patches, in their order.
TOKENS = {
  "cls": "cls_token",
  "distilled": "dist_token",
  "registers": "reg_token",
}
# By width, depth and hidden units, those that papers name.
HEADS = {
  **{(s["width"], s["depth"], s["mlp"]): s["heads"] for s in SIZES.values()},
  (1536, 40, 4096): 24,  # DINOv2 giant
}
# Layers of the MLP: up (with the gate before it) and down.
MLP = ("mlp.fc1", "mlp.fc2")


def marked(shapes: Shapes, prefix: str = "") -> bool:
  """Do names under a prefix look like timm's of a ViT?"""
  return all(f"{prefix}{name}" in shapes for name in MARKS)


def arguments(
  config: Mapping[str, Any], read: Sequence[str], told: Sequence[str]
) -> Mapping[str, Any]:
  """Returns what a config says as "model_args", {} if nothing.

  Args:
    config: of the checkpoint.
    read: arguments of the reference's constructor that we follow.
    told: those that the tensors tell.

  Raises:
    InputError: any other argument.
  """
  found = config.get("model_args") or {}
  for name in found:
    if name not in (*read, *told):
      raise errors.unknown(
        "config.json model_args", name, sorted((*read, *told))
      )
  return found


def agree(
  said: Mapping[str, Any], found: Mapping[str, Any], where: str = "model_args"
) -> None:
  """Raises InputError where a config says another value than the tensors have.

  Args:
    said: what the config says.
    found: by name, what the tensors have.
    where: the names stand in config.json.
  """
  for name, value in found.items():
    if said.get(name, value) != value:
      raise errors.InputError(
        f"config.json {where}.{name} = {said[name]!r}: the tensors have "
        f"{value!r}; check that config and weights are of one model."
      )


def stack(
  checkpoint: Checkpoint,
  blocks: str = "blocks.",
  *,
  heads: int | None = None,
  field: str = "num_heads",
  layers: tuple[str, str] = MLP,
  known: Mapping[tuple[int, int, int], int] = HEADS,
) -> dict[str, int]:
  """Returns width, depth, heads and mlp of a stack of blocks.

  Args:
    checkpoint: of which the shapes are read.
    blocks: what the names of its blocks begin with.
    heads: what the config says, if anything.
    field: what that is called under "model_args".
    layers: see `MLP`.
    known: heads by width, depth and mlp, where the config does not say them.

  Raises:
    InputError: neither config nor paper says how many heads there are, or they
      do not divide the width.
  """
  shapes = checkpoint.shapes
  end = ".attn.qkv.weight"
  depth = sum(n.startswith(blocks) and n.endswith(end) for n in shapes)
  width = shapes[f"{blocks}0.attn.qkv.weight"][1]
  down = f"{blocks}0.{layers[1]}.weight"
  if down not in shapes:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: there is no tensor {down!r}; "
      "fetch the whole file."
    )
  mlp = shapes[down][1]
  heads = heads or known.get((width, depth, mlp))
  if heads is None:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: {depth} blocks of width "
      f"{width} and {mlp} hidden units are no size that we know, and tensors "
      f'do not tell the heads; add {{"model_args": {{"{field}": ...}}}} to its '
      "config.json."
    )
  if width % heads:
    raise errors.InputError(
      f"config.json model_args.{field} = {heads} does not divide the width of "
      f"the blocks, {width}; one of them is wrong."
    )
  return dict(width=width, depth=depth, heads=heads, mlp=mlp)


def embeddings(
  shapes: Shapes,
  tokens: Mapping[str, int],
  grid: tuple[int, int],
  placed: int,
  *,
  prefix: str = "",
  names: Mapping[str, str] = TOKENS,
) -> list[Rule]:
  """Returns the rules of patches, positions and tokens.

  Args:
    shapes: of the tensors.
    tokens: how many there are by our names, those with positions first.
    grid: rows and columns of patches.
    placed: how many tokens have positions.
    prefix: of their names.
    names: of theirs by ours.
  """
  proj = f"{prefix}patch_embed.proj"
  width = shapes[f"{proj}.weight"][0]
  rules = [
    *hub.positions(
      f"{prefix}pos_embed", grid, width, extra=placed, batched=True
    ),
    Rule("embedding/kernel", f"{proj}.weight", rename.CONV2D),
  ]
  if f"{proj}.bias" in shapes:
    rules.append(Rule("embedding/bias", f"{proj}.bias"))
  for name, n in tokens.items():
    op = rename.reshape((n, width), (1, n, width))
    rules.append(Rule(name, f"{prefix}{names[name]}", op))
  return rules


def blocks(
  shapes: Shapes,
  sizes: Mapping[str, int],
  *,
  ours: str = "encoder/blocks/",
  theirs: str = "blocks.",
  layers: tuple[str, str] = MLP,
) -> list[Rule]:
  """Returns the rules of a stack of blocks.

  Args:
    shapes: of the tensors, which tell gates, biases and scales of branches.
    sizes: of the stack, see `stack`.
    ours: prefix of our blocks.
    theirs: what the names of their blocks begin with.
    layers: see `MLP`.
  """
  width, heads, mlp = sizes["width"], sizes["heads"], sizes["mlp"]
  block, first = f"{theirs}{{n}}.", f"{theirs}0."
  rules = [
    *hub.norm(f"{ours}norm1", f"{block}norm1"),
    *hub.norm(f"{ours}norm2", f"{block}norm2"),
    Rule(
      f"{ours}attention/out/kernel",
      f"{block}attn.proj.weight",
      rename.from_heads(heads),
    ),
    Rule(f"{ours}attention/out/bias", f"{block}attn.proj.bias"),
    *hub.linear(f"{ours}mlp/down", f"{block}{layers[1]}"),
  ]
  gated = is_gated(shapes, mlp, first, layers)
  for leaf, name in (("kernel", "weight"), ("bias", "bias")):
    if f"{first}attn.qkv.{name}" in shapes:
      rules += rename.packed(
        [
          (f"{ours}attention/{x}/{leaf}", rename.to_heads(heads))
          for x in ("query", "key", "value")
        ],
        f"{block}attn.qkv.{name}",
        (width, width, width),
      )
    op = LINEAR if leaf == "kernel" else SAME
    parts = ("gate", "up") if gated else ("up",)
    rules += rename.packed(
      [(f"{ours}mlp/{x}/{leaf}", op) for x in parts],
      f"{block}{layers[0]}.{name}",
      (mlp,) * len(parts),
    )
  if f"{first}ls1.gamma" in shapes:
    rules += [
      Rule(f"{ours}layer_scale{i}", f"{block}ls{i}.gamma") for i in (1, 2)
    ]
  return rules


def is_gated(
  shapes: Shapes,
  mlp: int,
  block: str = "blocks.0.",
  layers: tuple[str, str] = MLP,
) -> bool:
  """Has an MLP of so many hidden units a gate, packed before them?"""
  return shapes[f"{block}{layers[0]}.weight"][0] == 2 * mlp


def attention_pool(
  shapes: Shapes, heads: int, *, prefix: str = "attn_pool."
) -> list[Rule]:
  """Returns the rules of timm's AttentionPoolLatent as a MAPHead, "pool"."""
  width = shapes[f"{prefix}kv.weight"][1]
  row = rename.reshape((1, width), (1, 1, width))
  rules = [
    Rule("pool/probe", f"{prefix}latent", row),
    Rule(
      "pool/attention/out/kernel",
      f"{prefix}proj.weight",
      rename.from_heads(heads),
    ),
    Rule("pool/attention/out/bias", f"{prefix}proj.bias"),
    *hub.norm("pool/norm", f"{prefix}norm"),
    *hub.linear("pool/mlp/up", f"{prefix}mlp.fc1"),
    *hub.linear("pool/mlp/down", f"{prefix}mlp.fc2"),
  ]
  op = rename.to_heads(heads)
  for leaf, name in (("kernel", "weight"), ("bias", "bias")):
    rules.append(Rule(f"pool/attention/query/{leaf}", f"{prefix}q.{name}", op))
    rules += rename.packed(
      [(f"pool/attention/{x}/{leaf}", op) for x in ("key", "value")],
      f"{prefix}kv.{name}",
      (width, width),
    )
  return rules
