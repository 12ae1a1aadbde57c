"""DINOv2's table: published counts, registers, gates, traps."""

import math

import numpy as np
import pytest

from mmjax import errors

# As in facebook/dinov2-small, -base and -giant.
BASE = dict(
  model_type="dinov2",
  hidden_act="gelu",
  hidden_size=768,
  image_size=518,
  layer_norm_eps=1e-6,
  layerscale_value=1.0,
  mlp_ratio=4,
  num_attention_heads=12,
  num_channels=3,
  num_hidden_layers=12,
  patch_size=14,
  qkv_bias=True,
  use_swiglu_ffn=False,
)
SMALL = BASE | dict(hidden_size=384, num_attention_heads=6)
GIANT = BASE | dict(
  hidden_size=1536,
  num_attention_heads=24,
  num_hidden_layers=40,
  use_swiglu_ffn=True,
)
REGISTERS = SMALL | dict(
  model_type="dinov2_with_registers", num_register_tokens=4
)


@pytest.mark.parametrize(
  "config, published",
  [
    (SMALL, 22_056_576),
    (BASE, 86_580_480),
    (GIANT, 1_136_480_768),
    (REGISTERS, 22_058_112),
  ],
)
def test_published_parameter_counts(declared, config, published):
  recipe, leaves = declared(config)
  # The mask token is read in pretraining only.
  count = sum(math.prod(x.shape) for x in leaves.values())
  assert count + config["hidden_size"] == published
  assert recipe.ignored("embeddings.mask_token")


def test_gates_are_two_thirds_and_come_first(recorded):
  given = {}
  loaded, _, _ = recorded("dinov2_gated", tensors=given.update)
  assert (loaded.model.mlp, loaded.model.act) == (24, "silu")

  def swapped(tensors):
    name = "dinov2.encoder.layer.1.mlp.weights_in.weight"
    tensors[name] = np.roll(tensors[name], 24, axis=0)

  other, _, _ = recorded("dinov2_gated", tensors=swapped)
  mlp, turned = (
    x.variables["params"]["encoder"]["blocks"]["mlp"] for x in (loaded, other)
  )
  np.testing.assert_array_equal(
    mlp["gate"]["kernel"][1], turned["up"]["kernel"][1]
  )
  np.testing.assert_array_equal(
    mlp["gate"]["kernel"][0], turned["gate"]["kernel"][0]
  )


def test_registers_widen_the_kernel_when_positions_shrink(recorded):
  _, out, want = recorded("dinov2_registers")
  assert out[1]["tokens"].shape == (2, 1 + 3 + 2 * 6, 16)

  # Told to be without the wider kernel, the same weights miss the reference.
  def plain(config):
    config["model_type"] = "dinov2"

  def without(tensors):
    for name in list(tensors):
      value = tensors.pop(name)
      if not name.endswith("register_tokens"):
        tensors[name.replace("dinov2_with_registers.", "dinov2.")] = value

  _, other, _ = recorded("dinov2_registers", config=plain, tensors=without)
  assert np.abs(other[0] - want["0"]).max() > 1e-3


def test_unknown_registers_and_rectangular_patches_are_refused(recorded):
  def more(config):
    config["num_register_tokens"] = 5

  with pytest.raises(errors.InputError, match="register_tokens"):
    recorded("dinov2_registers", config=more)

  def oblong(config):
    config["patch_size"] = [7, 7]

  with pytest.raises(errors.InputError, match=r"patch_size = \[7, 7\]"):
    recorded("dinov2_registers", config=oblong)
