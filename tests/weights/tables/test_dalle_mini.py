import json
import math

import jax
import numpy as np
import pytest
from flax import serialization, traverse_util

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
    ({"use_glu": False}, "use_glu = False"),
    ({"use_scan": False}, "use_scan = False"),
    ({"force_ln_scale": True}, "force_ln_scale = True"),
    ({"activation_function": "smelu"}, "activation_function = 'smelu'"),
    ({"decoder_attention_heads": 7}, "decoder_attention_heads = 7"),
    ({"decoder_start_token_id": 3}, "decoder_start_token_id = 3"),
  ],
)
def test_what_we_cannot_follow_is_named(declared, change, message):
  with pytest.raises(errors.InputError, match=message):
    declared(MINI | change)


def test_flax_msgpack_is_read_as_published(recorded, tmp_path):
  want, _, _ = recorded("dalle_mini")
  assert want.model.act == "gelu_exact"
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
