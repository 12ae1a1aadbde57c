"""ViLT of the hub: images of other sizes than its positions, padded.

The hub puts patches into a random order, so that only texts, class token and
heads can be compared; the positions move with their patches.
"""

import numpy as np
from make_golden import images, redraw, save_hub

SIZES = dict(
  vocab_size=43,
  hidden_size=12,
  num_hidden_layers=3,
  num_attention_heads=3,
  intermediate_size=22,
  max_position_embeddings=11,
  image_size=20,
  patch_size=4,
  max_image_length=-1,
)
MASK = np.array([[1] * 7, [1] * 3 + [0] * 4, [1, 0, 1, 1, 0, 1, 0]], np.int32)


def make() -> None:
  """Records the cases."""
  import torch
  import transformers as t

  rng = np.random.default_rng(8)
  image = images((3, 30, 16, 3), seed=8)
  pixel_mask = np.zeros((3, 30, 16), np.int32)
  for row, (y, x) in enumerate(((30, 16), (16, 12), (4, 16))):
    pixel_mask[row, :y, :x] = 1
  inputs = dict(
    tokens=rng.integers(0, 43, (3, 7)).astype(np.int32),
    image=image,
    mask=MASK,
    pixel_mask=pixel_mask,
    types=rng.integers(0, 2, (3, 7)).astype(np.int32),
  )

  def run(model, given):
    names = dict(
      tokens="input_ids",
      image="pixel_values",
      mask="attention_mask",
      pixel_mask="pixel_mask",
      types="token_type_ids",
    )
    found = {}
    for name, value in given.items():
      if name == "image":
        found[names[name]] = torch.from_numpy(
          value.transpose(0, 3, 1, 2).copy()
        )
      else:
        found[names[name]] = torch.from_numpy(value).long()
    with torch.no_grad():
      return model(**found)

  def base(model, given):
    found = run(model, given)
    count = given["tokens"].shape[1]
    return {
      "0": found.pooler_output,
      "1/tokens": found.last_hidden_state[:, :count],
    }

  model = redraw(t.ViltForMaskedLM(t.ViltConfig(**SIZES)), seed=31)
  outputs = base(model.vilt, inputs)
  outputs["1/logits"] = run(model, inputs).logits
  save_hub("vilt_masked_words", model, inputs, outputs)

  config = t.ViltConfig(
    **SIZES,
    num_labels=6,
    modality_type_vocab_size=3,
    hidden_act="relu",
    layer_norm_eps=1e-5,
  )
  model = redraw(t.ViltForQuestionAnswering(config), seed=32)
  outputs = base(model.vilt, inputs)
  outputs["1/answers"] = run(model, inputs).logits
  save_hub("vilt_answers", model, inputs, outputs)

  model = redraw(t.ViltForImageAndTextRetrieval(t.ViltConfig(**SIZES)), seed=33)
  few = dict(tokens=inputs["tokens"], image=images((3, 20, 20, 3), seed=9))
  outputs = base(model.vilt, few)
  outputs["1/matched"] = run(model, few).logits
  save_hub("vilt_matched", model, few, outputs)

  config = t.ViltConfig(
    **SIZES | dict(num_hidden_layers=2, modality_type_vocab_size=3),
    num_labels=2,
    num_images=2,
  )
  model = t.ViltForImagesAndTextClassification(config)
  model = redraw(model, seed=34)
  pair = images((3, 2, 20, 20, 3), seed=10)
  tokens = inputs["tokens"]
  with torch.no_grad():
    found = model(
      input_ids=torch.from_numpy(tokens).long(),
      attention_mask=torch.from_numpy(MASK),
      pixel_values=torch.from_numpy(pair.transpose(0, 1, 4, 2, 3).copy()),
    )
  config = t.ViltConfig(
    **SIZES | dict(num_hidden_layers=1),
    num_labels=5,
    qkv_bias=False,
    hidden_act="relu6",
  )
  words = redraw(t.ViltForTokenClassification(config), seed=53)
  base_words = run(words.vilt, inputs).last_hidden_state
  save_hub(
    "vilt_words",
    words,
    inputs,
    {
      "0": base_words[:, 0],
      "1/tokens": base_words[:, : inputs["tokens"].shape[1]],
      "1/classes": run(words, inputs).logits,
    },
  )
  save_hub(
    "vilt_pairs",
    model,
    dict(tokens=tokens, image=pair, mask=MASK),
    {"1/answers": found.logits},
  )
