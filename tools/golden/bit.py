"""BiT of the hub, both layers and paddings, odd images; and Google's names.

Google's are those of the hub's, renamed and laid out anew. Their filters have
another epsilon, which is set in the reference's modules.
"""

import re

import numpy as np
from make_golden import images, redraw, save, save_hub

IMAGE = (2, 45, 38, 3)


def make() -> None:
  """Records the cases."""
  from transformers import BitForImageClassification, BitModel

  _case(
    "bit_classifier",
    BitForImageClassification,
    dict(
      embedding_size=12,
      hidden_sizes=[16, 32],
      depths=[1, 3],
      num_groups=4,
      num_labels=7,
    ),
    seed=21,
  )
  _case(
    "bit_bottleneck_same",
    BitModel,
    dict(
      layer_type="bottleneck",
      embedding_size=8,
      hidden_sizes=[8, 12, 8],
      width_factor=2,
      depths=[2, 1, 2],
      output_stride=8,
      num_groups=8,
      global_padding="same",
      embedding_dynamic_padding=True,
    ),
    seed=22,
  )
  # Its own number of groups, which no file says: channels are multiples of it.
  _case(
    "bit_google",
    BitForImageClassification,
    dict(
      embedding_size=32,
      hidden_sizes=[128],
      depths=[2],
      num_labels=5,
    ),
    seed=23,
    google=True,
  )


def _case(
  name: str, kind, config: dict, seed: int, google: bool = False
) -> None:
  import torch
  from transformers import BitConfig

  model = redraw(kind(BitConfig(**config)), seed=seed)
  for path, module in model.named_modules():
    if type(module).__name__ != "WeightStandardizedConv2d":
      continue
    if google:
      module.eps = 1e-10
      # Whole sixteenths pack well.
      module.weight.data = torch.round(module.weight.data * 16 + 0.3) / 16
    if path.endswith("conv3"):
      # Filters as small as this show the epsilon, where no norm follows.
      module.weight.data *= 2.0 ** (-13 if google else -10)
  image = images(IMAGE, seed=seed)
  pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  encoder = getattr(model, "bit", model)
  with torch.no_grad():
    found, top = encoder(pixels), model(pixels)
  features = found.pooler_output.flatten(1)
  outputs = {
    "0": getattr(top, "logits", features),
    "1/pre_logits": features,
    "1/tokens": found.last_hidden_state.flatten(2).transpose(1, 2),
  }
  if not google:
    save_hub(name, model, {"image": image}, outputs)
    return
  tensors = dict(_google(k, v.numpy()) for k, v in model.state_dict().items())
  save(name, {}, tensors, {"image": image}, outputs)


def _google(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
  head = "resnet/head/conv2d/"
  if name == "classifier.1.bias":
    return f"{head}bias", value
  if name == "classifier.1.weight":
    return f"{head}kernel", value.T[None, None].copy()
  if value.ndim == 4:
    value = value.transpose(2, 3, 1, 0).copy()
  name = name.removeprefix("bit.").replace(".bias", "/beta")

  def block(found):
    return f"block{int(found[1]) + 1}/unit{int(found[2]) + 1:02}/"

  name = re.sub(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.", block, name)
  kernel = "standardized_conv2d/kernel"
  name = name.replace("embedder.convolution.weight", f"root_block/{kernel}")
  name = name.replace("downsample.conv.weight", f"a/proj/{kernel}")
  for i, letter in enumerate("abc", 1):
    name = name.replace(f"conv{i}.weight", f"{letter}/{kernel}")
    name = name.replace(f"norm{i}", f"{letter}/group_norm")
  name = name.replace("norm.weight", "norm/gamma").replace(".weight", "/gamma")
  if name.startswith("norm/"):
    name = f"group_{name}"
  return f"resnet/{name}", value
