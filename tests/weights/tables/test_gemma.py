import math

import pytest

from mmjax import errors

# What google/gemma-2b's config.json says, as far as it is read.
SMALL = dict(
  model_type="gemma",
  attention_bias=False,
  attention_dropout=0.0,
  head_dim=256,
  hidden_act="gelu",
  hidden_size=2048,
  intermediate_size=16384,
  max_position_embeddings=8192,
  num_attention_heads=8,
  num_hidden_layers=18,
  num_key_value_heads=1,
  rms_norm_eps=1e-6,
  rope_scaling=None,
  rope_theta=10000.0,
  vocab_size=256000,
)


@pytest.mark.parametrize(
  "config, count",
  [(SMALL, 2_506_172_416), (dict(model_type="gemma"), 8_537_680_896)],
)
def test_published_parameter_counts(declared, config, count):
  recipe, leaves = declared(config)
  assert recipe.table == "gemma"
  assert sum(math.prod(x.shape) for x in leaves.values()) == count


def test_gelu_means_its_approximation(declared):
  for changes in (
    {},
    dict(hidden_activation="gelu_pytorch_tanh"),
    dict(hidden_act="gelu_pytorch_tanh", hidden_activation=None),
  ):
    assert declared(SMALL | changes)[0].model["act"] == "gelu"
  relu = dict(hidden_act=None, hidden_activation="relu")
  assert declared(SMALL | relu)[0].model["act"] == "relu"


def test_theta_of_either_generation(declared):
  assert declared(SMALL)[0].model["theta"] == 10_000.0
  assert declared(dict(model_type="gemma"))[0].model["theta"] == 10_000.0
  new = dict(rope_theta=None, rope_parameters=dict(rope_theta=5e5))
  assert declared(SMALL | new)[0].model["theta"] == 5e5


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(rope_scaling=dict(type="linear", factor=2.0)), "rope_scaling = "),
    (
      dict(rope_parameters=dict(rope_type="yarn", rope_theta=1e4)),
      "rope_parameters.rope_type = 'yarn'",
    ),
    (dict(rope_parameters=dict(rope_theta=5.0)), "rope_theta = 10000.0, but"),
    (dict(hidden_activation="relu"), "hidden_activation = 'relu', but"),
    (dict(hidden_act="gelou"), "hidden_act = 'gelou'"),
    (dict(use_bidirectional_attention=True), "use_bidirectional_attention"),
    (dict(num_key_value_heads=3), "num_key_value_heads = 3"),
  ],
)
def test_what_cannot_be_followed_is_named(declared, changes, message):
  with pytest.raises(errors.InputError, match=message):
    declared(SMALL | changes)


def test_biases_and_a_head_of_its_own_where_the_config_says(declared):
  config = SMALL | dict(attention_bias=True, tie_word_embeddings=False)
  recipe, leaves = declared(config)
  assert leaves["params/decoder/blocks/attention/out/bias"].shape == (18, 2048)
  assert leaves["params/head"].shape == (2048, 256000)
  assert not recipe.ignored("lm_head.weight")
