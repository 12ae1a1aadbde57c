import pathlib

import numpy as np
import pytest

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.tables import image_tokens

HERE = pathlib.Path("there")


def test_a_config_may_leave_out_but_not_contradict():
  found = dict(ch=32, ch_mult=(1, 2))
  image_tokens.check_agrees(HERE, {}, found)
  image_tokens.check_agrees(HERE, dict(ch_mult=[1, 2], more=1), found)
  with pytest.raises(errors.InputError, match=r"'there'.*ch = 64, but.*32"):
    image_tokens.check_agrees(HERE, dict(ch=64), found)
  with pytest.raises(errors.InputError, match=r"ch_mult = \(1, 4\)"):
    image_tokens.check_agrees(HERE, dict(ch_mult=[1, 4]), found)


def test_a_field_with_one_value():
  image_tokens.check_is(HERE, dict(double_z=False), dict(double_z=False))
  image_tokens.check_is(HERE, {}, dict(double_z=False))
  with pytest.raises(errors.InputError, match="double_z = True; our model has"):
    image_tokens.check_is(HERE, dict(double_z=True), dict(double_z=False))


def test_a_tensor_that_is_needed():
  assert image_tokens.need(HERE, {"a.weight": (3, 2)}, "a.weight") == (3, 2)
  with pytest.raises(errors.InputError, match=r"'b\.weight' \(nearest: a\.w"):
    image_tokens.need(HERE, {"a.weight": (3, 2)}, "b.weight")


def test_rules_of_a_convolution_go_both_ways():
  rules = image_tokens.conv("in", "conv_in.", "w", "b")
  kernel = np.arange(2 * 3 * 5 * 5.0).reshape(5, 5, 3, 2)
  leaves = {"params/in/kernel": kernel, "params/in/bias": np.arange(2.0)}
  theirs = rename.write(rules, leaves)
  assert {k: v.shape for k, v in theirs.items()} == {
    "conv_in.w": (2, 3, 5, 5),
    "conv_in.b": (2,),
  }
  assert theirs["conv_in.w"][1, 2, 3, 4] == kernel[3, 4, 2, 1]
  np.testing.assert_array_equal(rules[0].read(theirs["conv_in.w"]), kernel)
