"""Stretched grids equal PyTorch's, recorded, and scipy's zoom."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from mmjax import errors
from mmjax.layers import interpolate

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/layers/interpolate.npz"


@pytest.mark.parametrize("method", interpolate.METHODS)
def test_equals_pytorch(method):
  seen = 0
  with np.load(GOLDEN) as file:
    for key in file.files:
      kind, case, *size = key.split("/")
      if kind != method:
        continue
      rows, columns = map(int, size[0].split("x"))
      grid = jnp.asarray(file[f"grid/{case}"])
      got = interpolate.resize(grid, rows, columns, method)
      np.testing.assert_allclose(got, file[key], atol=3e-6, err_msg=key)
      seen += 1
  assert seen == 13


def test_corners_are_the_linear_zoom_of_big_vision():
  grid = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)
  for rows, columns in ((9, 9), (3, 7), (6, 5), (1, 2)):
    want = scipy.ndimage.zoom(grid, (rows / 6, columns / 4, 1), order=1)
    got = interpolate.resize(
      jnp.asarray(grid), rows, columns, "bilinear_corners"
    )
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("method", interpolate.METHODS)
def test_a_constant_stays_and_the_same_size_is_untouched(method, key):
  np.testing.assert_allclose(
    interpolate.weights(7, 5, method).sum(1), 1.0, atol=1e-6
  )
  # The offset moves samples even where there are as many as before.
  same = np.abs(interpolate.weights(6, 6, method) - np.eye(6)).max() < 1e-7
  assert same == (method != "bicubic_offset")
  grid = jax.random.normal(key, (3, 4, 2))
  assert interpolate.resize(grid, 3, 4, method) is grid


def test_methods_differ_and_unknown_ones_are_named(key):
  grid = jax.random.normal(key, (6, 6, 2))
  found = [interpolate.resize(grid, 4, 3, m) for m in interpolate.METHODS]
  for i, a in enumerate(found):
    for b in found[:i]:
      assert np.abs(a - b).max() > 1e-2
  with pytest.raises(errors.InputError, match="'bicubic'"):
    interpolate.weights(3, 4, "cubic")


def test_corner_weights_are_linear_and_the_ends_meet():
  rng = np.random.default_rng(0)
  table = rng.normal(size=5)
  weights = interpolate.corner_weights(jnp.array([7, 3, 1, 5]), 7, 5)
  got = np.einsum("bpg,g->bp", weights, table)
  for row, count in enumerate((7, 3, 1, 5)):
    at = np.linspace(0, 4, count) if count > 1 else [0.0]
    want = np.interp(at, np.arange(5), table)
    np.testing.assert_allclose(got[row, :count], want, atol=1e-5)
    np.testing.assert_array_equal(got[row, count:], 0)
  np.testing.assert_allclose(got[3, :5], table, atol=1e-6)
