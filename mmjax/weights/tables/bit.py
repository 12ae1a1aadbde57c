"""BiT: the model hub's (model_type "bit"), and Google's .npz.

Google's files have kernels laid out as ours, and no config: 32 groups, and an
epsilon of 1e-10 in the filters. The paper's (github
google-research/big_transfer) have names such as
`resnet/block1/unit01/a/standardized_conv2d/kernel`; big_vision's, those of
"Knowledge distillation: a good teacher is patient and consistent", Beyer et
al. 2022, `block1/unit01/conv1/kernel`, and no zeros around the stem's output.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import hub, residual

MODEL_TYPES = ("bit",)
# What files may leave out.
DEFAULTS = dict(
  num_channels=3,
  embedding_size=64,
  hidden_sizes=(256, 512, 1024, 2048),
  depths=(3, 4, 6, 3),
  layer_type="preactivation",
  hidden_act="relu",
  global_padding=None,
  num_groups=32,
  embedding_dynamic_padding=False,
  output_stride=32,
  width_factor=1,
)
LAYER_TYPES = ("preactivation", "bottleneck")
PADDINGS = {None: "half", "SAME": "same"}
PIXELS = 224  # any other size will do
PAPER = "resnet/root_block/standardized_conv2d/kernel"
BIG_VISION = "root_block/conv_root/kernel"


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a BiT, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow.
  """
  if checkpoint.config.get("model_type") in MODEL_TYPES:
    return _hub(checkpoint)
  for root in (PAPER, BIG_VISION):
    if root in checkpoint.tensors:
      return _google(checkpoint, root == PAPER)
  return None


def _hub(checkpoint: Checkpoint) -> Recipe:
  config: dict[str, Any] = {**DEFAULTS, **checkpoint.config}
  shapes = checkpoint.shapes
  prefix = "bit." if any(n.startswith("bit.") for n in shapes) else ""
  if config["layer_type"] not in LAYER_TYPES:
    raise errors.unknown(
      "config.json layer_type", config["layer_type"], LAYER_TYPES
    )
  padding = config["global_padding"]
  padding = padding.upper() if isinstance(padding, str) else padding
  if padding not in PADDINGS:
    # The reference adds maps of two sizes there, and fails.
    raise errors.unknown("config.json global_padding", padding, PADDINGS)
  depths, first = config["depths"], config["layer_type"] == "preactivation"
  strides, dilations = _strides(len(depths), config["output_stride"])
  widths = [_by_8(n * config["width_factor"]) for n in config["hidden_sizes"]]
  parts: list[residual.Part] = []
  for i in (1, 2, 3):
    parts += [
      (f"conv{i}", f"conv{i}", residual.conv),
      (f"norm{i}", f"norm{i}", residual.group_norm),
    ]
  project: list[residual.Part] = [("project", "downsample.conv", residual.conv)]
  rules = residual.conv("stem", f"{prefix}embedder.convolution")
  if first:
    rules += residual.group_norm("norm", f"{prefix}norm")
  else:
    rules += residual.group_norm("stem_norm", f"{prefix}embedder.norm")
    project += [("project_norm", "downsample.norm", residual.group_norm)]
  rules += residual.stages(
    depths,
    lambda i: f"{prefix}encoder.stages.{i}.layers.{{n}}.",
    parts,
    project,
  )
  classes = None
  if "classifier.1.weight" in shapes:
    classes = shapes["classifier.1.weight"][0]
    rules += hub.linear("head", "classifier.1")
  return Recipe(
    table="bit",
    model=dict(
      name="bit",
      depths=depths,
      stem=config["embedding_size"],
      widths=widths,
      inner=[_by_8(n / 4) for n in widths],
      strides=strides,
      # The reference's layers of the first kind take no dilation.
      dilations=None if first else dilations,
      groups=config["num_groups"],
      norms_first=first,
      padding=PADDINGS[padding],
      pool_padding="same" if config["embedding_dynamic_padding"] else "valid",
      num_classes=classes,
      act=hub.act(config),
    ),
    inputs={"image": ((1, PIXELS, PIXELS, config["num_channels"]), "float32")},
    rules=rules,
    config=checkpoint.config,
  )


def _strides(
  stages: int, output_stride: int
) -> tuple[list[int], list[tuple[int, int]]]:
  """Returns stride and dilations of each stage, as the reference.

  Stages halve the image until it is 1/output_stride; where those after that do
  not stride, their filters span more.
  """
  strides, dilations, reached, dilation = [], [], 4, 1
  for i in range(stages):
    stride = 2 if i else 1
    if reached >= output_stride:
      dilation, stride = dilation * stride, 1
    reached *= stride
    strides.append(stride)
    # The first block of a stage spans 2 at most.
    dilations.append((1 if dilation < 3 else 2, dilation))
  return strides, dilations


