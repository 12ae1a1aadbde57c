"""LXMERT of the hub: pretraining, question answering, bare; the authors' names.

The heads over regions are computed from the hub's modules: its forward keeps
them to itself.
"""

import numpy as np
from make_golden import redraw, save, save_hub

SIZES = dict(
  vocab_size=47,
  hidden_size=12,
  num_attention_heads=3,
  intermediate_size=20,
  max_position_embeddings=13,
  l_layers=2,
  x_layers=3,
  r_layers=1,
  visual_feat_dim=10,
  num_qa_labels=7,
  num_object_labels=9,
  num_attr_labels=5,
)
MASK = np.array([[1] * 9, [1] * 5 + [0] * 4, [1, 0, 0, 1, 1, 0, 1, 1, 0]])
REGION_MASK = np.array([[1] * 6, [1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 1, 0]])


def make() -> None:
  """Records the cases."""
  import torch
  import transformers as t

  rng = np.random.default_rng(6)
  inputs = dict(
    tokens=rng.integers(0, 47, (3, 9)).astype(np.int32),
    features=rng.normal(size=(3, 6, 10)).astype(np.float32),
    boxes=rng.uniform(size=(3, 6, 4)).astype(np.float32),
    mask=MASK.astype(np.int32),
    region_mask=REGION_MASK.astype(np.int32),
    types=rng.integers(0, 2, (3, 9)).astype(np.int32),
  )
  names = dict(
    tokens="input_ids",
    features="visual_feats",
    boxes="visual_pos",
    mask="attention_mask",
    region_mask="visual_attention_mask",
    types="token_type_ids",
  )

  def run(model, given):
    found = {k: torch.from_numpy(v) for k, v in given.items()}
    found = {
      k: v.long() if v.dtype == torch.int32 else v for k, v in found.items()
    }
    with torch.no_grad():
      return model(**{names[k]: v for k, v in found.items()})

  model = redraw(t.LxmertForPreTraining(t.LxmertConfig(**SIZES)), seed=21)
  base, whole = run(model.lxmert, inputs), run(model, inputs)
  with torch.no_grad():
    regions = model.obj_predict_head(base.vision_output)
  outputs = {
    "0": base.pooled_output,
    "1/tokens": base.language_output,
    "1/regions": base.vision_output,
    "1/logits": whole.prediction_logits,
    "1/matched": whole.cross_relationship_score,
    "1/objects": regions["obj"],
    "1/attributes": regions["attr"],
    "1/features": regions["feat"],
    "1/answers": whole.question_answering_score,
  }
  save_hub("lxmert_pretraining", model, inputs, outputs)
  official = {
    name.replace("lxmert.", "bert.", 1): value
    for name, value in model.state_dict().items()
    if "position_ids" not in name
  }
  assert "cls.predictions.decoder.weight" in official
  config = dict(SIZES, model_type="lxmert")
  save("lxmert_official", config, official, inputs, outputs)

  config = t.LxmertConfig(**SIZES, hidden_act="relu")
  model = redraw(t.LxmertForQuestionAnswering(config), seed=22)
  few = {k: v for k, v in inputs.items() if "mask" not in k}
  base, whole = run(model.lxmert, few), run(model, few)
  save_hub(
    "lxmert_answers",
    model,
    few,
    {
      "0": base.pooled_output,
      "1/regions": base.vision_output,
      "1/answers": whole.question_answering_score,
    },
  )

  model = redraw(t.LxmertModel(t.LxmertConfig(**SIZES)), seed=23)
  given = {k: v for k, v in inputs.items() if k != "types"}
  base = run(model, given)
  outputs = {"0": base.pooled_output, "1/tokens": base.language_output}
  save_hub("lxmert_encoder", model, given, outputs)
