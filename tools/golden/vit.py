"""ViT of the hub with and without a head, oblong images; one that paints."""

import numpy as np
from make_golden import images, redraw, save_hub


def make() -> None:
  """Records the cases."""
  import torch
  from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
  )

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

  config = ViTConfig(
    hidden_size=12,
    num_hidden_layers=1,
    num_attention_heads=3,
    intermediate_size=20,
    hidden_act="mish",
    image_size=12,
    patch_size=4,
    encoder_stride=4,
    num_channels=2,
  )
  model = redraw(ViTForMaskedImageModeling(config), seed=51)
  image = images((2, 12, 12, 2))
  pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  hidden = np.array([[0, 1, 0, 0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 1, 0]])
  where = torch.from_numpy(hidden).bool()
  with torch.no_grad():
    found = model(pixels, bool_masked_pos=where)
    tokens = model.vit(pixels, bool_masked_pos=where).last_hidden_state
  save_hub(
    "vit_masked_image",
    model,
    {"image": image, "hidden": hidden.astype(np.int32)},
    {
      "0": found.reconstruction.permute(0, 2, 3, 1),
      "1/tokens": tokens,
      "1/loss": found.loss,
    },
  )
