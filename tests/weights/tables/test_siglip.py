import math

import numpy as np
import pytest

from mmjax import errors

# As published: the files of google/siglip-base-patch16-224 and others say
# only what is not the default.
B16 = {
  "model_type": "siglip",
  "initializer_factor": 1.0,
  "text_config": {"model_type": "siglip_text_model", "vocab_size": 32000},
  "vision_config": {"model_type": "siglip_vision_model"},
}
LARGE = dict(
  hidden_size=1024,
  intermediate_size=4096,
  num_hidden_layers=24,
  num_attention_heads=16,
)
SO400M = dict(
  hidden_size=1152,
  intermediate_size=4304,
  num_hidden_layers=27,
  num_attention_heads=16,
)
L16 = {
  "model_type": "siglip",
  "text_config": LARGE,
  "vision_config": LARGE | {"image_size": 256},
}
SO14 = {
  "model_type": "siglip",
  "text_config": SO400M,
  "vision_config": SO400M | {"image_size": 384, "patch_size": 14},
}


@pytest.mark.parametrize(
  "config, published",
  [
    (B16, 203_155_970),
    (L16, 652_150_786),
    (SO14, 877_960_498),
    (B16 | {"text_config": {"vocab_size": 256_000}}, 375_187_970),
    ({"model_type": "siglip"}, 203_155_970),
  ],
)
def test_published_parameter_counts(declared, config, published):
  _, leaves = declared(config)
  assert sum(math.prod(x.shape) for x in leaves.values()) == published


def test_only_the_text_has_a_projection_and_to_the_images_width(declared):
  config = {
    "model_type": "siglip",
    "text_config": SO400M | {"projection_size": 1536},
    "vision_config": SO400M | {"hidden_size": 1536},
  }
  _, leaves = declared(config)
  assert leaves["params/text_projection/kernel"].shape == (1152, 1536)
  assert leaves["params/text_projection/bias"].shape == (1536,)
  assert not any("image_projection" in name for name in leaves)
  config["text_config"] = SO400M  # a head that leads elsewhere
  with pytest.raises(errors.InputError, match="width 1536, embed_dim = 1152"):
    declared(config)


def test_the_last_token_is_read_and_nothing_is_masked(recorded):
  def change(inputs):
    inputs["text"][0, 5] = 2  # a place of padding, not the last

  _, out, want = recorded("siglip", inputs=change)
  moved = np.abs(out[1] - want["1"]).max(1)
  assert moved[0] > 1e-3 and moved[1:].max() < 1e-5


def test_the_order_in_the_packed_projection_matters(recorded):
  def change(tensors):
    name = "vision_model.head.attention.in_proj_weight"
    tensors[name] = np.roll(tensors[name], len(tensors[name]) // 3, 0)

  _, out, want = recorded("siglip", tensors=change)
  assert np.abs(out[0] - want["0"]).max() > 1e-3


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_the_activation_matters(recorded, act):
  def change(config):
    for part in ("text_config", "vision_config"):
      config[part]["hidden_act"] = act

  _, out, want = recorded("siglip", change)
  for i in range(2):
    assert np.abs(out[i] - want[str(i)]).max() > 2e-5


def test_pixels_that_fill_no_patch_are_not_read(recorded):
  def change(inputs):
    inputs["image"][:, 24:] = 7.0
    inputs["image"][:, :, 24:] = -7.0

  _, out, want = recorded("siglip", inputs=change)
  np.testing.assert_allclose(out[0], want["0"], atol=1e-5)


def test_scale_and_bias(recorded):
  def change(tensors):
    tensors["logit_scale"] = np.log(np.array([117.0], np.float32))
    tensors["logit_bias"] = np.array([-12.5], np.float32)

  _, out, _ = recorded("siglip", tensors=change)
  np.testing.assert_allclose(out[2], (117.0, -12.5), rtol=1e-5)


def test_what_we_cannot_follow_is_named(declared):
  vision = {"vision_config": {"vision_use_head": False}}
  with pytest.raises(errors.InputError, match="vision_use_head = False"):
    declared(B16 | vision)
  vision = {"vision_config": {"hidden_act": "gelu_tanh"}}
  with pytest.raises(errors.InputError) as e:
    declared(B16 | vision)
  assert "vision_config.hidden_act = 'gelu_tanh'" in str(e.value)
  assert "gelu_pytorch_tanh" in str(e.value)


@pytest.mark.parametrize(
  "name, prefix, output",
  [
    ("siglip_image", "vision_model.", "0"),
    ("siglip2_naflex_image", "vision_model.", "0"),
    ("siglip_text", "text_model.", "."),
  ],
)
def test_encoders_alone_have_older_names_too(recorded, name, prefix, output):
  def change(tensors):
    for key in list(tensors):
      tensors[prefix + key.removeprefix(prefix)] = tensors.pop(key)

  _, out, want = recorded(name, tensors=change)
  got = out if output == "." else out[int(output)]
  np.testing.assert_allclose(got, want[output], atol=1e-4)


def test_a_grid_that_is_no_square_is_named(declared):
  config = {"model_type": "siglip2", "vision_config": {"num_patches": 250}}
  with pytest.raises(errors.InputError, match="num_patches = 250"):
    declared(config)


def test_naflex_has_the_parameters_of_the_fixed_size_and_60_positions(declared):
  config = {"model_type": "siglip2", "text_config": {"vocab_size": 256_000}}
  _, leaves = declared(config)
  count = sum(math.prod(x.shape) for x in leaves.values())
  assert count == 375_187_970 + 60 * 768
