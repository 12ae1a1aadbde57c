import math

import pytest

from mmjax import errors

BASE = {
  "model_type": "bart",
  "d_model": 768,
  "encoder_layers": 6,
  "decoder_layers": 6,
  "encoder_attention_heads": 12,
  "decoder_attention_heads": 12,
  "encoder_ffn_dim": 3072,
  "decoder_ffn_dim": 3072,
}


@pytest.mark.parametrize(
  "config, count",
  [(BASE, 139_420_416), ({"model_type": "bart"}, 406_291_456)],
)
def test_published_parameter_counts(declared, config, count):
  _, leaves = declared(config)
  assert sum(math.prod(x.shape) for x in leaves.values()) == count


@pytest.mark.parametrize(
  "change, message",
  [
    ({"activation_function": "xielu"}, "activation_function = 'xielu'"),
    ({"model_type": "mbart", "normalize_before": False}, "before = False"),
    ({"normalize_before": True}, "normalize_before = True"),
    ({"add_final_layer_norm": True}, "add_final_layer_norm = True"),
    ({"decoder_attention_heads": 7}, "decoder_attention_heads = 7"),
  ],
)
def test_what_we_cannot_follow_is_named(declared, change, message):
  with pytest.raises(errors.InputError, match=message):
    declared(BASE | change)


def test_values_of_the_config_reach_the_model(declared):
  recipe, _ = declared(
    BASE | {"scale_embedding": True, "activation_function": "gelu_new"}
  )
  assert recipe.model["scale_embedding"] and recipe.model["act"] == "gelu"


def test_untied_tables_are_two(declared):
  tables = {"params/embedding/table", "params/decoder_embedding/table"}
  for tied, found in ((True, 1), (False, 2)):
    _, leaves = declared(BASE | {"tie_word_embeddings": tied})
    assert len(tables & set(leaves)) == found
