"""A tiny ViT as the hub lays it out, for the tests of this folder."""

import json

import numpy as np
from safetensors.numpy import save_file

CONFIG = dict(
  model_type="vit",
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=4,
  intermediate_size=24,
  hidden_act="gelu",
  layer_norm_eps=1e-12,
  image_size=[24, 16],
  patch_size=8,
  num_channels=3,
)


def shapes(config, classes):
  """Returns {name: shape}, written out by hand."""
  D, F, p = (
    config[k] for k in ("hidden_size", "intermediate_size", "patch_size")
  )
  rows, columns = config["image_size"]
  e = "vit.embeddings."
  found = {
    f"{e}cls_token": (1, 1, D),
    f"{e}position_embeddings": (1, 1 + rows // p * (columns // p), D),
    f"{e}patch_embeddings.projection.weight": (D, 3, p, p),
    f"{e}patch_embeddings.projection.bias": (D,),
    "vit.layernorm.weight": (D,),
    "vit.layernorm.bias": (D,),
    "classifier.weight": (classes, D),
    "classifier.bias": (classes,),
  }
  for n in range(config["num_hidden_layers"]):
    block = f"vit.encoder.layer.{n}."
    for name, shape in {
      "layernorm_before": (D,),
      "layernorm_after": (D,),
      "attention.attention.query": (D, D),
      "attention.attention.key": (D, D),
      "attention.attention.value": (D, D),
      "attention.output.dense": (D, D),
      "intermediate.dense": (F, D),
      "output.dense": (D, F),
    }.items():
      found[f"{block}{name}.weight"] = shape
      found[f"{block}{name}.bias"] = shape[:1]
  return found


def draw(shapes, seed=0):
  """Returns random float32 tensors."""
  rng = np.random.default_rng(seed)
  return {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def hub(folder, tensors=None, classes=5, **changes):
  """Lays a ViT out in `folder`; returns its tensors."""
  config = {**CONFIG, **changes}
  if tensors is None:
    tensors = draw(shapes(config, classes))
  folder.mkdir(exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config))
  save_file(tensors, folder / "model.safetensors")
  return tensors


def google(width=8, heads=2, mlp=12, depth=2, patch=4, side=3, old=True):
  """Returns {name: shape} of a .npz of Google, of either generation."""
  attention, dense, second = (
    ("MultiHeadDotProductAttention_1", "MlpBlock_3", "LayerNorm_2")
    if old
    else ("MultiHeadDotProductAttention_0", "MlpBlock_0", "LayerNorm_1")
  )
  size = width // heads
  found = {
    "cls": (1, 1, width),
    "embedding/kernel": (patch, patch, 3, width),
    "embedding/bias": (width,),
    "Transformer/posembed_input/pos_embedding": (1, 1 + side**2, width),
    "Transformer/encoder_norm/scale": (width,),
    "Transformer/encoder_norm/bias": (width,),
    "head/kernel": (width, 5),
    "head/bias": (5,),
  }
  for n in range(depth):
    block = f"Transformer/encoderblock_{n}/"
    for norm in ("LayerNorm_0", second):
      found[f"{block}{norm}/scale"] = found[f"{block}{norm}/bias"] = (width,)
    for x in ("query", "key", "value"):
      found[f"{block}{attention}/{x}/kernel"] = (width, heads, size)
      found[f"{block}{attention}/{x}/bias"] = (heads, size)
    found[f"{block}{attention}/out/kernel"] = (heads, size, width)
    found[f"{block}{attention}/out/bias"] = (width,)
    found[f"{block}{dense}/Dense_0/kernel"] = (width, mlp)
    found[f"{block}{dense}/Dense_0/bias"] = (mlp,)
    found[f"{block}{dense}/Dense_1/kernel"] = (mlp, width)
    found[f"{block}{dense}/Dense_1/bias"] = (width,)
  return found
