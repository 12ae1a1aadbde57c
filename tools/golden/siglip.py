"""SigLIP of the hub; its text's head leads to the image encoder's width.

Two rows and columns of pixels fill no patch, as in the released models of 384
pixels with a patch of 14.
"""

import numpy as np
from make_golden import images, redraw, save_hub


def make() -> None:
  """Records the case."""
  import torch
  from transformers import SiglipConfig, SiglipModel

  config = SiglipConfig(
    vision_config=dict(
      hidden_size=24,
      intermediate_size=40,
      num_hidden_layers=2,
      num_attention_heads=3,
      image_size=26,
      patch_size=8,
    ),
    text_config=dict(
      vocab_size=50,
      hidden_size=16,
      intermediate_size=36,
      num_hidden_layers=2,
      num_attention_heads=4,
      max_position_embeddings=9,
      projection_size=24,
      bos_token_id=48,
      eos_token_id=1,
      pad_token_id=1,
    ),
  )
  model = redraw(SiglipModel(config), seed=5)
  image = images((3, 26, 26, 3), seed=5)
  pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  # The end of text, 1, pads.
  text = np.array(
    [
      [3, 7, 9, 11, 1, 1, 1, 1, 1],
      [5, 49, 0, 6, 8, 30, 1, 1, 1],
      [12, 30, 2, 8, 4, 21, 13, 17, 1],
    ],
    np.int32,
  )
  ids = torch.from_numpy(text.astype(np.int64))
  with torch.no_grad():
    found = model(input_ids=ids, pixel_values=pixels)
  save_hub(
    "siglip",
    model,
    {"image": image, "text": text},
    {
      "0": found.image_embeds,
      "1": found.text_embeds,
      "2/0": model.logit_scale.exp()[0],
      "2/1": model.logit_bias[0],
    },
  )
