"""SigLIP 2 of any aspect (NaFlex), and encoders of SigLIP and CLIP alone.

Images of a batch have grids of their own: larger and smaller than the learned
one, oblong, with and without padding.
"""

import numpy as np
from make_golden import images, redraw, save_hub

VISION = dict(
  hidden_size=24,
  intermediate_size=40,
  num_hidden_layers=2,
  num_attention_heads=3,
)
TEXT = dict(
  vocab_size=50,
  hidden_size=16,
  intermediate_size=36,
  num_hidden_layers=2,
  num_attention_heads=4,
  max_position_embeddings=9,
  bos_token_id=48,
  eos_token_id=1,
  pad_token_id=1,
)
IDS = np.array(
  [
    [3, 7, 9, 11, 1, 1, 1, 1, 1],
    [5, 49, 0, 6, 8, 30, 1, 1, 1],
    [12, 30, 2, 8, 4, 21, 13, 17, 1],
    [12, 30, 2, 8, 1, 1, 1, 1, 1],
  ],
  np.int32,
)
# Rows and columns of patches, in places for 21; the learned grid is 5 x 5.
SHAPES = np.array([[7, 3], [2, 9], [4, 4], [1, 6]], np.int32)


def make() -> None:
  """Records the cases."""
  import torch
  import transformers as t

  config = t.Siglip2Config(
    vision_config=dict(VISION, patch_size=4, num_patches=25),
    text_config=dict(TEXT, projection_size=24),
  )
  model = redraw(t.Siglip2Model(config), seed=21)
  image = images((4, 21, 48), seed=21)
  mask = (np.arange(21) < SHAPES.prod(1)[:, None]).astype(np.int32)
  ids = torch.from_numpy(IDS.astype(np.int64))
  given = dict(
    pixel_values=torch.from_numpy(image),
    pixel_attention_mask=torch.from_numpy(mask),
    spatial_shapes=torch.from_numpy(SHAPES.astype(np.int64)),
  )
  with torch.no_grad():
    found = model(input_ids=ids, **given)
  save_hub(
    "siglip2_naflex",
    model,
    {
      "image": image,
      "image_mask": mask,
      "image_shapes": SHAPES,
      "text": IDS,
    },
    {
      "0": found.image_embeds,
      "1": found.text_embeds,
      "2/0": model.logit_scale.exp()[0],
      "2/1": model.logit_bias[0],
    },
  )
  _images(t, torch, given, mask)
  _classes(t, torch, given, mask)
  _texts(t, torch)


def _images(t, torch, given, mask) -> None:
  model = redraw(
    t.Siglip2VisionModel(
      t.Siglip2VisionConfig(**VISION, patch_size=4, num_patches=25)
    ),
    seed=22,
  )
  with torch.no_grad():
    found = model(**given)
  save_hub(
    "siglip2_naflex_image",
    model,
    {
      "image": given["pixel_values"].numpy(),
      "mask": mask,
      "shapes": SHAPES,
    },
    {"0": found.pooler_output},
  )

  image = images((3, 24, 24, 3), seed=23)
  pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  sizes = dict(VISION, image_size=24, patch_size=8)
  model = redraw(t.SiglipVisionModel(t.SiglipVisionConfig(**sizes)), seed=23)
  with torch.no_grad():
    found = model(pixel_values=pixels)
  save_hub(
    "siglip_image",
    model,
    {"image": image},
    {"0": found.pooler_output, "1/tokens": found.last_hidden_state},
  )
  config = t.CLIPVisionConfig(**sizes, projection_dim=20)
  for name, kind, out in (
    ("clip_image", t.CLIPVisionModel, "pooler_output"),
    ("clip_image_projected", t.CLIPVisionModelWithProjection, "image_embeds"),
  ):
    model = redraw(kind(config), seed=24)
    with torch.no_grad():
      found = model(pixel_values=pixels)
    save_hub(name, model, {"image": image}, {"0": getattr(found, out)})


def _classes(t, torch, given, mask) -> None:
  """Classifiers by the mean; their files hold a pooling head that is not read.

  That of SigLIP has two columns of pixels that fill no patch.
  """
  inputs = {"image": given["pixel_values"].numpy(), "mask": mask}
  sizes = dict(VISION, patch_size=4, num_patches=25)
  config = t.Siglip2Config(vision_config=sizes, text_config=TEXT, num_labels=5)
  model = redraw(t.Siglip2ForImageClassification(config), seed=27)
  with torch.no_grad():
    found = model(**given)
  save_hub(
    "siglip2_naflex_classifier",
    model,
    {**inputs, "shapes": SHAPES},
    {"0": found.logits},
  )
  image = images((3, 16, 26, 3), seed=28)
  pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  sizes = dict(VISION, image_size=24, patch_size=8)
  config = t.SiglipConfig(vision_config=sizes, text_config=TEXT, num_labels=5)
  model = redraw(t.SiglipForImageClassification(config), seed=28)
  with torch.no_grad():
    found = model(pixel_values=pixels, interpolate_pos_encoding=True)
  save_hub("siglip_classifier", model, {"image": image}, {"0": found.logits})


def _texts(t, torch) -> None:
  ids = torch.from_numpy(IDS.astype(np.int64))
  config = dict(TEXT, projection_size=20)
  model = redraw(t.SiglipTextModel(t.SiglipTextConfig(**config)), seed=25)
  with torch.no_grad():
    found = model(input_ids=ids)
  save_hub("siglip_text", model, {"tokens": IDS}, {".": found.pooler_output})
  config = t.CLIPTextConfig(**TEXT, projection_dim=20)
  for name, kind, out in (
    ("clip_text", t.CLIPTextModel, "pooler_output"),
    ("clip_text_projected", t.CLIPTextModelWithProjection, "text_embeds"),
  ):
    model = redraw(kind(config), seed=26)
    with torch.no_grad():
      found = model(input_ids=ids)
    save_hub(name, model, {"tokens": IDS}, {".": getattr(found, out)})
