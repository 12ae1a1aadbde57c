import numpy as np
import pytest

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.tables import hub


def test_activation_names_and_an_unknown_one():
  assert hub.act({"hidden_act": "gelu"}) == "gelu_exact"
  assert hub.act({"hidden_act": "gelu_pytorch_tanh"}) == "gelu"
  with pytest.raises(errors.InputError) as e:
    hub.act({"hidden_act": "quick_gelou"}, "text_config")
  message = str(e.value)
  assert "text_config.hidden_act = 'quick_gelou'" in message
  assert "Did you mean 'quick_gelu'?" in message
  assert all(name in message for name in hub.ACTS)


def test_part_fills_in_what_a_file_leaves_out():
  defaults = dict(a=1, b=2)
  assert hub.part({"x": {"b": 3}}, "x", defaults) == dict(a=1, b=3)
  assert hub.part({"x": None}, "x", defaults) == defaults
  assert hub.part({}, "x", defaults) == defaults


def test_sizes_of_images():
  config = dict(
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=16,
    hidden_act="relu",
    layer_norm_eps=1e-3,
    image_size=(24, 16),
    patch_size=8,
  )
  assert hub.grid(config) == (3, 2)
  assert hub.image_input(config) == ((1, 24, 16, 3), "float32")
  sizes = hub.sizes(config, patches=True)
  # Images of any size, and pixels that fill no patch.
  assert sizes["patch"] == 8 and sizes["crop"]
  assert sizes["interpolate"] == "bicubic"
  config["image_size"] = 26
  assert hub.grid(config) == (3, 3)
  assert not {"patch", "crop", "interpolate"} & hub.sizes(config).keys()


def test_packed_attention_is_query_key_value(rng):
  heads, width = 2, 4
  rules = hub.packed_attention("a", "t", heads, width)
  tensors = {
    "t.in_proj_weight": rng.normal(size=(12, 4)),
    "t.in_proj_bias": rng.normal(size=(12,)),
    "t.out_proj.weight": rng.normal(size=(4, 4)),
    "t.out_proj.bias": rng.normal(size=(4,)),
  }
  leaves = {r.name: r.read(tensors[r.theirs]) for r in rules}
  x = rng.normal(size=(3, 4))
  whole = x @ tensors["t.in_proj_weight"].T + tensors["t.in_proj_bias"]
  for i, name in enumerate(("query", "key", "value")):
    kernel = leaves[f"params/a/{name}/kernel"]
    bias = leaves[f"params/a/{name}/bias"]
    assert kernel.shape == (width, heads, 2) and bias.shape == (heads, 2)
    got = np.einsum("td,dnh->tnh", x, kernel) + bias[None]
    want = whole[:, 4 * i : 4 * i + 4].reshape(3, heads, 2)
    np.testing.assert_allclose(got, want)
  back = rename.write(rules, leaves)
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(back[name], tensor)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("extra", [0, 2])
def test_positions(rng, extra, batched):
  table = rng.normal(size=(extra + 6, 4))
  theirs = table[None] if batched else table
  rules = hub.positions("t", (3, 2), 4, extra=extra, batched=batched)
  leaves = {r.name: r.read(theirs) for r in rules}
  grid = leaves["params/posemb/grid"]
  assert grid.shape == (3, 2, 4)
  np.testing.assert_array_equal(grid[1, 0], table[extra + 2])
  if extra:
    np.testing.assert_array_equal(leaves["params/posemb/extra"], table[:extra])
  else:
    assert len(leaves) == 1
  np.testing.assert_array_equal(rename.write(rules, leaves)["t"], theirs)


def test_linear_without_bias():
  assert [r.ours for r in hub.linear("a", "b", bias=False)] == ["a/kernel"]


def test_fixed_values_are_refused_by_name():
  want = {"is_decoder": False}
  hub.fixed({}, want)
  hub.fixed({"is_decoder": False, "other": 1}, want)
  hub.fixed({"is_decoder": None}, want)
  with pytest.raises(errors.InputError, match=r"json is_decoder = True"):
    hub.fixed({"is_decoder": True}, want)
  with pytest.raises(errors.InputError, match=r"text\.is_decoder = True"):
    hub.fixed({"is_decoder": True}, want, "text")


def test_the_shortest_period_of_letters():
  pairs = (("gbgb", "gb"), ("ggg", "g"), ("gbg", "gbg"), ("", ""))
  for letters, short in pairs:
    assert hub.period(letters) == short
