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
  with pytest.warns(UserWarning, match=r"text_config\.num_.*_heads = 8.* 12;"):
    blip._warn(text, "text_config.")
  with pytest.warns(UserWarning, match="json layer_norm_eps = 1e-05.* 1e-06;"):
    blip._warn(image, "", **blip.RELEASED_IMAGE)
  image["layer_norm_eps"], text["num_attention_heads"] = 1e-6, 12
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    blip._warn(text, "")
    blip._warn(image, "", **blip.RELEASED_IMAGE)


def test_a_blip_of_no_task_is_refused(recorded):
  def change(tensors):
    for name in list(tensors):
      if not name.startswith("vision_model."):
        del tensors[name]

  with pytest.raises(errors.InputError, match="text_decoder"):
    recorded("blip_retrieval", tensors=change)


def test_a_head_of_its_own_is_read(recorded):
  def config(found):
    found["tie_word_embeddings"] = False
    found["text_config"]["tie_word_embeddings"] = False

  def tensors(found):
    table = found["text_decoder.bert.embeddings.word_embeddings.weight"]
    found[blip.HEAD] = 2 * table
    predictions = "text_decoder.cls.predictions."
    found[f"{predictions}decoder.bias"] = 2 * found[f"{predictions}bias"]

  loaded, out, want = recorded("blip_caption", config, tensors)
  np.testing.assert_allclose(out[0], 2 * want["0"], atol=2e-4)
  assert "text_decoder.cls.predictions.bias" in loaded.recipe.kept
  # Tied by either config, they are copies.
  _, out, want = recorded("blip_caption", None, tensors)
  np.testing.assert_allclose(out[0], want["0"], atol=1e-4)


def test_an_image_encoder_alone_is_normed_twice(recorded):
  def config(found):
    found.update(found.pop("vision_config"), model_type="blip_vision_model")

  def tensors(found):
    for name in list(found):
      if not name.startswith("vision_model."):
        del found[name]

  def inputs(found):
    del found["tokens"], found["mask"]

  loaded, out, want = recorded("blip_contrastive", config, tensors, inputs)
  np.testing.assert_allclose(out[1]["tokens"], want["1/image"], atol=1e-4)
  norm = {
    k: np.asarray(v) for k, v in loaded.variables["params"]["norm"].items()
  }
  x = want["1/image"][:, 0]
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(
    out[0], x * norm["scale"] + norm["bias"], atol=1e-4
  )


def test_a_text_encoder_may_have_neither_memory_nor_pooler(recorded):
  def tensors(found):
    for name in list(found):
      if "crossattention" in name or "pooler" in name:
        del found[name]

  def inputs(found):
    del found["memory"]

  loaded, out, _ = recorded("blip_text", None, tensors, inputs)
  assert loaded.recipe.inputs.keys() == {"tokens"}
  np.testing.assert_array_equal(out[0], out[1]["tokens"][:, 0])
