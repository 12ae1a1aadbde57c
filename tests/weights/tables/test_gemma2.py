import math

import pytest

from mmjax import errors

# What google/gemma-2-2b's config.json says, as far as it is read.
SMALL = dict(
  model_type="gemma2",
  attention_bias=False,
  attention_dropout=0.0,
  attn_logit_softcapping=50.0,
  final_logit_softcapping=30.0,
  head_dim=256,
  hidden_act="gelu_pytorch_tanh",
  hidden_activation="gelu_pytorch_tanh",
  hidden_size=2304,
  intermediate_size=9216,
  max_position_embeddings=8192,
  num_attention_heads=8,
  num_hidden_layers=26,
  num_key_value_heads=4,
  query_pre_attn_scalar=256,
  rms_norm_eps=1e-6,
  rope_theta=10000.0,
  sliding_window=4096,
  vocab_size=256000,
)


@pytest.mark.parametrize("config", [SMALL, dict(model_type="gemma2")])
def test_published_parameter_count(declared, config):
  recipe, leaves = declared(config)
  assert recipe.table == "gemma2"
  assert sum(math.prod(x.shape) for x in leaves.values()) == 2_614_341_888
  model = recipe.model
  assert (model["pattern"], model["window"]) == ("bg", 4096)
  assert (model["softcap"], model["logits_cap"]) == (50.0, 30.0)
  assert model["scale"] == 1 / 16


def test_layers_that_see_alike_are_one_stack(declared):
  for kinds, pattern, name in (
    (["full_attention"] * 26, "g", "blocks"),
    (["full_attention", "sliding_attention"] * 13, "gb", "blocks/block1"),
  ):
    recipe, leaves = declared(SMALL | dict(layer_types=kinds))
    assert recipe.model["pattern"] == pattern
    scale = leaves[f"params/decoder/{name}/norm2_after/scale"]
    assert scale.shape == (26 // len(pattern), 2304)
  window = next(r for r in recipe.rules if "block1/norm1/" in r.ours)
  assert window.sources(13)[0] == "layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(layer_types=["full"] * 26), "layer_types = 'full'"),
    (dict(layer_types=["full_attention"]), "1 layers, but num_hidden_layers"),
    (dict(query_pre_attn_scalar=0), "query_pre_attn_scalar = 0"),
    (dict(use_bidirectional_attention=True), "use_bidirectional_attention"),
    (dict(sliding_window=None), "window = None"),
  ],
)
def test_what_cannot_be_followed_is_named(declared, changes, message):
  with pytest.raises(errors.InputError, match=message):
    declared(SMALL | changes)


@pytest.mark.parametrize(
  "said, act",
  [
    (dict(hidden_activation="gelu"), "gelu_exact"),
    (dict(hidden_activation="gelu", hidden_act=None), "gelu_exact"),
    (dict(hidden_act="gelu"), "gelu"),
    (dict(hidden_activation="relu", hidden_act=None), "relu"),
  ],
)
def test_the_activation_is_what_its_name_says(declared, said, act):
  assert declared(SMALL | said)[0].model["act"] == act


def test_an_activation_that_nothing_reads_is_refused(declared):
  config = {k: v for k, v in SMALL.items() if k != "hidden_activation"}
  with pytest.raises(errors.InputError, match="hidden_act = 'relu'"):
    declared(config | dict(hidden_act="relu"))
