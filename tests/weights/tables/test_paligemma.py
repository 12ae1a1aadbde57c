import math

import numpy as np
import pytest

from mmjax import errors

RELEASED = {
  "model_type": "paligemma",
  "text_config": {
    "model_type": "gemma",
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "vocab_size": 257_216,
  },
  "vision_config": {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "vision_use_head": False,
  },
}


# What google/paligemma2-3b-pt-224's config.json says, as far as it is read.
SECOND = {
  "text_config": {
    "model_type": "gemma2",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "vocab_size": 257_216,
  }
}


def test_published_count_of_the_second(declared):
  recipe, leaves = declared(RELEASED | SECOND)
  assert sum(math.prod(x.shape) for x in leaves.values()) == 3_032_242_416
  language = recipe.model["language"]
  assert (language["pattern"], language["window"]) == ("bg", 4096)
  assert (language["softcap"], language["logits_cap"]) == (50.0, 30.0)


def test_published_count(declared):
  _, leaves = declared(RELEASED)
  assert sum(math.prod(x.shape) for x in leaves.values()) == 2_923_466_480


@pytest.mark.parametrize(
  "old, new",
  [
    ("vision_tower.", "vision_tower.vision_model."),  # the hub's files
    ("", "model."),
    ("language_model.model.", "model.language_model."),
  ],
)
def test_names_of_every_generation_are_read(recorded, old, new):
  def change(tensors):
    for name in list(tensors):
      if name.startswith(old):
        tensors[new + name.removeprefix(old)] = tensors.pop(name)

  _, out, want = recorded("paligemma", tensors=change)
  given = ~np.isnan(want["0"])
  np.testing.assert_allclose(out[0][given], want["0"][given], atol=1e-4)


def test_a_head_of_its_own_is_read(recorded):
  def config(found):
    found["tie_word_embeddings"] = False

  def tensors(found):
    found["lm_head.weight"] = (
      2 * found["language_model.model.embed_tokens.weight"]
    )

  loaded, out, want = recorded("paligemma", config, tensors)
  given = ~np.isnan(want["0"])
  got = np.asarray(out[0])
  np.testing.assert_allclose(got[given], 2 * want["0"][given], atol=2e-4)
  assert loaded.recipe.model["language"]["tied"] is False
  # Tied by the config, a tensor of this name is a copy.
  _, out, _ = recorded("paligemma", None, tensors)
  np.testing.assert_allclose(out[0][given], want["0"][given], atol=1e-4)


@pytest.mark.parametrize(
  "change, word",
  [
    ({"text_config": {"model_type": "gemma3"}}, "gemma3"),
    ({"vision_config": {"model_type": "clip"}}, "clip"),
    (
      {"text_config": {"final_logit_softcapping": 30.0}},
      "final_logit_softcapping = 30.0",
    ),
  ],
)
def test_what_we_cannot_follow_is_named(declared, change, word):
  with pytest.raises(errors.InputError, match=word):
    declared(RELEASED | change)
