import json
import math

import jax
import numpy as np
import pytest
from flax import serialization, traverse_util
from safetensors.numpy import save_file

from mmjax import errors, weights

MINI = {"model_type": "dallebart", "encoder_ffn_dim": 2730} | {
  "decoder_ffn_dim": 2730,
  "use_glu": True,
  "ln_positions": "normformer",
  "decoder_start_token_id": 16384,
}


def test_published_parameter_count(declared):
  _, leaves = declared(MINI)
  count = sum(math.prod(x.shape) for x in leaves.values())
  assert count / 1e6 == pytest.approx(437.8, abs=0.1)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"ln_positions": "swinv2"}, "ln_positions = 'swinv2'"),
    ({"use_head_scale": True}, "use_head_scale = True"),
    ({"ln_type": "batchnorm"}, "ln_type = 'batchnorm'"),
    ({"use_deepnet_scaling": True}, "use_deepnet_scaling = True"),
    ({"activation_function": "smelu"}, "activation_function = 'smelu'"),
    ({"decoder_attention_heads": 7}, "decoder_attention_heads = 7"),
    ({"decoder_start_token_id": 16385}, "decoder_start_token_id = 16385"),
  ],
)
def test_what_we_cannot_follow_is_named(declared, change, message):
  with pytest.raises(errors.InputError, match=message):
    declared(MINI | change)


@pytest.mark.parametrize("places", ["normformer", "preln", "cogview"])
@pytest.mark.parametrize("bias", [False, True])
def test_variants_have_a_rule_for_each_parameter(declared, places, bias):
  # `declared` compares the names of all leaves with those of the rules.
  count = {}
  for kind in ("layernorm", "rmsnorm"):
    for scale in (False, True):
      config = MINI | {
        "ln_positions": places,
        "ln_type": kind,
        "force_ln_scale": scale,
        "use_bias": bias,
        "use_glu": scale,
        "use_final_ln_encoder": bias,
        "use_scan": not bias,
        "use_subln_init": True,  # how it began says nothing of how it goes on
        "decoder_start_token_id": 7,
      }
      recipe, leaves = declared(config)
      count[kind, scale] = len(leaves)
      assert any(rule.stacked for rule in recipe.rules) == bias
  assert count["rmsnorm", False] < count["layernorm", False]
  assert count["layernorm", False] < count["layernorm", True]


def test_layers_may_be_tensors_each(recorded, tmp_path):
  want, _, _ = recorded("dalle_mini")
  tensors = weights.files.open_checkpoint(tmp_path).tensors
  apart = {}
  for name, tensor in tensors.items():
    array = tensor.read()
    if "Layers/" in name:
      for i, layer in enumerate(array):
        apart[name.replace("Layers/", f"Layer_{i}/")] = layer.copy()
    else:
      apart[name] = array
  folder = tmp_path / "apart"
  folder.mkdir()
  save_file(apart, folder / "model.safetensors")
  config = dict(want.recipe.config) | {"use_scan": False}
  (folder / "config.json").write_text(json.dumps(config))
  got = weights.load(folder)
  jax.tree.map(np.testing.assert_array_equal, got.variables, want.variables)


def test_flax_msgpack_is_read_as_published(recorded, tmp_path):
  want, _, _ = recorded("dalle_mini")
  assert want.model.spec.act == "gelu_exact"
  flat = weights.files.open_checkpoint(tmp_path).tensors
  tensors = {name: x.read() for name, x in flat.items()}
  folder = tmp_path / "flax"
  folder.mkdir()
  nested = traverse_util.unflatten_dict(tensors, sep="/")
  path = folder / "flax_model.msgpack"
  path.write_bytes(serialization.msgpack_serialize(nested))
  (folder / "config.json").write_text(json.dumps(dict(want.recipe.config)))
  got = weights.load(folder)
  jax.tree.map(np.testing.assert_array_equal, got.variables, want.variables)
