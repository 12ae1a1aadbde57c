"""ResNet with BatchNorm: the model hub's, torchvision's and timm's.

torchvision's files, and timm's, have no config that says how they are built:
names and shapes do, and the stride of a bottleneck is in its 3x3 convolution
(v1.5), as all of theirs have it.
"""

import re
from typing import Any

from mmjax import errors
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.tables import hub, residual

MODEL_TYPES = ("resnet",)
# What files may leave out.
DEFAULTS = dict(
  num_channels=3,
  embedding_size=64,
  hidden_sizes=(256, 512, 1024, 2048),
  depths=(3, 4, 6, 3),
  layer_type="bottleneck",
  hidden_act="relu",
  downsample_in_first_stage=False,
  downsample_in_bottleneck=False,
)
CONVOLUTIONS = {"basic": 2, "bottleneck": 3}
PIXELS = 224  # any other size will do
# timm's that are what torchvision's are; others may differ where no tensor
# shows it ("resnetblur50").
TIMM = re.compile(r"((tv|gluon)_)?(wide_)?resnet\d+(_\d+)?(_v1b|_v1)?(\..*)?")


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a ResNet, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow.
  """
  kind = checkpoint.config.get("model_type")
  if kind in MODEL_TYPES:
    return _hub(checkpoint)
  wanted = ("conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight")
  if kind is None and all(n in checkpoint.tensors for n in wanted):
    return _torchvision(checkpoint)
  return None


def _hub(checkpoint: Checkpoint) -> Recipe:
  config: dict[str, Any] = {**DEFAULTS, **checkpoint.config}
  shapes = checkpoint.shapes
  prefix = "resnet." if any(n.startswith("resnet.") for n in shapes) else ""
  block, stem = config["layer_type"], config["embedding_size"]
  if block not in CONVOLUTIONS:
    raise errors.unknown("config.json layer_type", block, CONVOLUTIONS)
  first_stride = 2 if config["downsample_in_first_stage"] else 1
  model = dict(
    name="resnet",
    block=block,
    depths=config["depths"],
    stem=stem,
    widths=config["hidden_sizes"],
    first_stride=first_stride,
    act=hub.act(config),
    # The reference hands hidden_act on to the stem and the ends of blocks only.
    inner_act="relu",
  )
  if block == "bottleneck" and config["downsample_in_bottleneck"]:
    model["stride_in"] = "first"
  parts: list[residual.Part] = []
  for i in range(CONVOLUTIONS[block]):
    parts += [
      (f"conv{i + 1}", f"layer.{i}.convolution", residual.conv),
      (f"norm{i + 1}", f"layer.{i}.normalization", residual.batch_norm),
    ]
  e = f"{prefix}embedder.embedder."
  rules = [
    *residual.conv("stem", f"{e}convolution"),
    *residual.batch_norm("stem_norm", f"{e}normalization"),
    *residual.stages(
      config["depths"],
      lambda i: f"{prefix}encoder.stages.{i}.layers.{{n}}.",
      parts,
      [
        ("project", "shortcut.convolution", residual.conv),
        ("project_norm", "shortcut.normalization", residual.batch_norm),
      ],
      _projected(stem, config["hidden_sizes"], first_stride),
    ),
  ]
  classes = None
  if "classifier.1.weight" in shapes:
    classes = shapes["classifier.1.weight"][0]
    rules += hub.linear("head", "classifier.1")
  return Recipe(
    table="resnet",
    model={**model, "num_classes": classes},
    inputs=_inputs(config["num_channels"]),
    rules=rules,
    config=checkpoint.config,
    keep=(residual.BUFFERS,),
  )


def _torchvision(checkpoint: Checkpoint) -> Recipe:
  shapes, config = checkpoint.shapes, checkpoint.config
  named = config.get("architecture")
  if named is not None and not TIMM.fullmatch(named):
    raise errors.InputError(
      f"config.json architecture = {named!r}: of timm's models with these names "
      "of tensors only plain ResNets are known, such as 'resnet50.a1_in1k'."
    )
  depths = residual.torch_depths(sorted(shapes))
  block = "bottleneck" if "layer1.0.conv3.weight" in shapes else "basic"
  last = CONVOLUTIONS[block]

  def channels(conv: int, axis: int = 0) -> list[int]:
    """Returns a side of each stage's convolution, 0 where it has none."""
    names = [f"layer{i + 1}.0.conv{conv}.weight" for i in range(len(depths))]
    return [shapes[n][axis] if n in shapes else 0 for n in names]

  widths = channels(last)
  model: dict[str, Any] = dict(
    name="resnet",
    block=block,
    depths=depths,
    stem=shapes["conv1.weight"][0],
    widths=widths,
  )
  if block == "bottleneck":
    model["inner"] = channels(1)
    if channels(2, 1) != model["inner"]:
      raise errors.InputError(
        f"weights path = {str(checkpoint.path)!r}: the 3x3 convolutions of its "
        f"stages take {channels(2, 1)} channels of {model['inner']}: those of "
        "groups (ResNeXt) are not known."
      )
  rules = [
    *residual.conv("stem", "conv1"),
    *residual.batch_norm("stem_norm", "bn1"),
    *residual.stages(
      depths,
      lambda i: f"layer{i + 1}.{{n}}.",
      *residual.torch_parts(last),
      _projected(model["stem"], widths),
    ),
  ]
  if "fc.weight" in shapes:
    model["num_classes"] = shapes["fc.weight"][0]
    rules += hub.linear("head", "fc")
  return Recipe(
    table="resnet",
    model=model,
    inputs=_inputs(shapes["conv1.weight"][1]),
    rules=rules,
    config=config,
    keep=(residual.BUFFERS,),
  )


def _projected(stem: int, widths: Any, first_stride: int = 1) -> list[bool]:
  """Says which stages begin with another width or resolution."""
  return [stem != widths[0] or first_stride != 1, *[True] * (len(widths) - 1)]


def _inputs(channels: int) -> dict[str, tuple[tuple[int, ...], str]]:
  return {"image": ((1, PIXELS, PIXELS, channels), "float32")}
