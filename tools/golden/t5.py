"""T5 of both versions, umT5, the encoder alone, classes; ragged sources; ids.

More positions than `max_distance`, so that the last bucket is read; H times
the heads is not D.
"""

import numpy as np
from make_golden import hub_settings, redraw, save_hub

SIZES = dict(
  vocab_size=41,
  d_model=20,
  d_kv=6,
  d_ff=28,
  num_layers=3,
  num_decoder_layers=2,
  num_heads=3,
  relative_attention_num_buckets=8,
  relative_attention_max_distance=9,
)
WAYS = {
  "greedy": dict(length=14),
  "beam": dict(length=14, beams=3),
  "beam_first": dict(
    length=16, beams=4, early_stopping=True, length_penalty=0.6, no_repeat=2
  ),
}


def source() -> tuple[np.ndarray, np.ndarray]:
  """Returns tokens and mask [B M] of ragged sources."""
  tokens = np.random.default_rng(4).integers(2, 41, (5, 17)).astype(np.int32)
  mask = (np.arange(17)[None] < np.array([[17], [3], [11], [8], [14]])) * 1
  return tokens * mask, mask.astype(np.int32)


def make() -> None:
  """Records the cases."""
  import torch
  from transformers import (
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
    UMT5Config,
    UMT5ForConditionalGeneration,
  )

  tokens, mask = source()
  target = np.random.default_rng(6).integers(2, 41, (5, 13)).astype(np.int32)
  target[:, 0] = 0
  given = dict(
    input_ids=torch.from_numpy(tokens).long(),
    attention_mask=torch.from_numpy(mask),
  )
  for name, seed, changes in (
    ("t5", 1, {}),
    (
      "t5_v1_1",
      3,
      dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    ),
  ):
    model = T5ForConditionalGeneration(T5Config(**SIZES, **changes))
    if name == "t5_v1_1":  # the reference would tie it
      untie(model)
    redraw(model, seed=seed)
    with torch.no_grad():
      # The logits of the first version are small: they are scaled down.
      model.shared.weight *= 8 if name == "t5" else 2
      logits = model(
        **given, decoder_input_ids=torch.from_numpy(target).long()
      ).logits
      generate = {
        way: decoded(model, given, dict(tokens=tokens, mask=mask), said)
        for way, said in WAYS.items()
      }
    save_hub(
      name,
      model,
      {"tokens": tokens, "decoder_tokens": target, "mask": mask},
      {".": logits},
      generate,
    )
  small = SIZES | dict(d_ff=14, num_layers=2)
  # A bias of distances in each layer.
  umt5 = UMT5ForConditionalGeneration(
    UMT5Config(**small | dict(feed_forward_proj="gated-silu"))
  )
  redraw(umt5, seed=4)
  with torch.no_grad():
    umt5.shared.weight *= 8
    logits = umt5(
      **given, decoder_input_ids=torch.from_numpy(target).long()
    ).logits
  inputs = dict(tokens=tokens, mask=mask, decoder_tokens=target)
  save_hub("umt5", umt5, inputs, {".": logits})

  # The decoder reads the text, moved by one; classes are read at its end.
  config = T5Config(**small, num_labels=4, decoder_start_token_id=0)
  classes = redraw(T5ForSequenceClassification(config), seed=5)
  ended = tokens.copy()
  ended[np.arange(len(mask)), mask.sum(1) - 1] = 1
  with torch.no_grad():
    logits = classes(
      **given | {"input_ids": torch.from_numpy(ended).long()}
    ).logits
  save_hub("t5_classes", classes, dict(tokens=ended, mask=mask), {".": logits})

  model = redraw(T5EncoderModel(T5Config(**SIZES)), seed=2)
  with torch.no_grad():
    features = model(**given).last_hidden_state
  save_hub(
    "t5_encoder", model, {"tokens": tokens, "mask": mask}, {".": features}
  )


def untie(model) -> None:
  """Gives a model a head of its own, also when it is written."""
  import torch

  model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 1)
  model.config.tie_word_embeddings = False


def decoded(model, given, inputs, said, start=0) -> dict:
  """Returns what a case holds of one way of decoding."""
  settings = dict(eos_ids=[1], pad_id=0) | said
  prompt = np.full((len(inputs["tokens"]), 1), start, np.int32)
  ids = model.generate(
    **given, decoder_start_token_id=start, **hub_settings(settings)
  )
  ids = ids.numpy().astype(np.int32)
  return dict(settings=settings, prompt=prompt, ids=ids, **inputs)
