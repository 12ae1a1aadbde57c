"""What the hub's ViT, DeiT, DINOv2, ViT-MAE and AST have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmjax import errors
from mmjax.weights import recipe, rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.rename import Rule
from mmjax.weights.tables import hub

# What files may leave out.
DEFAULTS = dict(
  hidden_size=768,
  num_hidden_layers=12,
  num_attention_heads=12,
  intermediate_size=3072,
  hidden_act="gelu",
  layer_norm_eps=1e-12,
  image_size=224,
  patch_size=16,
  num_channels=3,
)
# Our names of the tokens before the patches, in their order.
TOKENS = {"cls": "cls_token", "distilled": "distillation_token"}


def fields(
  checkpoint: Checkpoint, defaults: Mapping[str, Any] = DEFAULTS
) -> recipe.Config:
  """Returns the config with what it leaves out; a patch [n n] is n."""
  found = {**defaults, **checkpoint.config}
  patch = found["patch_size"]
  if isinstance(patch, list) and len(set(patch)) == 1:
    found["patch_size"] = patch[0]
  return recipe.Config(found, checkpoint.path)


def check(config: Mapping[str, Any], **fixed: Any) -> None:
  """Refuses values of a config that we cannot follow.

  Args:
    config: of the checkpoint.
    **fixed: fields, and the one value that we can follow.

  Raises:
    InputError: names the field.
  """
  patch = config["patch_size"]
  if not isinstance(patch, int):
    raise errors.InputError(
      f"config.json patch_size = {patch!r}: patches are squares here; if both "
      "numbers are the same, write one."
    )
  for name, value in fixed.items():
    if config.get(name, value) != value:
      raise errors.InputError(
        f"config.json {name} = {config[name]!r}: we can follow {value!r} only."
      )


def prefix(shapes: Mapping[str, Any], name: str) -> str:
  """Returns what names begin with: nothing if it is a bare encoder."""
  return f"{name}." if any(n.startswith(f"{name}.") for n in shapes) else ""


def named(checkpoint: Checkpoint, ending: str) -> bool:
  """Does the config name a class of this ending?

  Classifiers of no labels have no head: only their class says what they read.

  Args:
    checkpoint: with its config's "architectures".
    ending: of the class in transformers, "ForImageClassification".
  """
  found = checkpoint.config.get("architectures") or ()
  return any(name.endswith(ending) for name in found)


def classes(shapes: Mapping[str, Any], head: str) -> int | None:
  """Returns the number of rows of a head, or None where there is none."""
  weight = shapes.get(f"{head}.weight")
  return None if weight is None else weight[0]


def embeddings(
  theirs: str,
  grid: tuple[int, int],
  width: int,
  tokens: Sequence[str] = ("cls",),
) -> list[Rule]:
  """Returns the rules of patches, positions and tokens.

  Args:
    theirs: prefix of the embeddings.
    grid: rows and columns of patches.
    width: D.
    tokens: names in `TOKENS`.
  """
  row = rename.reshape((1, width), (1, 1, width))
  projection = f"{theirs}patch_embeddings.projection"
  return [
    *(Rule(name, f"{theirs}{TOKENS[name]}", row) for name in tokens),
    *hub.positions(
      f"{theirs}position_embeddings",
      grid,
      width,
      extra=len(tokens),
      batched=True,
    ),
    Rule("embedding/kernel", f"{projection}.weight", rename.CONV2D),
    Rule("embedding/bias", f"{projection}.bias"),
  ]


def attention(
  block: str, heads: int, *, qkv_bias: bool = True, ours: str = "encoder/blocks"
) -> list[Rule]:
  """Returns the rules of the attention of a block."""
  rules = hub.attention(
    f"{ours}/attention",
    [f"{block}attention.attention.{n}" for n in ("query", "key", "value")],
    f"{block}attention.output.dense",
    heads,
  )
  bare = () if qkv_bias else ("query/bias", "key/bias", "value/bias")
  return [rule for rule in rules if not rule.ours.endswith(bare)]


def blocks(
  block: str, heads: int, *, qkv_bias: bool = True, ours: str = "encoder/blocks"
) -> list[Rule]:
  """Returns the rules of the blocks of ViT, DeiT, ViT-MAE and AST.

  Args:
    block: their prefix of a block, with "{n}".
    heads: N.
    qkv_bias: query, key and value have biases.
    ours: name of our stack.
  """
  return [
    *hub.norm(f"{ours}/norm1", f"{block}layernorm_before"),
    *hub.norm(f"{ours}/norm2", f"{block}layernorm_after"),
    *attention(block, heads, qkv_bias=qkv_bias, ours=ours),
    *hub.linear(f"{ours}/mlp/up", f"{block}intermediate.dense"),
    *hub.linear(f"{ours}/mlp/down", f"{block}output.dense"),
  ]
