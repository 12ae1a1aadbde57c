"""Whisper of the hub: with its head, bare, classes of sounds, and ids.

The encoder's positions are redrawn too: what is stored counts, not a formula.
Ids are those of the general `generate`, which takes the decoder's prompt as it
is; Whisper's own cuts sound into pieces around the same search.
"""

import numpy as np
from make_golden import hub_settings, redraw, save_hub

SIZES = dict(
  vocab_size=53,
  num_mel_bins=7,
  d_model=20,
  encoder_layers=3,
  encoder_attention_heads=2,
  encoder_ffn_dim=18,
  decoder_layers=2,
  decoder_attention_heads=5,
  decoder_ffn_dim=22,
  max_source_positions=9,
  max_target_positions=14,
  decoder_start_token_id=50,
  bos_token_id=49,
  eos_token_id=45,
  pad_token_id=49,
  suppress_tokens=[3, 9, 26],
  begin_suppress_tokens=[5, 45],
)
# Ways of decoding, beside what all say.
WAYS: dict[str, dict] = dict(
  greedy={},
  free=dict(suppress=[], begin_suppress=[]),
  short=dict(length=6),
  varied=dict(no_repeat=1),
  beam=dict(beams=3),
  beam_varied=dict(
    beams=4, no_repeat=1, length_penalty=2.0, early_stopping=True
  ),
)


def make() -> None:
  """Records the cases."""
  import torch
  from transformers import (
    WhisperConfig,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
    WhisperModel,
  )

  rng = np.random.default_rng(1)
  audio = rng.normal(size=(3, 18, 7)).astype(np.float32)
  features = torch.from_numpy(audio.transpose(0, 2, 1).copy())
  tokens = rng.integers(0, 53, (3, 11)).astype(np.int32)
  ids = torch.from_numpy(tokens).long()
  mask = (np.arange(11) < np.array([[11], [4], [7]])).astype(np.int32)
  inputs = {"audio": audio, "decoder_tokens": tokens, "decoder_mask": mask}

  model = redraw(WhisperForConditionalGeneration(WhisperConfig(**SIZES)))
  for name, value in model.named_parameters():
    # Else all texts are alike, whatever is heard, and never end.
    if name.startswith("model.decoder"):
      if "v_proj.weight" in name or "embed" in name:
        value.data *= 4.0
      elif value.ndim == 1 and name.endswith("bias"):
        value.data *= 0.3
  with torch.no_grad():
    found = model(
      features,
      decoder_input_ids=ids,
      decoder_attention_mask=torch.from_numpy(mask),
    )
  save_hub(
    "whisper",
    model,
    inputs,
    {"0": found.logits, "1/encoded": found.encoder_last_hidden_state},
    dict(_ids(model, rng)),
  )

  bare = WhisperConfig(**SIZES | dict(activation_function="gelu_new"))
  bare = redraw(WhisperModel(bare), seed=2)
  with torch.no_grad():
    found = bare(features, decoder_input_ids=ids)
  save_hub(
    "whisper_bare",
    bare,
    {"audio": audio, "decoder_tokens": tokens},
    {
      "1/pre_logits": found.last_hidden_state,
      "1/encoded": found.encoder_last_hidden_state,
    },
  )

  # A learned mean of all layers.
  config = WhisperConfig(
    **SIZES, use_weighted_layer_sum=True, classifier_proj_size=11, num_labels=4
  )
  model = redraw(WhisperForAudioClassification(config), seed=3)
  with torch.no_grad():
    logits = model(features).logits
  save_hub("whisper_classes", model, {"audio": audio}, {"0": logits})


def _ids(model, rng):
  """Yields ids: of several beginnings and sounds, so that lengths differ."""
  import torch
  from transformers import GenerationMixin

  audio = rng.normal(size=(6, 18, 7)).astype(np.float32)
  prompt = np.stack([np.full(6, 50), np.arange(6) + 42], 1).astype(np.int32)
  for name, changes in WAYS.items():
    settings = dict(
      length=14,
      eos_ids=[45],
      pad_id=49,
      suppress=SIZES["suppress_tokens"],
      begin_suppress=SIZES["begin_suppress_tokens"],
    )
    settings |= changes
    with torch.no_grad():
      ids = GenerationMixin.generate(
        model,
        input_features=torch.from_numpy(audio.transpose(0, 2, 1).copy()),
        decoder_input_ids=torch.from_numpy(prompt).long(),
        **{k: v or None for k, v in hub_settings(settings).items()},
      )
    print(name, ids.tolist())
    yield (
      name,
      dict(
        settings=settings,
        prompt=prompt,
        ids=ids.numpy().astype(np.int32),
        audio=audio,
      ),
    )
