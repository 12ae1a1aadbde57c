"""Which head a decoder of the hub has, by its tensors; numbers: test_golden."""

import pathlib

import numpy as np
import pytest

from mmjax.weights import files
from mmjax.weights.tables import decoder_heads

DECODER = dict(name="decoder_lm", width=4)
BARE = {"wte.weight": (9, 4)}
UNDER = {"transformer.wte.weight": (9, 4)}


def headed(shapes, tied=True):
  tensors = {
    name: files.Tensor(shape, np.dtype("float32"), lambda: 1 / 0)
    for name, shape in shapes.items()
  }
  config = dict(tie_word_embeddings=tied, pad_token_id=7)
  checkpoint = files.Checkpoint(pathlib.Path("x"), tensors, config)
  model, rules = decoder_heads.headed(checkpoint, config, DECODER, [])
  return model, {rule.ours: rule.theirs for rule in rules}


@pytest.mark.parametrize(
  "head, reads, classes, bias",
  [
    ({"score.weight": (3, 4)}, "text", 3, False),
    ({"score.weight": (3, 4), "score.bias": (3,)}, "tokens", 3, True),
    ({"classifier.weight": (5, 4), "classifier.bias": (5,)}, "tokens", 5, True),
    ({"qa_outputs.weight": (2, 4), "qa_outputs.bias": (2,)}, "spans", 2, True),
  ],
)
def test_what_classifies_is_known_by_its_name(head, reads, classes, bias):
  model, rules = headed(UNDER | head, tied=False)
  found = {k: model[k] for k in ("reads", "classes", "use_bias", "pad_id")}
  assert found == dict(reads=reads, classes=classes, use_bias=bias, pad_id=7)
  assert model["decoder"] == DECODER
  assert set(rules.values()) == set(head)


def test_words_are_by_the_table_or_by_a_head():
  assert headed(UNDER) == (DECODER | {"tied": True}, {})
  assert headed(BARE, tied=False) == (DECODER | {"tied": True}, {})
  # A head that should be there, and is not, is missed.
  assert headed(UNDER, tied=False) == (
    DECODER | {"tied": False},
    {"head": "lm_head.weight"},
  )


def test_a_file_may_hold_the_table_as_its_head():
  tensors = {"lm_head.weight": None}
  checkpoint = files.Checkpoint(pathlib.Path("x"), tensors, {})
  for tied, name in ((True, "lm_head.weight"), (False, "wte.weight")):
    config = {"tie_word_embeddings": tied}
    assert decoder_heads.table(checkpoint, config, "wte.weight") == name
    assert bool(decoder_heads.copies(config)) == tied
