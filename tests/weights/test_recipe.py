"""What a recipe ignores; configs asked by name."""

import pathlib

import pytest

from mmjax import errors
from mmjax.weights import recipe


def test_ignored_names_match_anywhere():
  found = recipe.Recipe(
    "x", {}, {}, [], {}, ignore=(r"position_ids$", r"^pooler\.")
  )
  assert found.ignored("text.embeddings.position_ids")
  assert found.ignored("pooler.dense.bias")
  assert not found.ignored("x.pooler.dense.bias")
  assert not recipe.Recipe("x", {}, {}, [], {}).ignored("anything")


def test_what_is_kept_is_no_surprise_either():
  found = recipe.Recipe(
    "x", {}, {}, [], {}, ignore=("^a$",), keep=(r"\bmask_token$", "^a")
  )
  assert found.keeps("x.mask_token") and found.ignored("x.mask_token")
  assert found.ignored("a") and not found.keeps("a")
  assert not found.ignored("x.mask_tokens") and not found.kept


def test_a_config_names_what_it_lacks():
  config = recipe.Config(
    {"hidden_sizes": 3, "act": "silu", "fine": "a"}, pathlib.Path("there")
  )
  assert config["hidden_sizes"] == 3
  assert config.get("nope", 7) == 7 and config.get("act", 7) == "silu"
  with pytest.raises(errors.InputError) as caught:
    config["hidden_size"]
  assert all(
    text in str(caught.value)
    for text in ("'there'", "'hidden_size'", "nearest: hidden_sizes")
  )
  assert "nope" not in config and config.get("nope") is None
  assert {**config} == config.fields and len(config) == 3
