import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops import in_turn
from mmjax.parallel import mesh

MB = 2**20


@pytest.mark.parametrize(
  "rows, size, want",
  [
    (8, 32 * MB, 1),
    (8, 33 * MB, 4),
    (8, 40 * MB, 4),
    (6, 40 * MB, 6),
    (7, 40 * MB, 7),
    (2, 900 * MB, 2),
  ],
)
def test_the_fewest_parts_that_fit(rows, size, want):
  assert in_turn.parts(rows, size) == want


def test_several_devices_have_their_rows_already():
  with jax.set_mesh(mesh.make_mesh({"data": 8})):
    assert in_turn.parts(8, 900 * MB) == 1
  with jax.set_mesh(mesh.make_mesh({"data": 1}, devices=jax.devices()[:1])):
    assert in_turn.parts(8, 900 * MB) == 8


def mix(x, weights):
  return jnp.tanh(x @ weights["up"]) @ weights["down"]


def arrays():
  rng = np.random.default_rng(0)
  shapes = dict(x=(6, 3, 4), up=(4, 16), down=(16, 5))
  made = {k: rng.normal(size=s) for k, s in shapes.items()}
  return made.pop("x"), made


def test_rows_in_turn_are_what_numpy_says():
  x, weights = arrays()
  got = jax.jit(lambda x, w: in_turn.in_turn(mix, x, w, 900 * MB))(
    jnp.float32(x), jax.tree.map(jnp.float32, weights)
  )
  want = np.tanh(x @ weights["up"]) @ weights["down"]
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_derivative_is_that_of_finite_differences():
  x, weights = arrays()
  rng = np.random.default_rng(1)
  towards = jax.tree.map(lambda a: rng.normal(size=a.shape), (x, weights))

  def exact(step):
    x_, w_ = jax.tree.map(lambda a, d: a + step * d, (x, weights), towards)
    return np.sum((np.tanh(x_ @ w_["up"]) @ w_["down"]) ** 2)

  def loss(x, w):
    return jnp.sum(in_turn.in_turn(mix, x, w, 900 * MB) ** 2)

  gradient = jax.grad(loss, argnums=(0, 1))(
    jnp.float32(x), jax.tree.map(jnp.float32, weights)
  )
  got = sum(
    np.sum(np.asarray(g, np.float64) * d)
    for g, d in zip(
      jax.tree.leaves(gradient), jax.tree.leaves(towards), strict=True
    )
  )
  want = (exact(1e-5) - exact(-1e-5)) / 2e-5
  np.testing.assert_allclose(got, want, rtol=1e-4)


def test_a_part_is_in_memory_at_a_time():
  x = jax.ShapeDtypeStruct((8, 100, 8), jnp.float32)
  weights = dict(up=jnp.ones((8, 4096)), down=jnp.ones((4096, 8)))

  def temporary(size):
    step = jax.jit(lambda x, w: in_turn.in_turn(mix, x, w, size))
    return step.lower(x, weights).compile().memory_analysis().temp_size_in_bytes

  hidden = 4 * 800 * 4096
  assert temporary(0) >= hidden
  assert temporary(900 * MB) < hidden / 4
