"""AST's table: the published count, its front end, what it refuses."""

import json
import math

import numpy as np
import pytest

from mmjax import errors, weights

# As in MIT/ast-finetuned-audioset-10-10-0.4593.
CONFIG = dict(
  model_type="audio-spectrogram-transformer",
  frequency_stride=10,
  hidden_act="gelu",
  hidden_size=768,
  intermediate_size=3072,
  layer_norm_eps=1e-12,
  max_length=1024,
  num_attention_heads=12,
  num_hidden_layers=12,
  num_mel_bins=128,
  patch_size=16,
  qkv_bias=True,
  time_stride=10,
)


def test_published_parameter_count(declared):
  recipe, leaves = declared(CONFIG)
  count = sum(math.prod(x.shape) for x in leaves.values())
  # The head: a norm and 527 classes.
  assert count + 2 * 768 + 768 * 527 + 527 == 86_594_063
  assert leaves["params/encoder/posemb/grid"].shape == (12, 101, 768)
  assert recipe.inputs == {"audio": ((1, 1024, 128), "float32")}


def test_the_front_end_comes_from_the_preprocessor(recorded, tmp_path):
  recorded("ast")
  said = dict(
    feature_extractor_type="ASTFeatureExtractor",
    max_length=33,
    num_mel_bins=19,
    mean=-4.5,
    std=4.25,
  )
  path = tmp_path / "preprocessor_config.json"
  path.write_text(json.dumps(said))
  spec = weights.load(tmp_path).recipe.preprocess["audio"]
  assert "ast_fbank(19, frames=33, mean=-4.5, std=4.25)" in spec
  path.write_text(json.dumps(said | {"sampling_rate": 8000}))
  with pytest.raises(errors.InputError, match="sampling_rate = 8000"):
    weights.load(tmp_path)


@pytest.mark.parametrize(
  "field, value, words",
  [
    ("time_stride", 4, "position_embeddings.* of another shape"),
    ("num_mel_bins", 5, "patch_size = 6: larger than num_mel_bins = 5"),
    ("hidden_act", "xielu", "hidden_act = 'xielu'"),
  ],
)
def test_values_that_contradict_are_named(recorded, field, value, words):
  with pytest.raises(errors.InputError, match=words):
    recorded("ast", config=lambda config: config.update({field: value}))


def test_its_authors_files_without_the_wrapper_and_with_old_heads(recorded):
  loaded, out, _ = recorded("ast_official")
  assert loaded.recipe.table == "ast" and loaded.model.head_epsilon == 1e-5
  assert "mean and deviation" in loaded.recipe.missing["audio"]

  def bare(tensors):
    for name in list(tensors):
      tensors[name.removeprefix("module.")] = tensors.pop(name)
    assert "v.head_dist.weight" in tensors  # DeiT's, which nothing reads

  loaded, again, _ = recorded("ast_official", tensors=bare)
  np.testing.assert_array_equal(out[0], again[0])
  names = {rule.theirs for rule in loaded.recipe.rules}
  assert "mlp_head.1.weight" in names and "v.head.weight" not in names


@pytest.mark.slow
def test_the_two_norms_of_its_authors_differ(recorded):
  """Narrow features tell 1e-5 before the head from 1e-6 elsewhere."""

  def small(tensors):
    for leaf in ("weight", "bias"):
      tensors[f"module.v.norm.{leaf}"] *= np.float32(1e-3)

  loaded, out, _ = recorded("ast_official", tensors=small)
  other = loaded.model.clone(head_epsilon=1e-6)
  x = out[1]["pre_logits"]
  y = other.apply(loaded.variables, np.zeros((1, 53, 45), np.float32))[0]
  assert np.asarray(x).std() < 3e-3
  z = loaded.model.apply(loaded.variables, np.zeros((1, 53, 45), np.float32))[0]
  assert np.abs(y - z).max() > 1e-2


@pytest.mark.parametrize(
  "said, words",
  [
    (dict(tstride=10), r"has 15 positions.*\"tstride\": 10.*gives 3 x 4"),
    (dict(label_dim=527), "label_dim = 527: the tensors have 5"),
    (dict(num_heads=None), "blocks of width 16"),
    (dict(patch=16), "model_args.*'patch'"),
  ],
)
def test_arguments_of_its_authors_that_contradict(recorded, said, words):
  with pytest.raises(errors.InputError, match=words):
    recorded("ast_official", config=lambda c: c["model_args"].update(said))
