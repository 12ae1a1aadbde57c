import math

import pytest

from mmjax import errors

NEO = dict(
  model_type="gpt_neo",
  hidden_size=12,
  num_layers=4,
  num_heads=3,
  attention_types=[[["global", "local"], 2]],
)


def test_published_parameter_counts(declared):
  for changes, count in (
    ({}, 1_315_575_808),
    (
      dict(
        hidden_size=768,
        num_layers=12,
        num_heads=12,
        attention_types=[[["global", "local"], 6]],
      ),
      125_198_592,
    ),
  ):
    _, leaves = declared(dict(model_type="gpt_neo") | changes)
    assert sum(math.prod(x.shape) for x in leaves.values()) == count


@pytest.mark.parametrize(
  "types, depth, pattern",
  [
    ([[["global", "local"], 2]], 4, "gb"),
    ([[["global"], 3]], 3, "g"),
    ([[["local"], 2], [["global"], 1]], 3, "bbg"),
    ([[["global", "local"], 1], [["global", "local"], 2]], 6, "gb"),
  ],
)
def test_kinds_of_layers_become_the_shortest_pattern(
  declared, types, depth, pattern
):
  recipe, _ = declared(NEO | dict(attention_types=types, num_layers=depth))
  assert recipe.model["pattern"] == pattern
  assert recipe.model["scale"] == 1.0
  names = [
    name
    for rule in recipe.rules
    if rule.ours.endswith("mlp/up/kernel")
    for name in rule.sources(depth // len(pattern))
  ]
  assert sorted(names) == [f"h.{n}.mlp.c_fc.weight" for n in range(depth)]


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(num_layers=5), "names 4 layers, but num_layers = 5"),
    (dict(attention_types=[[["global", "locl"], 2]]), "'locl'.*'local'"),
    (dict(num_heads=5), "num_heads = 5 does not divide hidden_size = 12"),
    (dict(activation_function="xielu"), "activation_function = 'xielu'"),
  ],
)
def test_what_cannot_be_followed_is_named(declared, changes, message):
  with pytest.raises(errors.InputError, match=message):
    declared(NEO | changes)


def test_masks_of_old_files_are_left_out(declared):
  recipe, _ = declared(NEO)
  assert recipe.ignored("transformer.h.0.attn.attention.bias")
  assert recipe.ignored("transformer.h.3.attn.attention.masked_bias")
  assert not recipe.ignored("transformer.h.3.attn.attention.out_proj.bias")
