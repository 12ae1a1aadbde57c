"""ViT of the hub with and without a head, oblong images; Google's layout."""

import numpy as np
from make_golden import images, redraw, save_hub


def make() -> None:
  """Records the cases."""
  import torch
  from transformers import ViTConfig, ViTForImageClassification, ViTModel

  config = ViTConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=40,
    image_size=(24, 16),
    patch_size=8,
    num_labels=5,
  )
  image = images((2, 24, 16, 3))
  pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  model = redraw(ViTForImageClassification(config))
  with torch.no_grad():
    found = model(pixels, output_hidden_states=True)
    tokens = model.vit(pixels).last_hidden_state
  save_hub(
    "vit_classifier",
    model,
    {"image": image},
    {"0": found.logits, "1/tokens": tokens},
  )
  config.hidden_act = "gelu_new"
  bare = redraw(ViTModel(config, add_pooling_layer=True), seed=2)
  with torch.no_grad():
    found = bare(pixels)
  save_hub(
    "vit_encoder",
    bare,
    {"image": image},
    {"0": found.last_hidden_state[:, 0], "1/tokens": found.last_hidden_state},
  )
  assert np.isfinite(found.last_hidden_state.numpy()).all()
