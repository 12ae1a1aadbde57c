import warnings

import numpy as np
import pytest

from mmjax import errors
from mmjax.weights.tables import blip


def test_the_order_in_the_packed_projection_matters(recorded):
  def change(tensors):
    for name in list(tensors):
      if name.endswith("qkv.weight"):
        tensors[name] = np.roll(tensors[name], len(tensors[name]) // 3, 0)

  _, out, want = recorded("blip_retrieval", tensors=change)
  assert np.abs(out[0] - want["0"]).max() > 1e-3


@pytest.mark.parametrize(
  "part, field, value",
  [
    ("text_config", "num_attention_heads", 2),
    ("text_config", "layer_norm_eps", 1e-1),
    ("vision_config", "layer_norm_eps", 1e-1),
    ("text_config", "hidden_act", "relu"),
  ],
)
def test_a_value_of_the_config_matters(recorded, part, field, value):
  def change(config):
    config[part][field] = value

  _, out, want = recorded("blip_retrieval", change)
  assert np.abs(out[0] - want["0"]).max() > 1e-4


def test_the_embedding_of_a_text_is_made_without_the_image(recorded):
  def change(inputs):
    inputs["image"] = inputs["image"][::-1].copy()

  _, out, want = recorded("blip_retrieval", inputs=change)
  got = out[1]["text_embedding"]
  np.testing.assert_allclose(got, want["1/text_embedding"], atol=1e-5)
  assert np.abs(out[0] - want["0"])[0].max() > 1e-3


def test_values_that_released_weights_do_not_have_are_named():
  image, text = dict(blip.IMAGE), dict(blip.TEXT)
  with pytest.warns(UserWarning) as found:
    blip._warn(image, text)
  said = " ".join(str(w.message) for w in found)
  assert "text_config.num_attention_heads = 8" in said and "12" in said
  assert "vision_config.layer_norm_eps = 1e-05" in said and "1e-06" in said
  image["layer_norm_eps"], text["num_attention_heads"] = 1e-6, 12
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    blip._warn(image, text)


def test_a_blip_of_no_task_is_refused(recorded):
  def change(tensors):
    for name in list(tensors):
      if not name.startswith("vision_model."):
        del tensors[name]

  with pytest.raises(errors.InputError, match="text_decoder"):
    recorded("blip_retrieval", tensors=change)


def test_a_head_of_its_own_is_refused(recorded):
  def config(found):
    found["tie_word_embeddings"] = False
    found["text_config"]["tie_word_embeddings"] = False

  def tensors(found):
    table = found["text_decoder.bert.embeddings.word_embeddings.weight"]
    found[blip.HEAD] = 2 * table

  with pytest.raises(errors.InputError, match="tie_word_embeddings = False"):
    recorded("blip_caption", config, tensors)
