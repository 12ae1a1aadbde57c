"""BERT and RoBERTa of the hub, bare and with heads; a sentence encoder.

Masks are ragged, one has holes; types are mixed; RoBERTa's padding also stands
on the left and within.
"""

import numpy as np
from make_golden import redraw, save_hub

SIZES = dict(
  vocab_size=53,
  hidden_size=24,
  num_hidden_layers=3,
  num_attention_heads=3,
  intermediate_size=44,
  max_position_embeddings=15,
)
MASK = np.array(
  [[1] * 11, [1] * 4 + [0] * 7, [1, 0, 1, 1, 0, 0, 1, 1, 0, 1, 0]], np.int32
)


def make() -> None:
  """Records the cases."""
  import torch
  import transformers as t

  rng = np.random.default_rng(5)
  tokens = rng.integers(1, 53, (3, 11)).astype(np.int32)
  types = rng.integers(0, 2, (3, 11)).astype(np.int32)
  types[0, 0] = 1
  inputs = dict(tokens=tokens, mask=MASK, types=types)

  def run(model, **given):
    names = dict(
      tokens="input_ids", mask="attention_mask", types="token_type_ids"
    )
    with torch.no_grad():
      return model(
        **{names[k]: torch.from_numpy(v).long() for k, v in given.items()},
        output_hidden_states=True,
      )

  model = redraw(t.BertModel(t.BertConfig(**SIZES)), seed=11)
  found = run(model, **inputs)
  outputs = {"0": found.last_hidden_state, "1/pooled": found.pooler_output}
  save_hub("bert_encoder", model, inputs, outputs)

  config = t.BertConfig(**SIZES, hidden_act="gelu_new", layer_norm_eps=1e-5)
  model = redraw(t.BertForPreTraining(config), seed=12)
  found = run(model, **inputs)
  save_hub(
    "bert_pretraining",
    model,
    inputs,
    {
      "0": found.hidden_states[-1],
      "1/logits": found.prediction_logits,
      "1/next": found.seq_relationship_logits,
    },
  )

  # Without a mask nothing is masked, padding neither.
  model = redraw(
    t.BertForMaskedLM(t.BertConfig(**SIZES, hidden_act="relu")), seed=13
  )
  padded = tokens * (np.arange(11) < [[11], [4], [7]]).astype(np.int32)
  found = run(model, tokens=padded)
  outputs = {"0": found.hidden_states[-1], "1/logits": found.logits}
  save_hub("bert_masked_words", model, {"tokens": padded}, outputs)

  # RoBERTa: id 1 pads, 5 positions less than the table has rows at most.
  padded = np.maximum(tokens, 2)
  padded[1, :3] = padded[2, 4:6] = padded[2, 9:] = 1
  inputs = {"tokens": padded, "mask": (padded != 1).astype(np.int32)}
  for name, config, whole in (
    ("roberta", t.RobertaConfig, t.RobertaForMaskedLM),
    ("xlm_roberta", t.XLMRobertaConfig, t.XLMRobertaForMaskedLM),
  ):
    model = redraw(
      whole(
        config(
          **SIZES,
          type_vocab_size=1,
          layer_norm_eps=1e-5,
          hidden_act="relu" if name == "roberta" else "gelu",
        )
      ),
      seed=14,
    )
    found = run(model, **inputs)
    save_hub(
      f"{name}_masked_words",
      model,
      inputs,
      {"0": found.hidden_states[-1], "1/logits": found.logits},
    )
  model = redraw(
    t.RobertaModel(t.RobertaConfig(**SIZES, pad_token_id=4)), seed=15
  )
  padded = np.where(padded == 4, 5, padded)
  padded[0, 8:] = 4
  padded = padded[:, :10]
  inputs = {"tokens": padded, "types": types[:, :10]}
  found = run(model, **inputs)
  outputs = {"0": found.last_hidden_state, "1/pooled": found.pooler_output}
  save_hub("roberta_encoder", model, inputs, outputs)

  sizes = {**SIZES, "num_hidden_layers": 2}
  model = redraw(t.BertForQuestionAnswering(t.BertConfig(**sizes)), seed=16)
  inputs = dict(tokens=tokens, mask=MASK, types=types)
  found = run(model, **inputs)
  outputs = {"1/start": found.start_logits, "1/end": found.end_logits}
  save_hub("bert_spans", model, inputs, outputs)
  config = t.RobertaConfig(**sizes, num_labels=4)
  model = redraw(t.RobertaForSequenceClassification(config), seed=17)
  padded = np.maximum(tokens, 2)
  padded[1, 4:] = 1
  inputs = {"tokens": padded, "mask": (padded != 1).astype(np.int32)}
  found = run(model, **inputs)
  save_hub("roberta_classes", model, inputs, {"1/classes": found.logits})
