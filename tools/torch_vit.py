"""The ViT of `mmjax.models.vit` as a user of PyTorch writes it."""

import importlib
from typing import Any

import numpy as np


def torch() -> Any:
  """Returns the module PyTorch, an optional package.

  Raises:
    ImportError: it is not installed.
  """
  return importlib.import_module("torch")


def build(weights: dict[str, np.ndarray], image: int) -> Any:
  """Builds the twin of a `models.vit` that has these weights.

  Args:
    weights: parameters by name, of a ViT with learned positions, mean pool
      and classes.
    image: side of the image in pixels.

  Raises:
    ImportError: PyTorch is not installed.
  """
  pt = torch()
  nn, functional = pt.nn, pt.nn.functional
  kernel = weights["embedding/kernel"]
  patch, width = kernel.shape[0], kernel.shape[3]
  depth, _, heads, _ = weights["encoder/blocks/attention/query/kernel"].shape
  classes = weights["head/bias"].size
  hidden = weights["encoder/blocks/mlp/up/bias"].shape[1]

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      self.norm1 = nn.LayerNorm(width, eps=1e-6)
      self.qkv = nn.Linear(width, 3 * width)
      self.out = nn.Linear(width, width)
      self.norm2 = nn.LayerNorm(width, eps=1e-6)
      self.up = nn.Linear(width, hidden)
      self.down = nn.Linear(hidden, width)

    def forward(self, x):
      B, T, D = x.shape
      y = self.qkv(self.norm1(x)).view(B, T, 3, heads, D // heads)
      q, k, v = y.permute(2, 0, 3, 1, 4)
      y = functional.scaled_dot_product_attention(q, k, v)
      x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
      y = functional.gelu(self.up(self.norm2(x)), approximate="tanh")
      return x + self.down(y)

  class ViT(nn.Module):
    def __init__(self):
      super().__init__()
      self.embedding = nn.Conv2d(3, width, patch, patch)
      positions = (image // patch) ** 2
      self.posemb = nn.Parameter(pt.zeros(1, positions, width))
      self.blocks = nn.ModuleList(Block() for _ in range(depth))
      self.norm = nn.LayerNorm(width, eps=1e-6)
      self.head = nn.Linear(width, classes)

    def forward(self, x):
      x = self.embedding(x).flatten(2).transpose(1, 2) + self.posemb
      for block in self.blocks:
        x = block(x)
      return self.head(self.norm(x).mean(1))

  model = ViT()
  with pt.no_grad():
    for name, value in _renamed(weights, depth, width).items():
      target = model.get_parameter(name)
      target.copy_(pt.from_numpy(np.ascontiguousarray(value)).view_as(target))
  return model


def _renamed(
  weights: dict[str, np.ndarray], depth: int, width: int
) -> dict[str, np.ndarray]:
  """Renames and transposes parameters: kernels [in out] become [out in]."""
  (posemb,) = (v for k, v in weights.items() if k.startswith("posemb/"))
  out = {
    "embedding.weight": weights["embedding/kernel"].transpose(3, 2, 0, 1),
    "embedding.bias": weights["embedding/bias"],
    "posemb": posemb,
    "norm.weight": weights["norm/scale"],
    "norm.bias": weights["norm/bias"],
    "head.weight": weights["head/kernel"].T,
    "head.bias": weights["head/bias"],
  }
  stack = "encoder/blocks/"
  for i in range(depth):
    for norm in ("norm1", "norm2"):
      out[f"blocks.{i}.{norm}.weight"] = weights[f"{stack}{norm}/scale"][i]
      out[f"blocks.{i}.{norm}.bias"] = weights[f"{stack}{norm}/bias"][i]
    parts = [f"{stack}attention/{n}/" for n in ("query", "key", "value")]
    out[f"blocks.{i}.qkv.weight"] = np.concatenate(
      [weights[p + "kernel"][i].reshape(width, width).T for p in parts]
    )
    out[f"blocks.{i}.qkv.bias"] = np.concatenate(
      [weights[p + "bias"][i].reshape(width) for p in parts]
    )
    for ours, theirs in (
      ("attention/out", "out"),
      ("mlp/up", "up"),
      ("mlp/down", "down"),
    ):
      kernel = weights[f"{stack}{ours}/kernel"][i]
      bias = weights[f"{stack}{ours}/bias"][i]
      out[f"blocks.{i}.{theirs}.weight"] = kernel.reshape(-1, bias.size).T
      out[f"blocks.{i}.{theirs}.bias"] = bias
  return out
