"""What a recipe ignores; configs asked by name; front ends that are exact."""

import pathlib

import pytest

from mmjax import errors
from mmjax.data import preprocess
from mmjax.weights import recipe


def test_ignored_names_match_anywhere():
  found = recipe.Recipe(
    "x", {}, {}, [], {}, ignore=(r"position_ids$", r"^pooler\.")
  )
  assert found.ignored("text.embeddings.position_ids")
  assert found.ignored("pooler.dense.bias")
  assert not found.ignored("x.pooler.dense.bias")
  assert not recipe.Recipe("x", {}, {}, [], {}).ignored("anything")


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


PLAIN = dict(
  do_resize=False,
  do_rescale=True,
  rescale_factor=0.00392156862745098,
  do_normalize=True,
  image_mean=[0.5, 0.5, 0.5],
  image_std=[0.5, 0.5, 0.5],
)


def test_a_front_end_that_our_operations_can_express():
  spec = recipe.image_spec(PLAIN)
  assert spec == {"image": "decode|keep('image')"}
  crop = dict(do_center_crop=True, crop_size={"height": 3, "width": 2})
  spec = recipe.image_spec({**PLAIN, **crop})
  assert spec == {"image": "decode|central_crop((3, 2))|keep('image')"}
  preprocess.parse(spec["image"])
  assert recipe.image_spec({**PLAIN, **crop, "crop_size": 8}) == {
    "image": "decode|central_crop(8)|keep('image')"
  }


@pytest.mark.parametrize(
  "change",
  [
    dict(do_resize=True),
    dict(do_rescale=False),
    dict(do_normalize=False),
    dict(rescale_factor=1 / 127.5),
    dict(image_mean=[0.48, 0.45, 0.4]),
    dict(image_std=[0.2, 0.5, 0.5]),
    dict(do_center_crop=True),
  ],
)
def test_a_front_end_that_they_cannot(change):
  assert recipe.image_spec({**PLAIN, **change}) == {}
  assert recipe.image_spec({}) == {}
