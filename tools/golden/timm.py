"""ViT with timm's names: written out in PyTorch, of timm, AudioMAE's encoder.

timm 1.0.31 itself computes SigLIP's, where it is installed; what it imports of
torchvision to prepare images is left out. What is written out here is told by
timm's names: pre-norm blocks, exact GELU, epsilon 1e-6, positions before
registers, in SwiGLU the gate first; AudioMAE's encoder takes the mean of the
patches, then a norm (github facebookresearch/AudioMAE, models_vit.py).
"""

import sys
from unittest import mock

import numpy as np
from make_golden import images, redraw, save

WIDTH, DEPTH, HEADS = 16, 2, 4


def make() -> None:
  """Records the cases."""
  model = _model(
    (3, 2), registers=3, mlp=24, gated=True, scaled=True, placed=False
  )
  image = images((2, 24, 16, 3), 20)
  config = dict(
    architecture="vit_small_patch8_reg",
    global_pool="token",
    model_args=dict(num_heads=HEADS, img_size=[24, 16], reg_tokens=3),
  )
  _case("timm_registers", model, config, "image", image, pooled=False)

  model = _model((9, 3), channels=1, patch=4, mlp=20, pooled=True)
  audio = images((2, 36, 12, 1), 21)
  config = dict(model_args=dict(num_heads=HEADS, img_size=[36, 12]))
  _case("audiomae", model, config, "audio", audio, pooled=True)
  _siglip()


def _siglip() -> None:
  """No class token, positions of an oblong grid, a pool that attends."""
  import torch

  for name in (
    "",
    ".datasets",
    ".models",
    ".models.feature_extraction",
    ".ops",
    ".ops.misc",
    ".transforms",
    ".transforms.functional",
    ".transforms.v2",
    ".transforms.v2.functional",
    ".utils",
  ):
    sys.modules.setdefault(f"torchvision{name}", mock.MagicMock())
  from timm.models import vision_transformer

  arguments = dict(img_size=[24, 16], num_heads=HEADS, act_layer="gelu_tanh")
  model = vision_transformer.VisionTransformer(
    patch_size=8,
    embed_dim=WIDTH,
    depth=DEPTH,
    mlp_ratio=1.25,
    class_token=False,
    global_pool="map",
    num_classes=0,
    **arguments,
  )
  model = redraw(model, 31)
  with torch.no_grad():
    model.pos_embed *= 0.5 * model.pos_embed[0].numel() ** 0.5
    image = images((2, 24, 16, 3), 22)
    pooled = model(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
  config = dict(
    architecture="vit_base_patch8_siglip_24",
    global_pool="map",
    num_classes=0,
    num_features=WIDTH,
    model_args=arguments,
    pretrained_cfg=dict(num_classes=0, input_size=[3, 24, 16]),
  )
  save(
    "timm_siglip", config, model.state_dict(), {"image": image}, {"0": pooled}
  )


def _model(
  grid,
  *,
  channels=3,
  patch=8,
  mlp=20,
  registers=0,
  gated=False,
  scaled=False,
  placed=True,
  pooled=False,
):
  import torch
  from torch import nn

  class Scale(nn.Module):
    def __init__(self):
      super().__init__()
      self.gamma = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
      return x * self.gamma

  class Attention(nn.Module):
    def __init__(self):
      super().__init__()
      self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
      self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
      B, T, D = x.shape
      q, k, v = self.qkv(x).reshape(B, T, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
      weights = (q @ k.transpose(-1, -2) / (D // HEADS) ** 0.5).softmax(-1)
      return self.proj((weights @ v).transpose(1, 2).reshape(B, T, D))

  class MLP(nn.Module):
    def __init__(self):
      super().__init__()
      self.fc1 = nn.Linear(WIDTH, mlp * (2 if gated else 1))
      self.fc2 = nn.Linear(mlp, WIDTH)

    def forward(self, x):
      x = self.fc1(x)
      if gated:
        gate, x = x.chunk(2, -1)
        x = nn.functional.silu(gate) * x
      else:
        x = nn.functional.gelu(x)
      return self.fc2(x)

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
      self.attn = Attention()
      self.ls1 = Scale() if scaled else nn.Identity()
      self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
      self.mlp = MLP()
      self.ls2 = Scale() if scaled else nn.Identity()

    def forward(self, x):
      x = x + self.ls1(self.attn(self.norm1(x)))
      return x + self.ls2(self.mlp(self.norm2(x)))

  class ViT(nn.Module):
    def __init__(self):
      super().__init__()
      count = grid[0] * grid[1] + placed
      self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
      self.pos_embed = nn.Parameter(torch.zeros(1, count, WIDTH))
      if registers:
        self.reg_token = nn.Parameter(torch.zeros(1, registers, WIDTH))
      self.patch_embed = nn.Module()
      self.patch_embed.proj = nn.Conv2d(channels, WIDTH, patch, patch)
      self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
      name = "fc_norm" if pooled else "norm"
      setattr(self, name, nn.LayerNorm(WIDTH, eps=1e-6))
      self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
      x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
      front = self.cls_token
      if placed:
        front = front + self.pos_embed[:, :1]
        x = x + self.pos_embed[:, 1:]
      else:
        x = x + self.pos_embed
      if registers:
        front = torch.cat([front, self.reg_token], 1)
      x = torch.cat([front.expand(len(x), -1, -1), x], 1)
      x = self.blocks(x)
      if pooled:
        x = self.fc_norm(x[:, 1 + registers :].mean(1))
      else:
        x = self.norm(x)[:, 0]
      return self.head(x), x

  model = redraw(ViT(), 30)
  with torch.no_grad():
    model.pos_embed *= 0.5 * model.pos_embed[0].numel() ** 0.5
  return model


def _case(name, model, config, argument, value, *, pooled) -> None:
  import torch

  with torch.no_grad():
    x = torch.from_numpy(value.transpose(0, 3, 1, 2).copy())
    logits, features = model(x)
  given = value[..., 0] if argument == "audio" else value
  assert np.isfinite(logits.numpy()).all()
  save(
    name,
    config,
    model.state_dict(),
    {argument: given},
    {"0": logits, "1/pre_logits": features},
  )
