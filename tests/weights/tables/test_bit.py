import math
import re

import numpy as np
import pytest

from mmjax import errors
from mmjax.weights.tables import bit

ROOT = "root_block/conv_root"
# As published: google/bit-50.
R50 = {
  "model_type": "bit",
  "depths": [3, 4, 6, 3],
  "embedding_dynamic_padding": False,
  "embedding_size": 64,
  "global_padding": None,
  "hidden_act": "relu",
  "hidden_sizes": [256, 512, 1024, 2048],
  "layer_type": "preactivation",
  "num_groups": 32,
  "output_stride": 32,
  "width_factor": 1,
}


def test_published_parameter_count(declared):
  for config in (R50, {"model_type": "bit"}):
    _, leaves = declared(config)
    count = sum(math.prod(x.shape) for x in leaves.values())
    assert count == 25_549_352 - 1000 * 2049  # no tensors, no head


def test_widths_are_rounded_as_the_reference(declared):
  assert [bit._by_8(n) for n in (3, 11, 12, 20, 92, 100)] == [
    8,
    16,
    16,
    24,
    96,
    104,
  ]
  recipe, _ = declared(R50 | {"width_factor": 2, "num_groups": 64})
  assert recipe.model["widths"] == [512, 1024, 2048, 4096]
  assert recipe.model["inner"] == [128, 256, 512, 1024]


@pytest.mark.parametrize("name", ["bit_classifier", "bit_google"])
def test_the_epsilon_of_filters_matters(recorded, monkeypatch, name):
  _, out, want = recorded(name)
  np.testing.assert_allclose(out[0], want["0"], atol=1e-4)
  # One for the other: 1e-10 of Google, 1e-8 of the hub.
  other = 1e-8 if name == "bit_google" else 1e-10
  build = bit.build

  def wrong(checkpoint):
    recipe = build(checkpoint)
    recipe.model["standardise"] = other
    return recipe

  monkeypatch.setattr(bit, "build", wrong)
  _, out, _ = recorded(name)
  assert np.abs(out[0] - want["0"]).max() > 1e-2


@pytest.mark.parametrize(
  "field, value",
  [
    ("num_groups", 2),
    ("hidden_act", "gelu"),
    ("embedding_dynamic_padding", False),
  ],
)
def test_the_config_matters(recorded, field, value):
  _, out, want = recorded(
    "bit_bottleneck_same", lambda config: config.update({field: value})
  )
  assert np.abs(out[0] - want["0"]).max() > 1e-3


def test_padding_is_the_configs(recorded):
  _, out, want = recorded(
    "bit_bottleneck_same", lambda config: config.update(global_padding=None)
  )
  want = want["1/tokens"]
  assert out[1]["tokens"].shape != want.shape or (
    np.abs(out[1]["tokens"] - want).max() > 1e-2
  )


def test_what_is_not_known_is_refused_by_name(declared):
  for field, value in (
    ("layer_type", "basic"),
    ("global_padding", "VALID"),
    ("hidden_act", "xielu"),
  ):
    with pytest.raises(errors.InputError, match=f"{field} = '?{value}"):
      declared(R50 | {field: value})


@pytest.mark.parametrize(
  "output_stride, strides, dilations",
  [
    (32, [1, 2, 2, 2], [(1, 1)] * 4),
    (16, [1, 2, 2, 1], [(1, 1)] * 3 + [(1, 2)]),
    (8, [1, 2, 1, 1], [(1, 1), (1, 1), (1, 2), (2, 4)]),
    (2, [1, 1, 1, 1], [(1, 1), (1, 2), (2, 4), (2, 8)]),
  ],
)
def test_an_output_stride_takes_strides_away(
  declared, output_stride, strides, dilations
):
  config = R50 | {"output_stride": output_stride, "layer_type": "bottleneck"}
  recipe, _ = declared(config)
  assert recipe.model["strides"] == strides
  assert recipe.model["dilations"] == dilations
  # The reference's other layers stride less, but span no more.
  recipe, _ = declared(config | {"layer_type": "preactivation"})
  assert recipe.model["strides"] == strides
  assert recipe.model["dilations"] is None


@pytest.mark.parametrize("squeezed", [False, True])
def test_big_visions_names_are_another_layout_of_googles(recorded, squeezed):
  """Their stem's frame is no zeros: positive throughout, it is the same."""

  def change(tensors, names=True):
    # A stem that adds its inputs up, which are positive.
    stem = "resnet/root_block/standardized_conv2d/kernel"
    tensors[stem] = np.zeros_like(tensors[stem])
    tensors[stem][3, 3] = 1.0
    for name in list(tensors) if names else ():
      x = tensors.pop(name)
      name = name.removeprefix("resnet/").replace("head/conv2d", "head")
      if name == "head/kernel":
        x = x[0, 0].copy()
      if "group_norm" in name and not squeezed:
        x = x[None, None, None].copy()
      name = re.sub("^group_norm", "norm-pre-head", name)
      name = name.replace("root_block/standardized_conv2d", ROOT)
      name = name.replace("a/proj/standardized_conv2d", "conv_proj")
      for i, letter in enumerate("abc", 1):
        name = name.replace(f"{letter}/standardized_conv2d", f"conv{i}")
        name = name.replace(f"{letter}/group_norm", f"gn{i}")
      name = name.replace("/gamma", "/scale").replace("/beta", "/bias")
      tensors[name] = x

  def positive(inputs):
    inputs["image"] = np.abs(inputs["image"])

  _, want, _ = recorded(
    "bit_google", None, lambda t: change(t, False), positive
  )
  loaded, out, _ = recorded("bit_google", None, change, positive)
  assert loaded.recipe.model["zeros"] is False
  np.testing.assert_allclose(out[0], want[0], atol=1e-5)
  # Else it is not.
  _, other, _ = recorded("bit_google", None, change)
  _, want, _ = recorded("bit_google", None, lambda t: change(t, False))
  assert np.abs(other[0] - want[0]).max() > 1e-4
