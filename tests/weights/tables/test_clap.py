"""CLAP's table: counts, the front end, what it refuses; numbers: test_golden."""

import math
import pathlib

import pytest

from mmjax import errors
from mmjax.weights import files
from mmjax.weights.tables import clap

# As in laion/clap-htsat-unfused, with what decides.
CONFIG = {
  "model_type": "clap",
  "projection_dim": 512,
  "projection_hidden_act": "relu",
  "audio_config": {"enable_fusion": False, "fusion_type": None},
  "text_config": {"hidden_size": 768, "pad_token_id": 1},
}
FRONT = dict(
  feature_extractor_type="ClapFeatureExtractor",
  feature_size=64,
  frequency_min=50,
  truncation="rand_trunc",
)


def audio(**fields):
  return CONFIG | {"audio_config": CONFIG["audio_config"] | fields}


def build(config, front):
  path = pathlib.Path("x")
  return clap.build(files.Checkpoint(path, {}, config, front))


@pytest.mark.parametrize(
  "config, count",
  [
    (CONFIG, 153_492_890),
    ({"model_type": "clap"}, 153_492_890),  # all may be left out
    (audio(enable_fusion=True), 153_507_530),
  ],
)
def test_published_parameter_counts(declared, config, count):
  recipe, leaves = declared(config)
  found = [
    math.prod(x.shape) for k, x in leaves.items() if k.startswith("params/")
  ]
  assert sum(found) == count
  assert recipe.texts == {"text": 77}


def test_the_front_end_comes_from_the_preprocessor():
  spec = build(CONFIG, FRONT).preprocess["audio"]
  assert "clap_mel(64, " in spec and spec.endswith("keep('audio')")
  fused = build(audio(enable_fusion=True), FRONT | {"truncation": "fusion"})
  assert fused.preprocess["audio"].endswith("keep('audio', 'is_longer')")
  assert "prepare audio" in fused.missing["is_longer"]
  assert build(CONFIG, {}).preprocess == {}
  for config, front, words in (
    (CONFIG, {"truncation": "fusion"}, "truncation = 'fusion'.*enable_fusion"),
    (audio(enable_fusion=True), {}, "truncation = 'rand_trunc'"),
    (CONFIG, {"feature_size": 32}, "feature_size = 32.*num_mel_bins = 64"),
  ):
    with pytest.raises(errors.InputError, match=words):
      build(config, FRONT | front)


@pytest.mark.parametrize(
  "config, words",
  [
    (
      audio(fusion_type="channel_map", enable_fusion=True),
      "audio_config.fusion_type = 'channel_map'",
    ),
    (audio(patch_embed_input_channels=2), "patch_embed_input_channels = 2"),
    (audio(flatten_patch_embeds=False), "flatten_patch_embeds = False"),
    (audio(patch_stride=[4, 2]), r"audio_config.patch_stride = \[4, 2\]"),
    (audio(hidden_act="xielu"), "audio_config.hidden_act = 'xielu'"),
    (audio(num_mel_bins=80), "bins = 80, side = 256: the side must be"),
    (CONFIG | {"projection_hidden_act": "xielu"}, "projection_hidden_act"),
    (
      CONFIG | {"text_config": {"pad_token_id": None}},
      "text_config.pad_token_id = None",
    ),
  ],
)
def test_values_that_we_cannot_follow_are_named(declared, config, words):
  with pytest.raises(errors.InputError, match=words):
    declared(config)


@pytest.mark.parametrize(
  "field, value, words",
  [
    ("window_size", 5, "relative_position_bias_table.* of another shape"),
    ("depths", [1, 2, 2], "layers.1.blocks.2.*not expected"),
  ],
)
def test_configs_of_other_weights_are_refused(recorded, field, value, words):
  def change(config):
    config["audio_config"][field] = value

  with pytest.raises(errors.InputError, match=words):
    recorded("clap", change)
