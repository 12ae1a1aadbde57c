"""ResNet of the hub, both blocks, odd images; and in torchvision's names.

torchvision itself is not needed: its names are those of the hub's, renamed.
"""

import re

from make_golden import images, redraw, save, save_hub

IMAGE = (2, 45, 38, 3)


def make() -> None:
  """Records the cases."""
  from transformers import ResNetForImageClassification, ResNetModel

  _case(
    "resnet_classifier",
    ResNetForImageClassification,
    dict(
      layer_type="bottleneck",
      embedding_size=10,
      hidden_sizes=[20, 28],
      depths=[1, 3],
      num_labels=7,
    ),
    seed=11,
  )
  # The first stage has a stride, the bottlenecks it in their first layer.
  _case(
    "resnet_v1_encoder",
    ResNetModel,
    dict(
      layer_type="bottleneck",
      embedding_size=6,
      hidden_sizes=[12, 20],
      depths=[2, 1],
      downsample_in_first_stage=True,
      downsample_in_bottleneck=True,
      hidden_act="gelu",
    ),
    seed=12,
  )
  _case(
    "resnet_basic",
    ResNetForImageClassification,
    dict(
      layer_type="basic",
      embedding_size=9,
      hidden_sizes=[9, 14],
      depths=[2, 2],
      num_labels=5,
    ),
    seed=13,
    torchvision=True,
  )


def _case(
  name: str, kind, config: dict, seed: int, torchvision: bool = False
) -> None:
  import torch
  from transformers import ResNetConfig

  model = redraw(kind(ResNetConfig(**config)), seed=seed)
  image = images(IMAGE, seed=seed)
  pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  encoder = getattr(model, "resnet", model)
  with torch.no_grad():
    found, top = encoder(pixels), model(pixels)
  features = found.pooler_output.flatten(1)
  outputs = {
    "0": getattr(top, "logits", features),
    "1/pre_logits": features,
    "1/tokens": found.last_hidden_state.flatten(2).transpose(1, 2),
  }
  save_hub(name, model, {"image": image}, outputs)
  if torchvision:
    state = {_torchvision(k): v for k, v in model.state_dict().items()}
    save(f"{name}_torchvision", {}, state, {"image": image}, outputs)


def _torchvision(name: str) -> str:
  name = name.removeprefix("resnet.").replace("classifier.1.", "fc.")
  name = name.replace("embedder.embedder.convolution", "conv1")
  name = name.replace("embedder.embedder.normalization", "bn1")

  def block(found):
    return f"layer{int(found[1]) + 1}.{found[2]}."

  name = re.sub(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.", block, name)
  for i in range(3):
    name = name.replace(f".layer.{i}.convolution.", f".conv{i + 1}.")
    name = name.replace(f".layer.{i}.normalization.", f".bn{i + 1}.")
  name = name.replace(".shortcut.convolution.", ".downsample.0.")
  return name.replace(".shortcut.normalization.", ".downsample.1.")
