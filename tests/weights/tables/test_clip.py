import math

import numpy as np
import pytest

from mmjax import errors

# As published, with what decides; see openai/clip-vit-base-patch32 and others.
B32 = {
  "model_type": "clip",
  "projection_dim": 512,
  "logit_scale_init_value": 2.6592,
  "text_config_dict": None,
  "text_config": {
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 77,
    "num_attention_heads": 8,
    "num_hidden_layers": 12,
    "vocab_size": 49408,
  },
  "vision_config": {
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "image_size": 224,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "patch_size": 32,
  },
}
L14 = {
  "model_type": "clip",
  "projection_dim": 768,
  "text_config_dict": {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
  },
  "text_config": {"eos_token_id": 2, "hidden_size": 768},
  "vision_config_dict": {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
  },
  "vision_config": {"image_size": 224},
}
CASES = ("clip_quick_gelu", "clip_gelu_legacy")


@pytest.mark.parametrize(
  "config, published",
  [
    (B32, 151_277_313),
    (B32 | {"vision_config": {"patch_size": 16}}, 149_620_737),
    (L14, 427_616_513),
    (
      L14
      | {"vision_config_dict": L14["vision_config_dict"] | {"image_size": 336}},
      427_944_193,
    ),
    # A file may leave all of the base size out.
    ({"model_type": "clip"}, 151_277_313),
  ],
)
def test_published_parameter_counts(declared, config, published):
  _, leaves = declared(config)
  assert sum(math.prod(x.shape) for x in leaves.values()) == published


def test_the_text_is_read_at_its_end(declared):
  for eos, eot_id in ((2, None), (49407, 49407), (7, 7)):
    text = B32["text_config"] | {"eos_token_id": eos}
    recipe, _ = declared(B32 | {"text_config": text})
    assert recipe.model["text"]["eot_id"] == eot_id
  # What the part of an early file leaves out is the default, as there.
  assert declared(L14)[0].model["text"]["eot_id"] == 49407
  text = B32["text_config"] | {"eos_token_id": [2, 3]}
  with pytest.raises(errors.InputError, match=r"eos_token_id = \[2, 3\]"):
    declared(B32 | {"text_config": text})


def parts(config):
  return config["text_config"], config["vision_config"]


@pytest.mark.parametrize("name", CASES)
def test_the_activation_matters(recorded, name):
  def change(config):
    for part in parts(config):
      other = {"quick_gelu": "gelu", "gelu": "quick_gelu"}
      part["hidden_act"] = other[part["hidden_act"]]

  _, out, want = recorded(name, change)
  for i in range(2):
    assert np.abs(out[i] - want[str(i)]).max() > 1e-3


@pytest.mark.parametrize("name, eos", [(CASES[0], 2), (CASES[1], 40)])
def test_the_end_of_text_matters(recorded, name, eos):
  _, out, want = recorded(
    name, lambda config: config["text_config"].update(eos_token_id=eos)
  )
  assert np.abs(out[1] - want["1"]).max() > 1e-1
  np.testing.assert_allclose(out[0], want["0"], atol=1e-5)


def test_what_comes_after_the_end_is_not_read(recorded):
  def change(inputs):
    inputs["text"][0, 6:] = 3

  _, out, want = recorded("clip_quick_gelu", inputs=change)
  np.testing.assert_allclose(out[1], want["1"], atol=1e-5)


def test_the_temperature_has_no_limit(recorded):
  def change(tensors):
    tensors["logit_scale"] = np.array(math.log(150.0), np.float32)

  _, out, _ = recorded("clip_quick_gelu", tensors=change)
  np.testing.assert_allclose(out[2], (150.0, 0.0), rtol=1e-5)


def test_buffers_of_early_files_are_ignored(recorded):
  def change(tensors):
    for part in ("text", "vision"):
      name = f"{part}_model.embeddings.position_ids"
      tensors[name] = np.arange(9)[None]

  _, out, want = recorded("clip_quick_gelu", tensors=change)
  np.testing.assert_allclose(out[1], want["1"], atol=1e-5)


def test_epsilon_is_the_configs(recorded):
  def change(config):
    for part in parts(config):
      part["layer_norm_eps"] = 1e-2

  loaded, out, want = recorded("clip_quick_gelu", change)
  assert loaded.model.image.epsilon == loaded.model.text.epsilon == 1e-2
  for i in range(2):
    assert np.abs(out[i] - want[str(i)]).max() > 1e-4


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_an_unknown_activation_is_named(declared, part):
  config = B32 | {part: B32[part] | {"hidden_act": "xielu"}}
  with pytest.raises(errors.InputError) as e:
    declared(config)
  message = str(e.value)
  assert f"{part}.hidden_act = 'xielu'" in message
  assert "gelu_pytorch_tanh, hardswish, laplace" in message


def test_a_config_of_other_weights_is_refused(recorded):
  def change(config):
    config["vision_config"]["hidden_size"] = 48

  with pytest.raises(errors.InputError, match="of another shape"):
    recorded("clip_quick_gelu", change)


@pytest.mark.parametrize(
  "name, prefix, output",
  [("clip_image", "vision_model.", "0"), ("clip_text", "text_model.", ".")],
)
def test_encoders_alone_have_older_names_too(recorded, name, prefix, output):
  def change(tensors):
    for key in list(tensors):
      tensors[prefix + key.removeprefix(prefix)] = tensors.pop(key)

  _, out, want = recorded(name, tensors=change)
  got = out if output == "." else out[int(output)]
  np.testing.assert_allclose(got, want[output], atol=1e-4)
