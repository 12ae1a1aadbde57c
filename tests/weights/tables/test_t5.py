import json
import math

import numpy as np
import pytest
from safetensors.numpy import save_file

from mmjax import errors, weights

# As published: google-t5/t5-small; google/flan-t5-small but for its head.
SMALL = {
  "model_type": "t5",
  "d_ff": 2048,
  "d_kv": 64,
  "d_model": 512,
  "num_heads": 8,
  "num_layers": 6,
}
V1_1 = SMALL | {
  "d_ff": 1024,
  "num_heads": 6,
  "num_layers": 8,
  "num_decoder_layers": 8,
  "feed_forward_proj": "gated-gelu",
  "tie_word_embeddings": False,
}


def test_published_parameter_counts(declared):
  for config, count in (
    (SMALL, 60_506_624),
    # A config alone does not say that there is a head.
    (V1_1, 76_961_152 - 512 * 32128),
  ):
    _, leaves = declared(config)
    assert sum(math.prod(x.shape) for x in leaves.values()) == count


@pytest.mark.parametrize(
  "config, scaled",
  [
    (SMALL, True),
    (V1_1, False),
    (SMALL | {"tie_word_embeddings": False}, False),
    (V1_1 | {"scale_decoder_outputs": True}, True),
    (SMALL | {"scale_decoder_outputs": False}, False),
  ],
)
def test_scale_before_the_head(declared, config, scaled):
  recipe, _ = declared(config)
  assert recipe.model["scale_head"] == scaled


@pytest.mark.parametrize(
  "forward, act, gated",
  [
    ("relu", "relu", False),
    ("gelu", "gelu_exact", False),
    ("gated-gelu", "gelu", True),  # tanh, whatever it is called
    ("gated-silu", "silu", True),
  ],
)
def test_activations(declared, forward, act, gated):
  recipe, _ = declared(SMALL | {"feed_forward_proj": forward})
  assert (recipe.model["act"], recipe.model["gated"]) == (act, gated)


def test_the_activation_that_is_named_goes_first(declared):
  given = {"feed_forward_proj": "gated-gelu", "dense_act_fn": "silu"}
  recipe, _ = declared(SMALL | given)
  assert (recipe.model["act"], recipe.model["gated"]) == ("silu", True)


def test_what_we_cannot_follow_is_named(declared):
  with pytest.raises(errors.InputError, match="feed_forward_proj = 'gated'"):
    declared(SMALL | {"feed_forward_proj": "gated"})


@pytest.mark.parametrize(
  "change, message",
  [
    ({"num_heads": 2}, "num_heads = 2, but .* is of 3 heads; give 3"),
    ({"feed_forward_proj": "gated-gelu"}, "lack a gate"),
    ({"is_gated_act": True}, "is_gated_act = True, but .* give False"),
    ({"is_decoder": True}, "is_decoder = True"),  # an encoder's tensors
  ],
)
def test_a_config_that_contradicts_the_tensors(tmp_path, change, message):
  heads = np.zeros((8, 3), np.float32)
  name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
  save_file({name: heads}, tmp_path / "model.safetensors")
  config = SMALL | {"num_heads": 3} | change
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(errors.InputError, match=message):
    weights.load(tmp_path)


def test_each_layer_of_umt5_has_its_bias(declared):
  sizes = {"num_layers": 3, "num_decoder_layers": 2, "num_heads": 5}
  for kind, lead in (("t5", ((), ())), ("umt5", ((3,), (2,)))):
    _, leaves = declared({"model_type": kind} | sizes)
    for part, layers in zip(("encoder", "decoder"), lead, strict=True):
      assert leaves[f"params/{part}_bias/table"].shape == (*layers, 32, 5)
