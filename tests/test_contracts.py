"""What every plug-in owes the house: each new file is tested by this one.

A model declares `TINY`, keywords of its `build`, and `TINY_INPUTS`, for each
argument the axes after the batch and the dtype.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import build, tree
from mmjax.parallel import mesh, rules

BATCH = 8


def floats(out):
  """Returns the float arrays of an output tree."""
  leaves = jax.tree.leaves(out)
  return [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]


def tiny_inputs(module):
  inputs = {}
  for i, (name, (shape, dtype)) in enumerate(module.TINY_INPUTS.items()):
    rng, shape = np.random.default_rng(i), (BATCH, *shape)
    if jnp.issubdtype(dtype, jnp.integer):
      x = rng.integers(1, 48, shape)  # in every vocabulary
    elif dtype == "bool":  # both occur: what each alone reads is used
      x = np.arange(np.prod(shape)).reshape(shape) % 3 == 0
    else:
      x = rng.standard_normal(shape)
    inputs[name] = jnp.asarray(x.astype(dtype))
  return inputs


@pytest.fixture(scope="module")
def tiny(draw):
  """Takes a model's name; returns what `made` does, once for each model."""
  return functools.cache(functools.partial(made, draw))


def made(draw, name):
  """Returns boxed parameters, inputs, a scalar function and what it gives."""
  module = build.load("models", name)
  model = build.build("models", name=name, **module.TINY)
  inputs = tiny_inputs(module)
  boxed = draw(model, **inputs)

  rest = {k: v for k, v in nn.unbox(boxed).items() if k != "params"}

  def f(params, inputs):
    out = model.apply({"params": params, **rest}, **inputs)
    # Weights that differ per element: a plain sum of norms would be flat.
    return sum(
      (x * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)).sum()
      for x in floats(out)
    )

  params = nn.unbox(boxed)["params"]
  return (
    boxed["params"],
    inputs,
    f,
    jax.jit(jax.value_and_grad(f))(params, inputs),
  )


MODELS = pytest.mark.parametrize("name", build.names("models"))
# Compiling for eight devices takes long. The fast tests do it for one model of
# each kind of layers, the slow ones for the rest.
KINDS = ("vit", "dual_encoder", "decoder_lm", "bert", "resnet", "whisper")


@MODELS
def test_model_jits_and_every_parameter_has_a_gradient(tiny, name):
  boxed, _, _, (value, grads) = tiny(name)
  assert np.isfinite(value)
  for path, grad in tree.items(grads):
    assert np.isfinite(grad).all(), path
    # Adding the same to all scores of a query changes no softmax.
    if not path.endswith("attention/key/bias"):
      assert np.abs(grad).max() > 0, f"{path} is not used"
  for x in jax.tree.leaves(boxed):
    assert x.dtype == jnp.float32


@MODELS
def test_model_names_every_axis_from_the_table(tiny, name):
  boxed = tiny(name)[0]
  for box in jax.tree.leaves(boxed, is_leaf=rules.is_box):
    assert rules.is_box(box), box
    assert len(box.names) == box.unbox().ndim
    for axis in box.names:
      assert axis is None or axis in rules.RULES, box.names


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=() if name in KINDS else pytest.mark.slow)
    for name in build.names("models")
  ],
)
def test_model_on_a_mesh_is_the_same(tiny, name):
  boxed, inputs, f, want = tiny(name)
  layout = rules.Layout(mesh.make_mesh(dict(data=2, fsdp=2, tensor=2)))
  with layout.use():
    where = rules.shardings(layout, boxed)
    params = jax.device_put(nn.unbox(boxed), where)
    inputs = jax.device_put(
      inputs, {k: layout.batch_sharding(x.ndim) for k, x in inputs.items()}
    )
    step = jax.jit(
      lambda *a: jax.value_and_grad(f)(*a),
      out_shardings=(layout.replicated, where),
    )
    got = step(params, inputs)
  split = [not x.sharding.is_fully_replicated for x in jax.tree.leaves(params)]
  assert sum(split) > len(split) / 3
  for (path, a), b in zip(tree.items(want), jax.tree.leaves(got), strict=True):
    np.testing.assert_allclose(
      a, np.asarray(b), rtol=2e-4, atol=2e-4, err_msg=path
    )
