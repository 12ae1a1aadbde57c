"""Rules of big_vision's parts, in .npz of Google's big_vision.

No table: what those of its models share. Kernels are laid out as ours.
"""

from collections.abc import Mapping

from mmjax.weights import rename
from mmjax.weights.rename import Rule

Shapes = Mapping[str, tuple[int, ...]]

# The state of training, which may stand beside the parameters.
IGNORE = (r"^opt/", r"^extra/")
_NORM = "LayerNorm_0/scale"
_ATTENTION, _MLP = "MultiHeadDotProductAttention_0/", "MlpBlock_0/"
# Of before Linen, when the parts of a block were counted together.
_OLD_ATTENTION, _OLD_MLP = "MultiHeadDotProductAttention_1/", "MlpBlock_3/"


def encoder(shapes: Shapes, theirs: str) -> tuple[dict[str, int], list[Rule]]:
  """Returns sizes and rules of a stack of blocks and its last norm.

  Args:
    shapes: of the checkpoint.
    theirs: what its names begin with, "params/img/Transformer/".
  """
  stacked = f"{theirs}encoderblock/{_NORM}" in shapes
  block = (
    f"{theirs}encoderblock/" if stacked else f"{theirs}encoderblock_{{n}}/"
  )
  first = block.replace("{n}", "0")
  attend, feed, second = _ATTENTION, _MLP, "LayerNorm_1"
  if f"{first}{_OLD_MLP}Dense_0/kernel" in shapes:
    attend, feed, second = _OLD_ATTENTION, _OLD_MLP, "LayerNorm_2"
  *layers, width, heads, _ = shapes[f"{first}{attend}query/kernel"]
  depth = layers[0] if stacked else 0
  while not stacked and block.replace("{n}", str(depth)) + _NORM in shapes:
    depth += 1
  ours = "encoder/blocks"
  rules = [
    *norm(f"{ours}/norm1", f"{block}LayerNorm_0"),
    *norm(f"{ours}/norm2", f"{block}{second}"),
    *mlp(f"{ours}/mlp", f"{block}{feed}"),
    *attention(f"{ours}/attention", f"{block}{attend}"),
    *norm("norm", f"{theirs}encoder_norm"),
  ]
  hidden = shapes[f"{first}{feed}Dense_0/kernel"][-1]
  return dict(width=width, depth=depth, heads=heads, mlp=hidden), rules


def norm(ours: str, theirs: str, bias: bool = True) -> list[Rule]:
  """Returns the rules of a LayerNorm."""
  leaves = ("scale", "bias") if bias else ("scale",)
  return [Rule(f"{ours}/{x}", f"{theirs}/{x}") for x in leaves]


def dense(ours: str, theirs: str, bias: bool = True) -> list[Rule]:
  """Returns the rules of a dense layer or a convolution."""
  leaves = ("kernel", "bias") if bias else ("kernel",)
  return [Rule(f"{ours}/{x}", f"{theirs}/{x}") for x in leaves]


def mlp(ours: str, theirs: str) -> list[Rule]:
  """Returns the rules of an MLP; theirs ends in "/"."""
  return [
    *dense(f"{ours}/up", f"{theirs}Dense_0"),
    *dense(f"{ours}/down", f"{theirs}Dense_1"),
  ]


def attention(ours: str, theirs: str) -> list[Rule]:
  """Returns the rules of an attention layer; theirs ends in "/"."""
  found = []
  for name in ("query", "key", "value", "out"):
    found += dense(f"{ours}/{name}", f"{theirs}{name}")
  return found


def map_head(theirs: str, width: int) -> list[Rule]:
  """Returns the rules of a head that attends; theirs ends in "/"."""
  probe = rename.reshape((1, width), (1, 1, width))
  return [
    Rule("pool/probe", f"{theirs}probe", probe),
    *attention("pool/attention", f"{theirs}{_ATTENTION}"),
    *norm("pool/norm", f"{theirs}LayerNorm_0"),
    *mlp("pool/mlp", f"{theirs}{_MLP}"),
  ]
