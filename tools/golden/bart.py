"""BART and mBART of two unlike halves; a half; classes; ragged; ids."""

import numpy as np
from golden.t5 import decoded, source
from make_golden import redraw, save_hub

# (Greedy ids of this model are alike in all rows, and would prove little.)
WAYS = {
  "beam": dict(length=13, beams=3, min_length=6),
}


def make() -> None:
  """Records the cases."""
  import torch
  import transformers as t

  sizes = dict(
    vocab_size=41,
    max_position_embeddings=19,
    d_model=20,
    encoder_layers=3,
    encoder_ffn_dim=28,
    encoder_attention_heads=5,
    decoder_layers=2,
    decoder_ffn_dim=36,
    decoder_attention_heads=2,
    scale_embedding=True,
    pad_token_id=1,
    bos_token_id=0,
    eos_token_id=2,
    decoder_start_token_id=2,
    forced_eos_token_id=2,
  )
  model = redraw(t.BartForConditionalGeneration(t.BartConfig(**sizes)), seed=3)
  tokens, mask = source()
  tokens = np.where(mask, tokens, 1).astype(np.int32)
  target = np.random.default_rng(6).integers(3, 41, (5, 11)).astype(np.int32)
  target[:, 0] = 2
  given = dict(
    input_ids=torch.from_numpy(tokens).long(),
    attention_mask=torch.from_numpy(mask),
  )
  inputs = dict(tokens=tokens, mask=mask)
  with torch.no_grad():
    logits = model(
      **given, decoder_input_ids=torch.from_numpy(target).long()
    ).logits
    generate = {
      name: decoded(
        model,
        given,
        inputs,
        dict(eos_ids=[2], pad_id=1, forced_bos=0, forced_eos=2) | said,
        start=2,
      )
      for name, said in WAYS.items()
    }
  save_hub(
    "bart", model, inputs | {"decoder_tokens": target}, {".": logits}, generate
  )

  model = t.MBartForConditionalGeneration(t.MBartConfig(**sizes))
  model = redraw(model, seed=7)
  with torch.no_grad():
    logits = model(
      **given, decoder_input_ids=torch.from_numpy(target).long()
    ).logits
  save_hub("mbart", model, inputs | {"decoder_tokens": target}, {".": logits})

  # The decoder alone, with a head of its own.
  config = t.BartConfig(**sizes | dict(tie_word_embeddings=False))
  model = redraw(t.BartForCausalLM(config), seed=9)
  with torch.no_grad():
    logits = model(**given).logits
  logits = np.where(mask[..., None] == 1, logits.numpy(), np.nan)
  save_hub("bart_decoder", model, inputs, {".": logits})

  # The decoder reads the text, moved by one; classes are read at its end.
  model = t.BartForSequenceClassification(t.BartConfig(**sizes, num_labels=4))
  model = redraw(model, seed=8)
  for row, there in zip(tokens, mask, strict=True):
    row[row == 2] = 3
    row[there.nonzero()[0][-1]] = 2
  given["input_ids"] = torch.from_numpy(tokens).long()
  with torch.no_grad():
    logits = model(**given).logits
  save_hub("bart_classes", model, dict(tokens=tokens, mask=mask), {".": logits})
