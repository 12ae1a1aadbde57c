import math

import jax
import numpy as np
import pytest

from mmjax import errors
from mmjax.layers.position import LearnedGrid, LearnedSequence, sincos2d


def test_sincos2d_by_the_formula():
  table = sincos2d(2, 3, 8, temperature=100.0)
  assert table.shape == (6, 8) and table.dtype == np.float32
  for y in range(2):
    for x in range(3):
      want = [
        f(place * frequency)
        for place in (x, y)
        for f in (math.sin, math.cos)
        for frequency in (1.0, 0.01)
      ]
      np.testing.assert_allclose(table[y * 3 + x], want, atol=1e-6)


def test_sincos2d_refuses_other_widths():
  with pytest.raises(errors.InputError, match="width = 6"):
    sincos2d(2, 2, 6)


def test_learned_grid_is_for_one_grid(key):
  module = LearnedGrid(extra=1)
  table, variables = module.init_with_output(key, 2, 3, 4)
  assert table.shape == (7, 4)
  grid = variables["params"]["grid"].unbox()
  np.testing.assert_array_equal(table[1:], grid.reshape(6, 4))
  for boxed in (variables, jax.tree.map(lambda x: x, variables)):
    np.testing.assert_array_equal(module.apply(boxed, 2, 3, 4), table)
  # The same number of patches, but other places.
  with pytest.raises(errors.InputError, match=r"\(2, 3\).*\(3, 2\)"):
    module.apply(variables, 3, 2, 4)


def test_learned_sequence_takes_shorter_ones_only(key):
  module = LearnedSequence(5)
  table, variables = module.init_with_output(key, 5, 4)
  np.testing.assert_array_equal(module.apply(variables, 3, 4), table[:3])
  with pytest.raises(errors.InputError, match=r"sequence of 6 .*length = 5"):
    module.apply(variables, 6, 4)
