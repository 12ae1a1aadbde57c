"""CLAP of the hub, fused and not; its encoders alone with their projections.

Windows do not fill the grids of two of three stages and patches overlap, or
the last grid is one window; spectrograms are stretched; some sounds are longer
and some not; texts have ragged masks.
"""

import numpy as np
from make_golden import redraw, save_hub

MASK = (np.arange(9) < np.array([[9], [4], [7]])).astype(np.int32)
TEXT = dict(
  vocab_size=53,
  hidden_size=12,
  num_hidden_layers=2,
  num_attention_heads=3,
  intermediate_size=20,
  max_position_embeddings=14,
)
AUDIO = dict(
  window_size=4,
  num_mel_bins=10,
  spec_size=40,
  patch_size=4,
  patch_stride=[2, 2],
  depths=[1, 3, 2],
  num_attention_heads=[2, 2, 4],
  patch_embeds_hidden_size=8,
  hidden_size=32,
  mlp_ratio=1.625,
  layer_norm_eps=1e-3,
)
FUSED = dict(
  AUDIO,
  enable_fusion=True,
  num_mel_bins=8,
  spec_size=32,
  patch_size=2,
  depths=[1, 2, 1],
  aff_block_r=3,
  hidden_act="relu",
  qkv_bias=False,
)


def make() -> None:
  """Records the cases."""
  import torch
  import transformers as t

  rng = np.random.default_rng(7)
  text = rng.integers(2, 53, (3, 9)).astype(np.int32) * MASK + 1 - MASK
  ids = dict(
    input_ids=torch.from_numpy(text).long(), attention_mask=torch.tensor(MASK)
  )
  for name, fields, lead, frames in (
    ("clap", AUDIO, (), 43),
    ("clap_fused", FUSED, (4,), 27),
  ):
    fused = bool(lead)
    audio = rng.normal(size=(3, *lead, frames, fields["num_mel_bins"]))
    audio = audio.astype(np.float32)
    inputs = {"audio": audio}
    given = {"input_features": torch.from_numpy(audio)}
    if fused:
      inputs["is_longer"] = np.array([True, False, True])
      given["is_longer"] = torch.tensor([[True], [False], [True]])
    else:
      given["input_features"] = given["input_features"][:, None]
    config = t.ClapConfig(
      text_config=TEXT,
      audio_config=fields,
      projection_dim=14,
      projection_hidden_act="gelu" if fused else "relu",
    )
    model = redraw(t.ClapModel(config), seed=21 + fused)
    with torch.no_grad():
      found = model(**given, **ids)
    save_hub(
      name,
      model,
      {**inputs, "text": text, "mask": MASK},
      {
        "0": found.audio_embeds,
        "1": found.text_embeds,
        "2/0": model.logit_scale_a.exp(),
        "2/1": model.logit_scale_t.exp(),
      },
    )
    if fused:
      continue
    config = t.ClapAudioConfig(**fields, projection_dim=14)
    model = redraw(t.ClapAudioModelWithProjection(config), seed=23)
    with torch.no_grad():
      found = model(**given).audio_embeds
    save_hub("clap_audio", model, inputs, {"0": found})
  config = t.ClapTextConfig(**TEXT, projection_dim=14)
  model = redraw(t.ClapTextModelWithProjection(config), seed=24)
  with torch.no_grad():
    found = model(**ids).text_embeds
  save_hub("clap_text", model, {"tokens": text, "mask": MASK}, {".": found})
