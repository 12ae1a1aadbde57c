"""Every file of tasks/ keeps the contract of `typing.Task`."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import build, errors, tree
from mmjax.parallel import mesh, rules

NAMES = build.names("tasks")
ROWS = 8


@functools.cache
def parts(name):
  """Returns (task, batch, unboxed variables) of the plug-in's TINY."""
  module = build.load("tasks", name)
  task = build.build("tasks", name=name, **module.TINY)
  rng = np.random.default_rng(0)
  batch = {
    key: jnp.asarray(rng.integers(0, 16, (ROWS, *shape)), dtype)
    for key, (shape, dtype) in module.TINY_INPUTS.items()
  }
  variables = nn.unbox(jax.jit(task.init)(jax.random.key(0), batch))
  return task, batch, variables


def gradient(task, variables, batch):
  params, mutable = variables["params"], dict(variables)
  del mutable["params"]
  rngs = {"dropout": jax.random.key(1)}

  def loss(params, mutable, batch):
    value, aux = task.loss(params, mutable, batch, rngs)
    return value, aux

  return jax.value_and_grad(loss, has_aux=True)(params, mutable, batch)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_float32_and_named(name):
  task, batch, variables = parts(name)
  assert {x.dtype for x in jax.tree.leaves(variables["params"])} == {
    jnp.dtype("float32")
  }
  boxed = jax.eval_shape(task.init, jax.random.key(0), batch)
  leaves = jax.tree.leaves(boxed["params"], is_leaf=rules.is_box)
  assert all(rules.is_box(x) for x in leaves), tree.names(variables)


@pytest.mark.parametrize("name", NAMES)
def test_steps_and_is_the_same_on_a_mesh(name):
  task, batch, variables = parts(name)
  (value, aux), grads = jax.jit(functools.partial(gradient, task))(
    variables, batch
  )
  assert value.shape == () and np.isfinite(value)
  assert all(m.shape == () and np.isfinite(m) for m in aux.metrics.values())
  for leaf, g in tree.items(grads):
    assert np.all(np.isfinite(g)), leaf
  assert any(np.any(g != 0) for g in jax.tree.leaves(grads))
  layout = rules.Layout(mesh.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
  boxed = jax.eval_shape(task.init, jax.random.key(0), batch)
  placed = jax.device_put(variables, rules.shardings(layout, boxed))
  split = {
    k: jax.device_put(v, layout.batch_sharding(v.ndim))
    for k, v in batch.items()
  }
  run = layout.jit(functools.partial(gradient, task))
  (sharded, _), sharded_grads = run(placed, split)
  np.testing.assert_allclose(sharded, value, rtol=1e-5)
  for (leaf, got), want in zip(
    tree.items(sharded_grads), jax.tree.leaves(grads), strict=True
  ):
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5, err_msg=leaf)


@pytest.mark.parametrize("name", NAMES)
def test_predicts_a_row_for_each_row(name):
  task, batch, variables = parts(name)
  assert task.predict
  for predict in task.predict.values():
    out = jax.eval_shape(predict, variables, batch)
    assert all(x.shape[0] == ROWS for x in jax.tree.leaves(out))


@pytest.mark.parametrize("name", NAMES)
def test_unknown_keyword(name):
  with pytest.raises(errors.InputError, match="no such name"):
    build.build("tasks", name=name, **build.load("tasks", name).TINY, modell={})
