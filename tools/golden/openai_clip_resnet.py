"""CLIP with a ResNet in OpenAI's layout and open_clip's.

The reference's ResNet, which transformers does not have, is written here from
the paper's description and the names of the released tensors, in PyTorch's own
layers and its `multi_head_attention_forward`. It proves that our convolutions,
norms and attention pool do what PyTorch's do in that order. That the order is
OpenAI's was checked by reading open_clip's source, and by the published
counts; no released weights were run. The text tower is transformers'.
"""

import numpy as np
from golden import openai_clip
from make_golden import redraw, save

EMBED = 14


def make() -> None:
  """Records the cases."""
  _resnet_openai()
  _resnet_open_clip()


def _images(shape: tuple, seed: int) -> np.ndarray:
  """Draws images with coarse parts: of noise alone the mean says nothing."""
  B, Y, X, C = shape
  coarse = openai_clip.images((B, Y // 20 + 1, X // 20 + 1, C), seed + 50)
  coarse = coarse.repeat(20, axis=1).repeat(20, axis=2)[:, :Y, :X]
  return openai_clip.images(shape, seed) + 3 * coarse


def _alive(model, seed: int):
  """Redraws so that images still differ after all the ReLUs."""
  from torch import nn

  redraw(model, seed)
  for module in model.modules():
    if isinstance(module, nn.BatchNorm2d):
      module.weight.data += 1.5
  return model


def _resnet_openai() -> None:
  model = _text_only(dict(hidden_size=64, num_attention_heads=1), "quick_gelu")
  resnet = _alive(
    _resnet(stem=4, depths=(1, 2, 1, 1), side=2, heads=2), seed=33
  )
  openai_clip.halve(model)
  openai_clip.halve(resnet)
  image = _images((3, 64, 64, 3), seed=33)
  state = {f"visual.{k}": v for k, v in resnet.state_dict().items()}
  state |= {
    k: v
    for k, v in openai_clip.tensors_of(model).items()
    if not k.startswith("visual.")
  }
  save(
    "openai_clip_rn",
    {},
    openai_clip.as_released(state, 64),
    {"image": image, "text": openai_clip.TEXT},
    openai_clip.embed(model, image, resnet),
  )


def _resnet_open_clip() -> None:
  """Many heads, pixels that fill no cell of the map, GELU for the text."""
  model = _text_only(dict(hidden_size=20, num_attention_heads=5), "gelu")
  resnet = _alive(
    _resnet(stem=2, depths=(2, 1, 1, 2), side=3, heads=8), seed=34
  )
  openai_clip.halve(resnet)
  image = _images((2, 107, 107, 3), seed=34)
  state = {f"visual.{k}": v for k, v in resnet.state_dict().items()}
  state |= {
    k: v
    for k, v in openai_clip.tensors_of(model).items()
    if not k.startswith("visual.")
  }
  config = dict(
    embed_dim=EMBED,
    quick_gelu=False,
    vision_cfg=dict(
      image_size=107,
      layers=[2, 1, 1, 2],
      width=2,
      head_width=8,
      patch_size=None,
    ),
    text_cfg=dict(
      context_length=openai_clip.LENGTH,
      vocab_size=openai_clip.VOCAB,
      width=20,
      heads=5,
      layers=1,
    ),
  )
  save(
    "open_clip_rn",
    config,
    state,
    {"image": image, "text": openai_clip.TEXT},
    openai_clip.embed(model, image, resnet),
  )


def _text_only(text: dict, act: str):
  return openai_clip.clip(
    dict(
      hidden_size=8,
      intermediate_size=8,
      num_attention_heads=1,
      image_size=8,
      patch_size=8,
    ),
    dict(intermediate_size=24, num_hidden_layers=1, **text),
    act,
    EMBED,
    seed=35,
  )


def _resnet(stem: int, depths: tuple, side: int, heads: int):
  """Returns CLIP's ResNet: three convolutions, stages, attention."""
  import torch
  from torch import nn
  from torch.nn import functional as F

  def conv_norm(module, i, channels, features, size, stride=1):
    conv = nn.Conv2d(
      channels, features, size, stride, padding=size // 2, bias=False
    )
    module.add_module(f"conv{i}", conv)
    module.add_module(f"bn{i}", nn.BatchNorm2d(features))

  class Bottleneck(nn.Module):
    def __init__(self, channels, inner, stride):
      super().__init__()
      self.stride = stride
      conv_norm(self, 1, channels, inner, 1)
      conv_norm(self, 2, inner, inner, 3)
      conv_norm(self, 3, inner, 4 * inner, 1)
      self.downsample = None
      if stride > 1 or channels != 4 * inner:
        self.downsample = nn.Sequential(
          nn.Conv2d(channels, 4 * inner, 1, bias=False),
          nn.BatchNorm2d(4 * inner),
        )

    def forward(self, x):
      y = F.relu(self.bn1(self.conv1(x)))
      y = F.relu(self.bn2(self.conv2(y)))
      if self.stride > 1:
        y = F.avg_pool2d(y, self.stride)
      y = self.bn3(self.conv3(y))
      if self.downsample is not None:
        pooled = F.avg_pool2d(x, self.stride) if self.stride > 1 else x
        x = self.downsample(pooled)
      return F.relu(x + y)

  class Pool(nn.Module):
    def __init__(self, width):
      super().__init__()
      self.positional_embedding = nn.Parameter(torch.zeros(side**2 + 1, width))
      for name in "qkv":
        self.add_module(f"{name}_proj", nn.Linear(width, width))
      self.c_proj = nn.Linear(width, EMBED)

    def forward(self, x):
      x = x.flatten(2).permute(2, 0, 1)
      x = torch.cat([x.mean(0, keepdim=True), x])
      x = x + self.positional_embedding[:, None]
      projections = (self.q_proj, self.k_proj, self.v_proj)
      y, _ = F.multi_head_attention_forward(
        query=x[:1],
        key=x,
        value=x,
        embed_dim_to_check=x.shape[-1],
        num_heads=heads,
        in_proj_weight=None,
        in_proj_bias=torch.cat([p.bias for p in projections]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=self.c_proj.weight,
        out_proj_bias=self.c_proj.bias,
        training=False,
        need_weights=False,
        use_separate_proj_weight=True,
        q_proj_weight=self.q_proj.weight,
        k_proj_weight=self.k_proj.weight,
        v_proj_weight=self.v_proj.weight,
      )
      return y[0]

  class ResNet(nn.Module):
    def __init__(self):
      super().__init__()
      conv_norm(self, 1, 3, stem // 2, 3, 2)
      conv_norm(self, 2, stem // 2, stem // 2, 3)
      conv_norm(self, 3, stem // 2, stem, 3)
      channels = stem
      for i, depth in enumerate(depths):
        inner, blocks = stem * 2**i, []
        for n in range(depth):
          blocks.append(Bottleneck(channels, inner, 2 if i and not n else 1))
          channels = 4 * inner
        self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
      self.attnpool = Pool(channels)

    def forward(self, x):
      for i in (1, 2, 3):
        conv, norm = getattr(self, f"conv{i}"), getattr(self, f"bn{i}")
        x = F.relu(norm(conv(x)))
      x = F.avg_pool2d(x, 2)
      for i in range(len(depths)):
        x = getattr(self, f"layer{i + 1}")(x)
      return self.attnpool(x)

  return ResNet()
