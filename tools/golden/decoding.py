"""Ids of the hub's `generate`, and its filters of logits.

The model is a table: the logits of the next token follow from the two before
it, sharp enough that rows end at different lengths.
"""

import json

import numpy as np
from make_golden import FOLDER, hub_settings

VOCAB, EOS, PAD = 11, 1, 0

CASES: dict[str, dict] = dict(
  greedy={},
  no_end=dict(eos_ids=[]),
  two_ends=dict(eos_ids=[1, 5]),
  minimum=dict(min_length=7),
  minimum_new=dict(min_new=5),
  forced=dict(forced_bos=4, forced_eos=1),
  suppressed=dict(suppress=[3, 9], begin_suppress=[1, 6]),
  no_repeat=dict(no_repeat=2),
  no_single=dict(no_repeat=1, length=9),
  beam=dict(beams=3),
  beam_first=dict(beams=3, early_stopping=True),
  beam_never=dict(
    beams=2, length_penalty=2.0, early_stopping="never", length=24
  ),
  beam_long=dict(beams=2, length_penalty=2.0, length=24),
  beam_short=dict(beams=4, length_penalty=-1.0),
  beam_long_first=dict(beams=2, length_penalty=2.0, early_stopping=True),
  beam_never_short=dict(beams=4, length_penalty=-0.5, early_stopping="never"),
  beam_two_ends=dict(beams=3, eos_ids=[1, 5]),
  beam_no_end=dict(beams=2, eos_ids=[]),
  beam_forced=dict(beams=3, forced_bos=4, forced_eos=1),
  beam_minimum=dict(beams=3, min_length=8, no_repeat=2),
  beam_suppressed=dict(beams=3, suppress=[3], begin_suppress=[1, 6]),
)

FILTERS: dict[str, dict] = dict(
  hot=dict(temperature=0.7),
  top_k=dict(top_k=4),
  top_k_all=dict(top_k=50),
  top_p=dict(top_p=0.6),
  top_p_one=dict(top_p=0.05),
  all=dict(temperature=1.4, top_k=7, top_p=0.8),
)


def make() -> None:
  """Records tests/golden/decoding/table.npz."""
  found = {}
  for kind in (_ids, _filters):
    found |= kind()
  path = FOLDER / "decoding" / "table.npz"
  path.parent.mkdir(exist_ok=True)
  np.savez_compressed(path, allow_pickle=False, **found)
  print(f"decoding/table: {path.stat().st_size / 1024:.0f} KiB")


def _ids() -> dict:
  import torch
  from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
  from transformers.modeling_outputs import CausalLMOutput

  rng = np.random.default_rng(7)
  table = rng.normal(size=(VOCAB, VOCAB, VOCAB)).astype(np.float32) * 1.5
  found = {"table": table}

  class Table(PreTrainedModel, GenerationMixin):
    """Logits [B T V] from the two tokens before."""

    config_class = PreTrainedConfig

    def __init__(self, config):
      super().__init__(config)
      self.table = torch.nn.Parameter(torch.from_numpy(table))
      self.post_init()

    def _init_weights(self, module):
      pass

    def forward(self, input_ids, **_):
      before = torch.nn.functional.pad(input_ids, (1, 0))[:, :-1]
      return CausalLMOutput(logits=self.table[before, input_ids])

  model = Table(PreTrainedConfig(vocab_size=VOCAB)).eval()
  model.table.data.copy_(torch.from_numpy(table))
  for name, changes in CASES.items():
    length = 1 if "forced" in name else 2
    prompt = rng.integers(2, VOCAB, (24, length))
    settings = dict(length=12, eos_ids=[EOS], pad_id=PAD) | changes
    with torch.no_grad():
      ids = model.generate(
        torch.from_numpy(prompt), use_cache=False, **hub_settings(settings)
      )
    found |= {
      f"ids/{name}/settings": np.array(json.dumps(settings)),
      f"ids/{name}/prompt": prompt.astype(np.int32),
      f"ids/{name}/ids": ids.numpy().astype(np.int32),
    }
  return found


def _filters() -> dict:
  import torch
  from transformers import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
  )

  logits = np.random.default_rng(3).normal(size=(5, 17)).astype(np.float32) * 2
  found = {"logits": logits}
  for name, settings in FILTERS.items():
    x = torch.from_numpy(logits)
    for key, warper in (
      ("temperature", TemperatureLogitsWarper),
      ("top_k", TopKLogitsWarper),
      ("top_p", TopPLogitsWarper),
    ):
      if key in settings:
        x = warper(settings[key])(None, x)
    found |= {
      f"filter/{name}/settings": np.array(json.dumps(settings)),
      f"filter/{name}/logits": x.numpy(),
    }
  return found
