import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.layers import convolution as conv
from mmjax.layers import residual


@pytest.fixture
def x(key):
  return jax.random.normal(key, (2, 7, 6, 8))


@pytest.fixture
def drawn(draw):
  """Returns a function to variables that are all far from where they start."""
  rng = np.random.default_rng(2)

  def far(layer, x):
    return jax.tree.map(
      lambda a: a + np.abs(0.3 * rng.standard_normal(a.shape, np.float32)),
      nn.unbox(draw(layer, x)),
    )

  return far


def conved(variables, name, x, stride=1, **keywords):
  kernel = variables["params"][name]["kernel"]
  layer = conv.Conv(kernel.shape[-1], kernel.shape[0], stride, **keywords)
  return layer.apply({"params": {"kernel": kernel}}, x)


def normed(variables, name, x):
  p = jax.tree.map(np.asarray, variables["params"][name])
  s = jax.tree.map(np.asarray, variables["batch_stats"][name])
  x = (np.asarray(x) - s["mean"]) / np.sqrt(s["var"] + 1e-5)
  return x * p["scale"] + p["bias"]


@pytest.mark.parametrize("stride_in, at", [("first", 0), ("second", 1)])
def test_bottleneck_with_a_stride(x, stride_in, at, drawn):
  block = residual.Block(12, 5, 2, True, stride_in, inner_act="quick_gelu")
  v = drawn(block, x)
  strides = [1, 1, 1]
  strides[at] = 2
  y = x
  for i in range(3):
    y = normed(v, f"norm{i + 1}", conved(v, f"conv{i + 1}", y, strides[i]))
    y = y * jax.nn.sigmoid(1.702 * y) if i < 2 else y
  past = normed(v, "project_norm", conved(v, "project", x, 2))
  want = jax.nn.relu(y + past)
  assert want.shape == (2, 4, 3, 12)
  np.testing.assert_allclose(jax.jit(block.apply)(v, x)[0], want, atol=1e-4)


def test_bottleneck_that_averages(x, drawn):
  block = residual.Block(12, 5, 2, True, "average")
  v = drawn(block, x)
  squares = x[:, :6].reshape(2, 3, 2, 3, 2, 8).mean((2, 4))
  y = jax.nn.relu(normed(v, "norm1", conved(v, "conv1", x)))
  y = jax.nn.relu(normed(v, "norm2", conved(v, "conv2", y)))
  y = y[:, :6].reshape(2, 3, 2, 3, 2, 5).mean((2, 4))
  y = normed(v, "norm3", conved(v, "conv3", y))
  past = normed(v, "project_norm", conved(v, "project", squares))
  want = jax.nn.relu(y + past)
  np.testing.assert_allclose(jax.jit(block.apply)(v, x)[0], want, atol=1e-4)


def test_basic_block(x, drawn):
  block = residual.Block(8)
  v = drawn(block, x)
  y = jax.nn.relu(normed(v, "norm1", conved(v, "conv1", x)))
  y = normed(v, "norm2", conved(v, "conv2", y))
  np.testing.assert_allclose(
    jax.jit(block.apply)(v, x)[0], jax.nn.relu(x + y), atol=1e-4
  )
  assert "project" not in v["params"]


@pytest.mark.parametrize("project", [False, True])
def test_norms_first_with_groups(x, project, drawn):
  width = 12 if project else 8
  block = residual.Block(
    width, 4, 1, project, norms_first=True, groups=2, standardise=1e-2
  )
  v = drawn(block, x)
  assert "batch_stats" not in v

  def pre(name, x):
    norm = conv.group_norm(groups=2)
    return jax.nn.relu(norm.apply({"params": v["params"][name]}, x))

  y = first = pre("norm1", x)
  for i in (1, 2, 3):
    y = conved(v, f"conv{i}", y, standardise=1e-2)
    if i < 3:
      y = pre(f"norm{i + 1}", y)
  past = conved(v, "project", first, standardise=1e-2) if project else x
  np.testing.assert_allclose(jax.jit(block.apply)(v, x)[0], y + past, atol=1e-4)


@pytest.mark.parametrize("scan", [True, False])
def test_a_stage_is_its_blocks_in_turn(x, scan, drawn):
  stage = residual.Stage(3, 12, 5, stride=2, scan=scan)
  v = drawn(stage, x)
  names = v["params"]["rest"]
  assert names["conv2"]["kernel"].shape == (2, 3, 3, 5, 5)
  assert v["batch_stats"]["rest"]["norm1"]["mean"].shape == (2, 5)
  first = {c: v[c]["first"] for c in v}
  want, _ = jax.jit(residual.Block(12, 5, 2, True).apply)(first, x)
  block = jax.jit(residual.Block(12, 5).apply)
  for n in range(2):
    layer = jax.tree.map(lambda a, n=n: a[n], {c: v[c]["rest"] for c in v})
    want, _ = block(layer, want)
  np.testing.assert_allclose(
    jax.jit(stage.apply)(v, x), want, rtol=1e-4, atol=1e-4
  )


def test_training_moves_the_statistics_of_every_block(x, drawn):
  stage = residual.Stage(3, 8)
  v = drawn(stage, x)
  train = functools.partial(stage.apply, train=True, mutable=["batch_stats"])
  _, moved = jax.jit(train)(v, x)
  for stack in ("first", "rest"):
    new, old = (s["batch_stats"][stack]["norm2"]["mean"] for s in (moved, v))
    assert (jnp.abs(new - old).max(-1) > 0).all()


def test_values_are_one_for_each_stage():
  assert residual.checked("m", [1, 2], widths=[8, 9], inner=None) == [
    (1, 2),
    (8, 9),
    None,
  ]
  with pytest.raises(errors.InputError, match=r"m widths = \[8\]: 1 values"):
    residual.checked("m", [1, 2], widths=[8])
  for depths in ([], [1, 0]):
    with pytest.raises(errors.InputError, match="at least 1 block"):
      residual.checked("m", depths)
