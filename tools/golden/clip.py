"""CLIP of the hub: quick GELU, GELU with the end of text of old configs, classes.

Texts have padding after their end, in which greater ids and a second end of
text stand; the reference is asked with and without a mask of it.
"""

import numpy as np
from make_golden import images, redraw, save_hub

EOT, VOCAB = 40, 50
TEXT = np.array(
  [
    [48, 3, 7, 9, 11, EOT, 45, 49, EOT],  # greater ids after the end
    [48, 5, 6, EOT, EOT, EOT, EOT, EOT, EOT],
    [48, 12, 30, 2, 8, 4, 21, 13, EOT],
  ],
  np.int32,
)
# The end of text is the greatest id; padding is below it, or equal.
LEGACY = np.array(
  [
    [48, 3, 7, 9, 11, 49, 0, 0, 0],
    [48, 5, 2, 6, 49, 49, 49, 49, 49],
    [48, 12, 30, 2, 8, 4, 21, 13, 49],
  ],
  np.int32,
)


def make() -> None:
  """Records the cases."""
  _case("clip_quick_gelu", TEXT, "quick_gelu", EOT, seed=3)
  _case("clip_gelu_legacy", LEGACY, "gelu", 2, seed=4)
  _classes()


def _classes() -> None:
  import torch
  from transformers import CLIPConfig, CLIPForImageClassification

  config = CLIPConfig(
    vision_config=dict(
      hidden_size=12,
      intermediate_size=20,
      num_hidden_layers=1,
      num_attention_heads=3,
      image_size=24,
      patch_size=8,
      num_channels=1,
      hidden_act="leaky_relu",
    ),
    num_labels=5,
  )
  model = redraw(CLIPForImageClassification(config), seed=52)
  image = images((3, 24, 24, 1), seed=52)
  pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    found = model(pixels)
  save_hub("clip_classifier", model, {"image": image}, {"0": found.logits})


def _case(name: str, text: np.ndarray, act: str, eos: int, seed: int) -> None:
  import torch
  from transformers import CLIPConfig, CLIPModel

  config = CLIPConfig(
    vision_config=dict(
      hidden_size=24,
      intermediate_size=40,
      num_hidden_layers=2,
      num_attention_heads=3,
      image_size=24,
      patch_size=8,
      hidden_act=act,
    ),
    text_config=dict(
      vocab_size=VOCAB,
      hidden_size=16,
      intermediate_size=36,
      num_hidden_layers=2,
      num_attention_heads=4,
      max_position_embeddings=11,
      hidden_act=act,
      eos_token_id=eos,
      pad_token_id=0,
      bos_token_id=48,
    ),
    projection_dim=20,
  )
  model = redraw(CLIPModel(config), seed=seed)
  image = images((3, 24, 24, 3), seed=seed)
  pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  ids = torch.from_numpy(text.astype(np.int64))
  end = 49 if eos == 2 else eos
  first = (text == end).argmax(-1)
  mask = torch.from_numpy((np.arange(text.shape[1]) <= first[:, None]) * 1)
  with torch.no_grad():
    found = model(input_ids=ids, pixel_values=pixels)
    masked = model(input_ids=ids, pixel_values=pixels, attention_mask=mask)
  assert torch.allclose(found.text_embeds, masked.text_embeds, atol=1e-6)
  save_hub(
    name,
    model,
    {"image": image, "text": text},
    {
      "0": found.image_embeds,
      "1": found.text_embeds,
      "2/0": model.logit_scale.exp(),
    },
  )
