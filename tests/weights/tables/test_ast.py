"""AST's table: the published count, its front end, what it refuses."""

import json
import math

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
    ("hidden_act", "swish", "hidden_act = 'swish'"),
  ],
)
def test_values_that_contradict_are_named(recorded, field, value, words):
  with pytest.raises(errors.InputError, match=words):
    recorded("ast", config=lambda config: config.update({field: value}))