def _by_8(channels: float) -> int:
  """Rounds to a multiple of 8, not below nine tenths, as the reference."""
  found = max(8, int(channels + 4) // 8 * 8)
  return found + 8 if found < 0.9 * channels else found


def _google(checkpoint: Checkpoint, paper: bool) -> Recipe:
  shapes = checkpoint.shapes
  names = _paper() if paper else _big_vision(shapes["norm-pre-head/scale"])
  kernel = f"{names.convs[2]}/kernel"
  depths, widths, inner = [], [], []
  while f"{names.block(len(depths))}unit01/{kernel}" in shapes:
    block = names.block(len(depths))
    _, _, narrow, wide = shapes[f"{block}unit01/{kernel}"]
    widths.append(wide)
    inner.append(narrow)
    units = {
      n[len(block) :].split("/")[0] for n in shapes if n.startswith(block)
    }
    depths.append(len(units))
  parts: list[residual.Part] = []
  for i, (conv, norm) in enumerate(zip(names.convs, names.norms, strict=True)):
    parts += [
      (f"conv{i + 1}", conv, _conv),
      (f"norm{i + 1}", norm, names.norm),
    ]
  rules = [
    *_conv("stem", names.stem),
    *names.norm("norm", names.last, None),
    *residual.stages(
      depths,
      lambda i: f"{names.block(i)}unit{{n}}/",
      parts,
      [("project", names.project, _conv)],
      number=lambda n: f"{n + 1:02}",
    ),
  ]
  head, classes = shapes.get(f"{names.head}/kernel"), None
  if head is not None:
    classes = head[-1]
    op = rename.reshape((widths[-1], classes), head)
    rules += [
      Rule("head/kernel", f"{names.head}/kernel", op),
      Rule("head/bias", f"{names.head}/bias"),
    ]
  _, _, channels, stem = shapes[f"{names.stem}/kernel"]
  return Recipe(
    table="bit",
    model=dict(
      name="bit",
      depths=depths,
      stem=stem,
      widths=widths,
      inner=inner,
      zeros=paper,
      num_classes=classes,
      standardise=1e-10,
    ),
    inputs={"image": ((1, PIXELS, PIXELS, channels), "float32")},
    rules=rules,
    config={},
  )


@dataclasses.dataclass(frozen=True)
class _Names:
  """Names of one of Google's two layouts.

  Attributes:
    stem, last, head: the first convolution, the last norm, the head.
    block: number of a stage -> its prefix.
    convs, norms, project: within a unit.
    norm: makes the rules of a norm.
  """

  stem: str
  last: str
  head: str
  block: Callable[[int], str]
  convs: Sequence[str]
  norms: Sequence[str]
  project: str
  norm: residual.Make


def _paper() -> _Names:
  conv = "standardized_conv2d"
  return _Names(
    stem=PAPER.removesuffix("/kernel"),
    last="resnet/group_norm",
    head="resnet/head/conv2d",
    block=lambda i: f"resnet/block{i + 1}/",
    convs=[f"{letter}/{conv}" for letter in "abc"],
    norms=[f"{letter}/group_norm" for letter in "abc"],
    project=f"a/proj/{conv}",
    norm=functools.partial(_norm, leaves={"scale": "gamma", "bias": "beta"}),
  )


def _big_vision(scale: tuple[int, ...]) -> _Names:
  # Older files keep the axes of an image in the scales: [1 1 1 C].
  op = rename.SAME
  if len(scale) > 1:
    op = rename.reshape((-1,), (1,) * (len(scale) - 1) + (-1,))
  return _Names(
    stem=BIG_VISION.removesuffix("/kernel"),
    last="norm-pre-head",
    head="head",
    block=lambda i: f"block{i + 1}/",
    convs=[f"conv{i}" for i in (1, 2, 3)],
    norms=[f"gn{i}" for i in (1, 2, 3)],
    project="conv_proj",
    norm=functools.partial(
      _norm, leaves={"scale": "scale", "bias": "bias"}, op=op
    ),
  )


def _conv(ours: str, theirs: str, layers: residual.Layers = None) -> list[Rule]:
  return [Rule(f"{ours}/kernel", f"{theirs}/kernel", layers=layers)]


def _norm(
  ours: str,
  theirs: str,
  layers: residual.Layers,
  *,
  leaves: Mapping[str, str],
  op: rename.Op = rename.SAME,
) -> list[Rule]:
  return [
    Rule(f"{ours}/{leaf}", f"{theirs}/{name}", op, layers=layers)
    for leaf, name in leaves.items()
  ]
