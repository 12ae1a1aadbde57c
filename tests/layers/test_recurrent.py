"""Recurrent layers against their equations, one sequence and frame at a time."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.layers import recurrent

LENGTHS = np.array([7, 1, 4])


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def direction(p, cell, x, reverse):
  """The equations, of one sequence [T D]; returns the outputs, last first."""
  W, b = (np.asarray(p["input"][k], np.float64) for k in ("kernel", "bias"))
  U, d = (np.asarray(p["hidden"][k], np.float64) for k in ("kernel", "bias"))
  h, c, found = np.zeros(W.shape[-1]), np.zeros(W.shape[-1]), {}
  for t in range(len(x))[::-1] if reverse else range(len(x)):
    z = np.einsum("d,dgh->gh", x[t], W) + b
    u = np.einsum("k,kgh->gh", h, U) + d
    if cell == "lstm":
      i, f, g, o = z + u
      c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
      h = sigmoid(o) * np.tanh(c)
    else:
      r, z_, n = sigmoid(z[0] + u[0]), sigmoid(z[1] + u[1]), z[2]
      h = (1 - z_) * np.tanh(n + r * u[2]) + z_ * h
    found[t] = h
  return np.stack([found[t] for t in range(len(x))]), h


def whole(params, cell, x, depth):
  """All layers, in both directions, of one sequence."""
  lasts = []
  for n in range(depth):
    p = params["first"]
    if n:
      p = jax.tree.map(lambda leaf, n=n: leaf[n - 1], params["blocks"])
    ways = [
      direction(p[way], cell, x, way == "backward")
      for way in ("forward", "backward")
      if way in p
    ]
    x = np.concatenate([y for y, _ in ways], -1)
    lasts.append(np.concatenate([h for _, h in ways]))
  return x, np.stack(lasts)


def made(key, cell, both, depth=3, **keywords):
  model = recurrent.Recurrent(cell, 6, depth, bidirectional=both, **keywords)
  x = jax.random.normal(key, (3, 7, 5))
  params = nn.unbox(jax.eval_shape(model.init, key, x, LENGTHS))["params"]
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  leaves = [
    0.5 * jax.random.normal(k, leaf.shape)
    for k, leaf in zip(keys, leaves, strict=True)
  ]
  return model, x, jax.tree.unflatten(tree, leaves)


@pytest.mark.parametrize("cell", recurrent.GATES)
@pytest.mark.parametrize("both", [False, True])
def test_equals_the_equations_on_ragged_lengths(key, cell, both):
  model, x, params = made(key, cell, both)
  # Padding may hold anything, even what would spoil all it touches.
  keep = np.arange(7) < LENGTHS[:, None]
  spoilt = jnp.where(keep[:, :, None], x, jnp.nan)
  y, lasts = jax.jit(model.apply)({"params": params}, spoilt, LENGTHS)
  width = 12 if both else 6
  assert y.shape == (3, 7, width) and lasts.shape == (3, 3, width)
  for row, length in enumerate(LENGTHS):
    want, last = whole(params, cell, np.asarray(x[row, :length]), 3)
    np.testing.assert_allclose(y[row, :length], want, atol=2e-6)
    np.testing.assert_array_equal(y[row, length:], 0)
    np.testing.assert_allclose(lasts[:, row], last, atol=2e-6)


@pytest.mark.parametrize("cell", recurrent.GATES)
def test_no_lengths_are_full_lengths(key, cell):
  model, x, params = made(key, cell, True, depth=1)
  assert "blocks" not in params
  apply = jax.jit(model.apply)
  y, lasts = apply({"params": params}, x)
  full, ends = apply({"params": params}, x, np.full(3, 7))
  np.testing.assert_allclose(y, full, atol=1e-6)
  np.testing.assert_allclose(lasts, ends, atol=1e-6)


def test_gradients_do_not_see_padding(key):
  model, x, params = made(key, "lstm", True, depth=1)
  x = x.at[1, 1:].set(jnp.nan)

  @jax.jit
  def grads(x):
    def f(params, x):
      y, lasts = model.apply({"params": params}, x, LENGTHS)
      return (y**2).sum() + lasts.sum()

    return jax.grad(f, argnums=(0, 1))(params, x)

  of_params, of_x = grads(x)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(of_params))
  keep = np.arange(7) < LENGTHS[:, None]
  assert (np.asarray(of_x)[~keep] == 0).all()
  assert (np.abs(np.asarray(of_x)[keep]).max(-1) > 0).all()


def test_scanned_layers_are_the_unrolled_ones(key):
  model, x, params = made(key, "gru", False)
  unrolled = recurrent.Recurrent("gru", 6, 3, scan=False)
  y, _ = jax.jit(model.apply)({"params": params}, x, LENGTHS)
  z, _ = jax.jit(unrolled.apply)({"params": params}, x, LENGTHS)
  np.testing.assert_allclose(y, z, atol=1e-6)


def test_dropout_is_between_layers_only(key):
  def run(depth, rate):
    model, x, params = made(key, "gru", False, depth=depth, dropout=rate)
    rngs = {"dropout": jax.random.key(3)}
    apply = jax.jit(
      lambda p: model.apply({"params": p}, x, None, False, rngs=rngs)
    )
    return apply(params)[0]

  np.testing.assert_array_equal(run(1, 0.5), run(1, 0.0))
  dropped, plain = run(2, 0.5), run(2, 0.0)
  assert np.abs(dropped - plain).max() > 1e-2
  # All of it dropped: the second layer hears only its biases, in each row.
  silent = run(2, 1.0)
  np.testing.assert_allclose(silent, silent[:1].repeat(3, 0), atol=1e-6)


def test_half_precision_keeps_the_state_exact(key):
  model, x, params = made(key, "lstm", False, depth=1, dtype=jnp.bfloat16)
  full, _, _ = made(key, "lstm", False, depth=1)
  y, lasts = jax.jit(model.apply)({"params": params}, x)
  want, _ = jax.jit(full.apply)({"params": params}, x)
  assert y.dtype == lasts.dtype == jnp.bfloat16
  assert 0 < np.abs(y.astype(jnp.float32) - want).max() < 0.05


def test_starts_orthogonal_with_open_forget_gates(key):
  model = recurrent.Recurrent("lstm", 6, 2)
  variables = nn.unbox(jax.jit(model.init)(key, jnp.zeros((1, 2, 5))))
  p = jax.tree.map(lambda leaf: leaf[0], variables["params"]["blocks"])
  U = p["forward"]["hidden"]["kernel"]
  for gate in range(4):
    product = np.asarray(U[:, gate].T @ U[:, gate])
    np.testing.assert_allclose(product, np.eye(6), atol=1e-5)
  want = np.zeros((4, 6))
  want[1] = 1
  np.testing.assert_array_equal(p["forward"]["input"]["bias"], want)
  np.testing.assert_array_equal(p["forward"]["hidden"]["bias"], 0)


def test_an_unknown_cell_is_named(key):
  with pytest.raises(errors.InputError, match=r"cell = 'lstn'.*lstm"):
    recurrent.Direction("lstn", 4).init(key, jnp.zeros((1, 2, 3)))
