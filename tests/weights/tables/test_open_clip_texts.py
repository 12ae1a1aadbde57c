"""The hub's text models within open_clip: what the config must say of them."""

import json
import pathlib

import numpy as np
import pytest

from mmjax import errors
from mmjax.weights import files, loading
from mmjax.weights.tables import open_clip_texts

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"


def recipe(name, change=None, tensors=None):
  """Returns the recipe of a recorded checkpoint, whose text part is changed."""
  with np.load(GOLDEN / f"{name}.npz") as file:
    config = json.loads(str(file["config"]))
    found = {
      key.removeprefix("tensor/"): files.Tensor(
        file[key].shape, np.dtype("float32"), lambda: 1 / 0
      )
      for key in file.files
      if key.startswith("tensor/")
    }
  if change:
    config["model_cfg"]["text_cfg"].update(change)
  if tensors:
    tensors(found)
  return loading.recognise(
    files.Checkpoint(pathlib.Path("there"), found, config)
  )


def test_roberta_counts_positions_from_its_padding():
  found = recipe("open_clip_roberta").model
  assert found["projected"] == "image"  # two layers are part of the tower
  assert found["text"]["hidden"] == (16 + 12) // 2
  text = found["text"]["encoder"]
  assert (text["offset"], text["pad_id"], text["epsilon"]) == (1, 1, 1e-5)
  assert (text["pool"], text["pooler"]) == ("mean", False)


def test_a_text_is_no_longer_than_its_positions():
  found = recipe("open_clip_roberta", {"context_length": 77})
  assert found.inputs["text"] == ((1, 12), "int32")


def test_without_a_dense_layer_the_first_token_is_read():
  def without(tensors):
    for leaf in ("weight", "bias"):
      del tensors[f"text.transformer.pooler.dense.{leaf}"]

  kind = {"hf_pooler_type": "cls_last_hidden_state_pooler"}
  found = recipe("open_clip_bert", kind, without)
  assert found.model["text"]["pool"] == "cls"
  assert not found.model["text"]["pooler"]


@pytest.mark.parametrize(
  "change, words",
  [
    ({"hf_model_name": "google/mt5-base"}, "hf_model_name = 'google/mt5-base'"),
    ({"hf_pooler_type": "max_pooler"}, "hf_pooler_type = 'max_pooler'"),
    ({"hf_proj_type": "clap_mlp"}, "hf_proj_type = 'clap_mlp'"),
    ({"hf_proj_type": "mlp"}, r"there is no 'text\.proj\.0\.weight'"),
    ({"hf_model_config": {"is_decoder": True}}, "'is_decoder'"),
    (
      {"hf_model_config": {"num_attention_heads": 5}},
      "num_attention_heads = 5 does not divide",
    ),
    (
      {"hf_model_config": {"vocab_size": 30522}},
      "hf_model_config.vocab_size = 30522: the tensors have 50",
    ),
    (
      {"hf_model_config": {"num_attention_heads": 4, "hidden_act": "xielu"}},
      "hidden_act = 'xielu'",
    ),
  ],
)
def test_what_cannot_be_followed_is_named(change, words):
  with pytest.raises(errors.InputError, match=words):
    recipe("open_clip_bert", change)


def test_names_of_released_models():
  assert open_clip_texts.TEXTS["roberta-base"]["num_attention_heads"] == 12
  assert {"xlm-roberta-large", "bert-large-cased"} <= set(open_clip_texts.TEXTS)
