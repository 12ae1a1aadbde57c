"""PaliGemma 1 and 2 of the hub: prompts and suffixes of lengths, and ids.

Our texts have no places for the image; what the reference says at those places
and at padding is not recorded (NaN).
"""

import numpy as np
from make_golden import hub_settings, images, redraw, save_hub

VOCAB, EOS, PAD, IMAGE = 50, 1, 0, 49
M = 9  # patches
TOKENS = np.array(
  [
    [2, 13, 7, 9, 11, 12, 21, 1],
    [2, 15, 6, 14, 1, 0, 0, 0],
    [2, 12, 30, 21, 5, 17, 1, 0],
  ],
  np.int32,
)
SUFFIX = np.array(
  [
    [0, 0, 0, 0, 1, 1, 1, 1],
    [0, 0, 0, 1, 1, 0, 0, 0],
    [0, 0, 1, 1, 1, 1, 1, 0],
  ],
  np.int32,
)
PROMPT = np.array(
  [[2, 13, 7, 9, 11], [0, 0, 2, 15, 6], [0, 2, 12, 30, 21]], np.int32
)


# Gemma 2's. The band is shorter than a prompt, and caps are where numbers reach.
SECOND = dict(
  model_type="gemma2",
  num_attention_heads=4,
  num_key_value_heads=2,
  query_pre_attn_scalar=7,
  sliding_window=4,
  attn_logit_softcapping=2.0,
  final_logit_softcapping=5.0,
)


def make() -> None:
  """Records the cases."""
  _record("paligemma", {}, 41)
  _record("paligemma2", SECOND, 42)


def _record(name: str, text: dict, seed: int) -> None:
  import torch
  from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

  config = PaliGemmaConfig(
    vision_config=dict(
      model_type="siglip_vision_model",
      hidden_size=24,
      intermediate_size=36,
      num_hidden_layers=2,
      num_attention_heads=3,
      image_size=24,
      patch_size=8,
      vision_use_head=False,
    ),
    text_config=dict(
      model_type="gemma",
      vocab_size=VOCAB,
      hidden_size=20,
      intermediate_size=36,
      num_hidden_layers=2,
      num_attention_heads=5,
      num_key_value_heads=1,
      head_dim=6,
      max_position_embeddings=40,
      bos_token_id=2,
      eos_token_id=EOS,
      pad_token_id=PAD,
    )
    | text,
    image_token_index=IMAGE,
    vocab_size=VOCAB,
    projection_dim=20,
    hidden_size=20,
  )
  config._attn_implementation = "eager"
  model = PaliGemmaForConditionalGeneration(config)
  kept = {k: v.clone() for k, v in model.named_buffers()}
  model = redraw(model, seed=seed)
  with torch.no_grad():
    for key, value in model.named_buffers():  # no parameters: sizes, angles
      value.copy_(kept[key])
    # Else texts are alike, whatever is seen, and soon repeat a word.
    for key, value in model.named_parameters():
      if "language_model" in key and "_proj.weight" in key:
        value.mul_(2.0)
      if "feedforward_layernorm" in key or (text and "post_attention" in key):
        value.add_(1.0)
  image = images((3, 24, 24, 3), seed=seed)
  pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  mask = (TOKENS != PAD).astype(np.int32)
  with torch.no_grad():
    found = model(
      input_ids=_torch(_front(TOKENS, IMAGE)),
      attention_mask=_torch(_front(mask, 1)),
      token_type_ids=_torch(_front(SUFFIX, 0)),
      pixel_values=pixels,
    )
  logits = found.logits[:, M:].numpy().copy()
  logits[mask == 0] = np.nan

  given = (PROMPT != PAD).astype(np.int32)
  ways = {}
  for kind, way in dict(greedy={}, beam=dict(beams=3)).items():
    settings = dict(length=14, eos_ids=[EOS], pad_id=PAD) | way
    said = hub_settings(settings) | dict(max_length=14 + M)
    with torch.no_grad():
      ids = model.generate(
        input_ids=_torch(_front(PROMPT, IMAGE)),
        attention_mask=_torch(_front(given, 1)),
        token_type_ids=_torch(_front(0 * PROMPT, 0)),
        pixel_values=pixels,
        **said,
      )
    ways[kind] = {
      "settings": settings,
      "prompt": PROMPT,
      "ids": ids[:, M:].numpy().astype(np.int32),
      "image": image,
      "mask": given,
    }
  save_hub(
    name,
    model,
    {"image": image, "tokens": TOKENS, "mask": mask, "suffix": SUFFIX},
    {"0": logits, "1/image": found.image_hidden_states},
    ways,
  )


def _front(x: np.ndarray, value: int) -> np.ndarray:
  """Returns x with places for the image before it."""
  return np.pad(x, ((0, 0), (M, 0)), constant_values=value)


def _torch(x: np.ndarray):
  import torch

  return torch.from_numpy(x.astype(np.int64))
