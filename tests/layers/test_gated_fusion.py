"""Gates of the sum of two grids, and whose statistics they take."""

import jax
import numpy as np
from flax import linen as nn

from mmjax.layers.gated_fusion import Fusion


def setup(key):
  fusion = Fusion(2)
  x, y = jax.random.normal(key, (2, 3, 2, 5, 4))
  read = np.array([True, False, True]).reshape(3, 1, 1, 1)
  norm = dict(train=False, momentum=0.9)
  shapes = jax.eval_shape(lambda: fusion.init(key, x, y, read, norm))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda a: np.abs(rng.normal(size=a.shape)).astype(np.float32),
    nn.unbox(shapes),
  )
  return fusion, variables, x, y, read


def gates(x, name, variables):
  for i in (1, 2):
    p = variables["params"]
    dense, scale = p[f"{name}_dense{i}"], p[f"{name}_norm{i}"]
    held = variables["batch_stats"][f"{name}_norm{i}"]
    x = x @ dense["kernel"] + dense["bias"]
    x = (x - held["mean"]) / np.sqrt(held["var"] + 1e-5)
    x = x * scale["scale"] + scale["bias"]
    x = np.maximum(x, 0) if i == 1 else x
  return x


def test_gates_are_of_each_place_and_of_the_mean(key):
  fusion, variables, x, y, read = setup(key)
  norm = dict(train=False, momentum=0.9)
  got = jax.jit(lambda v: fusion.apply(v, x, y, read, norm))(variables)
  a, b = np.asarray(x), np.asarray(y)
  gate = gates(a + b, "near", variables)
  gate = gate + gates((a + b).mean((1, 2), keepdims=True), "far", variables)
  gate = 1 / (1 + np.exp(-gate))
  np.testing.assert_allclose(got, 2 * (a * gate + b * (1 - gate)), atol=1e-5)


def test_statistics_are_of_rows_that_are_read(key):
  fusion, variables, x, y, read = setup(key)

  @jax.jit
  def mean(x, read):
    _, new = fusion.apply(
      variables,
      x,
      y,
      read,
      dict(train=True, momentum=0.0),
      mutable=["batch_stats"],
    )
    return new["batch_stats"]["near_norm1"]["mean"]

  other = x.at[1].add(5.0)
  np.testing.assert_allclose(mean(x, read), mean(other, read), atol=1e-5)
  # Of all, where none is read.
  none = np.zeros_like(read)
  assert np.isfinite(mean(x, none)).all()
  assert np.abs(mean(x, none) - mean(other, none)).max() > 0.1
