import numpy as np
import pytest

from mmjax.weights import rename
from mmjax.weights.tables import bert_layers

WORDS = "embeddings.word_embeddings.weight"


@pytest.mark.parametrize("prefix", ["", "bert.", "module.bert."])
def test_prefix_is_what_stands_before_the_embeddings(prefix):
  names = ["cls.predictions.bias", f"{prefix}{WORDS}", "x"]
  assert bert_layers.prefix(names, "no") == prefix
  assert bert_layers.prefix(names[:1], "no") == "no"


def test_old_names_of_norms():
  assert bert_layers.leaves(["a.LayerNorm.weight"]) == ("weight", "bias")
  assert bert_layers.leaves(["a.b", "a.LayerNorm.gamma"]) == ("gamma", "beta")
  rules = bert_layers.embeddings("e", "t", bert_layers.OLD)
  assert {r.ours: r.theirs for r in rules} == {
    "e/words/table": "t.word_embeddings.weight",
    "e/positions/table": "t.position_embeddings.weight",
    "e/types/table": "t.token_type_embeddings.weight",
    "e/norm/scale": "t.LayerNorm.gamma",
    "e/norm/bias": "t.LayerNorm.beta",
  }


def test_a_block_has_sixteen_tensors_and_they_come_back(rng):
  rules = bert_layers.layers("s", "l.{n}", heads=2)
  D, F, depth = 4, 6, 3
  tensors = {}
  for n in range(depth):
    for name, shape in {
      "attention.self.query": (D, D),
      "attention.self.key": (D, D),
      "attention.self.value": (D, D),
      "attention.output.dense": (D, D),
      "attention.output.LayerNorm": (D,),
      "intermediate.dense": (F, D),
      "output.dense": (D, F),
      "output.LayerNorm": (D,),
    }.items():
      tensors[f"l.{n}.{name}.weight"] = rng.normal(size=shape)
      tensors[f"l.{n}.{name}.bias"] = rng.normal(size=shape[:1])
  leaves = {
    r.name: np.stack([r.read(tensors[s]) for s in r.sources(depth)])
    for r in rules
  }
  assert leaves["params/s/blocks/attention/query/kernel"].shape == (3, 4, 2, 2)
  np.testing.assert_array_equal(
    leaves["params/s/blocks/norm1/scale"][1],
    tensors["l.1.attention.output.LayerNorm.weight"],
  )
  np.testing.assert_array_equal(
    leaves["params/s/blocks/norm2/bias"][2],
    tensors["l.2.output.LayerNorm.bias"],
  )
  back = rename.write(rules, leaves)
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(back[name], tensor)


def test_masked_words_and_their_transform():
  rules = bert_layers.masked_words("h", "cls.predictions")
  assert {r.ours: r.theirs for r in rules} == {
    "h/transform/dense/kernel": "cls.predictions.transform.dense.weight",
    "h/transform/dense/bias": "cls.predictions.transform.dense.bias",
    "h/transform/norm/scale": "cls.predictions.transform.LayerNorm.weight",
    "h/transform/norm/bias": "cls.predictions.transform.LayerNorm.bias",
    "h/bias": "cls.predictions.bias",
  }
