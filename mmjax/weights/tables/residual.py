"""What tables of residual networks share: the rules of norms, blocks, stages.

No table itself. Blocks are those of `layers/residual.py`: the first of a stage
has leaves of its own, the rest are stacked.
"""

from collections.abc import Callable, Sequence

from mmjax.weights.rename import CONV2D, Rule

Layers = tuple[int | str, ...] | None
# (ours, theirs, layers) -> the rules of one layer of a block.
Make = Callable[[str, str, Layers], list[Rule]]
# A layer of each block: its name within ours and theirs, and its rules.
Part = tuple[str, str, Make]

BUFFERS = r"(^|\.)num_batches_tracked$"


def conv(ours: str, theirs: str, layers: Layers = None) -> list[Rule]:
  """Returns the rule of a PyTorch convolution without a bias."""
  return [Rule(f"{ours}/kernel", f"{theirs}.weight", CONV2D, layers=layers)]


def batch_norm(ours: str, theirs: str, layers: Layers = None) -> list[Rule]:
  """Returns the rules of PyTorch's BatchNorm, and of its statistics."""
  return group_norm(ours, theirs, layers) + [
    Rule(
      f"{ours}/{leaf}",
      f"{theirs}.running_{leaf}",
      layers=layers,
      collection="batch_stats",
    )
    for leaf in ("mean", "var")
  ]


def group_norm(ours: str, theirs: str, layers: Layers = None) -> list[Rule]:
  """Returns the rules of PyTorch's GroupNorm."""
  return [
    Rule(f"{ours}/scale", f"{theirs}.weight", layers=layers),
    Rule(f"{ours}/bias", f"{theirs}.bias", layers=layers),
  ]


def stages(
  depths: Sequence[int],
  block: Callable[[int], str],
  parts: Sequence[Part],
  project: Sequence[Part],
  projected: Sequence[bool] | None = None,
  number: Callable[[int], int | str] = int,
) -> list[Rule]:
  """Returns the rules of all stages.

  Args:
    depths: blocks of each.
    block: number of a stage -> theirs before each layer of a block, with "{n}"
      for the number of the block: "layer1.{n}.".
    parts: layers of every block.
    project: layers of the way past f, in the first block.
    projected: which stages have that; None is all.
    number: how theirs write the number of a block.
  """
  rules = []
  for i, depth in enumerate(depths):
    theirs, ours = block(i), f"stage{i}"
    first = theirs.replace("{n}", str(number(0)))
    here = projected is None or projected[i]
    for name, layer, make in (*parts, *(project if here else ())):
      rules += make(f"{ours}/first/{name}", f"{first}{layer}", None)
    if depth == 1:
      continue
    rest = tuple(number(n) for n in range(1, depth))
    for name, layer, make in parts:
      rules += make(f"{ours}/rest/{name}", f"{theirs}{layer}", rest)
  return rules


def torch_parts(
  convolutions: int, norm: Make = batch_norm
) -> tuple[list[Part], list[Part]]:
  """Returns parts and project of torchvision's blocks, CLIP's and timm's."""
  parts: list[Part] = []
  for i in range(1, convolutions + 1):
    parts += [(f"conv{i}", f"conv{i}", conv), (f"norm{i}", f"bn{i}", norm)]
  return parts, [
    ("project", "downsample.0", conv),
    ("project_norm", "downsample.1", norm),
  ]


def torch_depths(names: Sequence[str], prefix: str = "") -> list[int]:
  """Counts the blocks of torchvision's layer1, layer2, ..."""
  found = []
  while True:
    stage = f"{prefix}layer{len(found) + 1}."
    blocks = {
      n[len(stage) :].split(".")[0] for n in names if n.startswith(stage)
    }
    if not blocks:
      return found
    found.append(len(blocks))
