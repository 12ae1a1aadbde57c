import math

import flax.linen as nn
import jax
import numpy as np
import pytest

from mmjax import errors
from mmjax.layers.interpolate import resize
from mmjax.layers.position import (
  LearnedGrid,
  LearnedSequence,
  RelativeBias,
  rotate,
  sincos1d,
  sincos2d,
)
from mmjax.ops.bias import relative_buckets


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


def test_learned_grid_is_stretched_on_demand(key):
  module = LearnedGrid(1, "bicubic")
  table, variables = module.init_with_output(key, 2, 3, 4)
  grid = variables["params"]["grid"].unbox()
  for boxed in (variables, nn.unbox(variables)):
    np.testing.assert_array_equal(module.apply(boxed, 2, 3, 4), table)
    got = module.apply(boxed, 4, 2, 4)
    np.testing.assert_array_equal(got[0], table[0])
    want = resize(grid, 4, 2, "bicubic").reshape(8, 4)
    np.testing.assert_array_equal(got[1:], want)
    with pytest.raises(errors.InputError, match=r"width 4.*width 8"):
      module.apply(boxed, 2, 3, 8)


def test_learned_sequence_takes_shorter_ones_only(key):
  module = LearnedSequence(5)
  table, variables = module.init_with_output(key, 5, 4)
  np.testing.assert_array_equal(module.apply(variables, 3, 4), table[:3])
  with pytest.raises(errors.InputError, match=r"sequence of 6 .*length = 5"):
    module.apply(variables, 6, 4)


def test_sincos1d_by_the_formula():
  table = sincos1d(5, 6)
  assert table.shape == (5, 6) and table.dtype == np.float32
  frequencies = (1.0, 0.01, 1e-4)
  want = [
    [f(t * w) for f in (math.sin, math.cos) for w in frequencies]
    for t in range(5)
  ]
  np.testing.assert_allclose(table, want, atol=1e-6)
  with pytest.raises(errors.InputError, match="width = 5"):
    sincos1d(2, 5)


def test_rotation_turns_pairs_and_sees_only_distances(key):
  x = jax.random.normal(key, (1, 4, 2, 6))
  positions = np.array([[0, 1, 5, 7]], np.int32)
  got = np.asarray(rotate(x, positions, 100.0))
  # A pair is a complex number, turned by exp(i position frequency).
  pair = np.asarray(x[..., :3]) + 1j * np.asarray(x[..., 3:])
  frequency = 100.0 ** -(np.arange(3) / 3)
  pair = pair * np.exp(1j * positions[0][None, :, None, None] * frequency)
  np.testing.assert_allclose(got[..., :3], pair.real, atol=1e-5)
  np.testing.assert_allclose(got[..., 3:], pair.imag, atol=1e-5)
  later = np.asarray(rotate(x, positions + 3, 100.0))
  np.testing.assert_allclose(
    np.einsum("btnh,bsnh->bnts", later, later),
    np.einsum("btnh,bsnh->bnts", got, got),
    atol=1e-4,
  )


def test_relative_bias_reads_the_table(key):
  bias = RelativeBias(heads=3, buckets=8, max_distance=20)
  queries, keys = np.array([[0, 1], [4, 5]]), np.array([[0, 1, 9]] * 2)
  out, variables = bias.init_with_output(key, queries, keys)
  table = np.asarray(variables["params"]["table"].unbox())
  assert out.shape == (2, 3, 2, 3)
  for b in range(2):
    for t in range(2):
      for s in range(3):
        distance = np.array([[keys[b, s] - queries[b, t]]])
        bucket = int(relative_buckets(distance, 8, 20, True)[0, 0])
        np.testing.assert_array_equal(out[b, :, t, s], table[bucket])
  spec = bias.apply(variables, method="spec")
  places = np.arange(4)[None]
  np.testing.assert_array_equal(
    spec.dense(4, 4), bias.apply(variables, places, places)
  )
