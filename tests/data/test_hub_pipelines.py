"""Frames and clean-up of the families; ids are in test_hub_tokenizers.py."""

import tokenizers as hf
from tokenizers import models

from mmjax.data import hub_pieces, hub_pipelines

WORDS = ["<s>", "</s>", "[CLS]", "[SEP]", "a", "b", "c"]


def pipeline():
  found = hf.Tokenizer(
    models.WordLevel({w: i for i, w in enumerate(WORDS)}, "a")
  )
  found.pre_tokenizer = hf.pre_tokenizers.Whitespace()
  return found


def test_flags_frame_texts():
  tokens = dict(bos="<s>", eos="</s>")
  for bos in (True, False):
    for eos in (True, False):
      made = pipeline()
      config = dict(add_bos_token=bos, add_eos_token=eos)
      hub_pipelines.frame_by_flags(made, tokens, config)
      want = [0] * bos + [4, 5] + [1] * eos
      assert made.encode("a b").ids == want
      two = made.encode("a b", "c")
      assert two.ids == want + [0] * bos + [6] + [1] * eos
      assert two.type_ids == [0] * len(want) + [1] * (1 + bos + eos)


def test_without_flags_the_frame_of_the_file_stays():
  made = pipeline()
  made.post_processor = hf.processors.TemplateProcessing(
    single="[CLS] $A", special_tokens=[("[CLS]", 2)]
  )
  hub_pipelines.frame_by_flags(made, dict(bos="<s>"), {})
  assert made.encode("b").ids == [2, 5]
  hub_pipelines.frame_by_flags(made, dict(bos="<s>"), dict(add_bos_token=True))
  assert made.encode("b").ids == [0, 5]


def test_names_lead_to_families():
  known = {*hub_pipelines.FAMILIES, *hub_pieces.FAMILIES}
  assert {*hub_pipelines.ALIASES.values()} <= known
  assert {*hub_pipelines.OF_MODELS.values()} <= known
  assert not known & {*hub_pipelines.ALIASES}
