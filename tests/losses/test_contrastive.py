"""The three forms against float64 numpy, each other, and their memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.losses import contrastive
from mmjax.parallel import mesh, rules

B, D = 16, 5
MESHES = {
  "none": None,
  "data8": {"data": 8},
  "data2fsdp4": {"data": 2, "fsdp": 4},
}


def layout_of(name, meshes=None):
  axes = (meshes or MESHES)[name]
  return None if axes is None else rules.Layout(mesh.make_mesh(axes))


def inputs(batch=B, width=D, seed=0):
  rng = np.random.default_rng(seed)
  image, text = rng.normal(size=(2, batch, width))
  image /= np.linalg.norm(image, axis=1, keepdims=True)
  text /= np.linalg.norm(text, axis=1, keepdims=True)
  return image, text, np.float64(7.0), np.float64(-3.0)


def truth(kind, image, text, t, b):
  """The definition, in float64, without any trick."""
  logits = t * image @ text.T
  if kind == "softmax":
    rows = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    columns = np.exp(logits) / np.exp(logits).sum(0, keepdims=True)
    both = np.log(np.diag(rows)) + np.log(np.diag(columns))
    return -both.mean() / 2
  y = 2 * np.eye(len(image)) - 1
  return np.log1p(np.exp(-y * (logits + b))).sum() / len(image)


def truth_gradients(kind, args, eps=1e-5):
  """Central differences of the definition."""
  gradients = []
  for k, x in enumerate(args):
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
      values = []
      for sign in (1, -1):
        moved = [np.array(a) for a in args]
        moved[k][index] += sign * eps
        values.append(truth(kind, *moved))
      gradient[index] = (values[0] - values[1]) / (2 * eps)
    gradients.append(gradient)
  return gradients


def loss(kind, impl, chunk=1024):
  def f(image, text, t, b):
    if kind == "softmax":
      return contrastive.softmax(image, text, t, impl=impl, chunk=chunk)
    return contrastive.sigmoid(image, text, t, b, impl=impl, chunk=chunk)

  return f


def value_and_gradients(kind, impl, layout, args, chunk=3):
  f = jax.jit(
    jax.value_and_grad(loss(kind, impl, chunk), (0, 1, 2, 3), has_aux=True)
  )
  args = [jnp.asarray(a, jnp.float32) for a in args]
  if layout is None:
    return f(*args)
  with layout.use():
    args[:2] = [jax.device_put(a, layout.batch_sharding(2)) for a in args[:2]]
    return f(*args)


@pytest.fixture(scope="module")
def truths():
  args = inputs()
  return {
    kind: (truth(kind, *args), truth_gradients(kind, args))
    for kind in ("softmax", "sigmoid")
  }


@pytest.mark.parametrize("impl", contrastive.IMPLS)
@pytest.mark.parametrize(
  ("kind", "where"),
  [
    ("softmax", "none"),
    ("sigmoid", "none"),
    ("softmax", "data8"),
    ("sigmoid", "data8"),
    ("softmax", "data2fsdp4"),
  ],
)
def test_value_and_gradients_are_the_definition(kind, impl, where, truths):
  (value, metrics), gradients = value_and_gradients(
    kind, impl, layout_of(where), inputs()
  )
  want, want_gradients = truths[kind]
  np.testing.assert_allclose(value, want, rtol=2e-6)
  for got, expected in zip(gradients, want_gradients, strict=True):
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)
  logits = inputs()[0] @ inputs()[1].T
  off = np.where(np.eye(B, dtype=bool), -np.inf, logits)
  own = np.diag(logits)
  np.testing.assert_allclose(
    [metrics["batch/image_to_text"], metrics["batch/text_to_image"]],
    [np.mean(own > off.max(1)), np.mean(own > off.max(0))],
  )
  assert float(metrics["temperature"]) == 7.0
  assert ("bias" in metrics) == (kind == "sigmoid")


def test_by_hand():
  # Two pairs, logits t * identity: each row's loss is log(1 + e^-t).
  eye = jnp.eye(2)
  value, metrics = jax.jit(contrastive.softmax)(eye, eye, 2.0)
  np.testing.assert_allclose(value, np.log1p(np.exp(-2.0)), rtol=1e-6)
  assert float(metrics["batch/image_to_text"]) == 1.0
  value, _ = jax.jit(contrastive.sigmoid)(eye, eye, 2.0, -1.0)
  # One positive at logit 1 and one negative at logit -1 for each row.
  np.testing.assert_allclose(value, 2 * np.log1p(np.exp(-1.0)), rtol=1e-6)


@pytest.mark.parametrize("impl", contrastive.IMPLS)
def test_collapsed_embeddings_win_nothing(impl):
  same = jnp.ones((4, 1))
  value, metrics = jax.jit(loss("softmax", impl, 2))(same, same, 5.0, 0.0)
  np.testing.assert_allclose(value, np.log(4), rtol=1e-6)
  assert float(metrics["batch/image_to_text"]) == 0.0


@pytest.mark.parametrize("impl", contrastive.IMPLS)
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_large_logits_stay_finite(kind, impl):
  image, text, _, b = inputs()
  (value, _), gradients = value_and_gradients(
    kind, impl, None, (image, text, 1000.0, b)
  )
  assert np.isfinite(value)
  assert all(np.all(np.isfinite(g)) for g in gradients)


def test_wrong_pairing_costs_more():
  image, _, t, b = inputs()
  right = truth("softmax", image, image, t, b)
  (value, _), _ = value_and_gradients(
    "softmax", "ring", layout_of("data8"), (image, np.roll(image, 1, 0), t, b)
  )
  assert float(value) > right + 1


def test_bfloat16_embeddings():
  image, text, t, b = (jnp.asarray(x, jnp.bfloat16) for x in inputs())
  t, b = t.astype(jnp.float32), b.astype(jnp.float32)
  values = [
    jax.jit(jax.value_and_grad(loss("softmax", impl, 4), has_aux=True))(
      image, text, t, b
    )
    for impl in contrastive.IMPLS
  ]
  for (value, _), gradient in values:
    np.testing.assert_allclose(value, values[0][0][0], rtol=2e-2)
    assert gradient.dtype == jnp.bfloat16


def temp_bytes(kind, impl, batch, layout, width=8, chunk=64):
  f = jax.jit(jax.grad(lambda *a: loss(kind, impl, chunk)(*a)[0], (0, 1, 2, 3)))
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  if layout is None:
    rows = jax.ShapeDtypeStruct((batch, width), jnp.float32)
    compiled = f.lower(rows, rows, scalar, scalar).compile()
  else:
    rows = jax.ShapeDtypeStruct(
      (batch, width), jnp.float32, sharding=layout.batch_sharding(2)
    )
    with layout.use():
      compiled = f.lower(rows, rows, scalar, scalar).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
  ("kind", "where", "impls"),
  [
    ("softmax", "none", ("dense", "chunked")),
    ("softmax", "data8", ("chunked", "ring")),
    ("sigmoid", "data8", ("dense", "chunked", "ring")),
  ],
)
def test_memory_of_chunks_and_rings_grows_linearly(kind, where, impls):
  layout = layout_of(where)
  for impl in impls:
    small, large = (
      temp_bytes(kind, impl, batch, layout) for batch in (2048, 4096)
    )
    low, high = (3.5, 4.5) if impl == "dense" else (1.0, 2.3)
    assert low < large / small < high, (impl, small, large)


def collectives(impl, batch=64, width=8):
  layout = layout_of("data2fsdp4")
  rows = jax.ShapeDtypeStruct(
    (batch, width), jnp.float32, sharding=layout.batch_sharding(2)
  )
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  with layout.use():
    f = jax.grad(lambda *a: loss("sigmoid", impl, 4)(*a)[0], (0, 1, 2, 3))
    return jax.jit(f).lower(rows, rows, scalar, scalar).compile().as_text()


def test_only_the_ring_never_gathers():
  assert "all-gather" in collectives("chunked")
  ring = collectives("ring")
  assert "all-gather" not in ring
  assert "collective-permute" in ring


@pytest.mark.parametrize(
  ("impl", "chunk", "batch", "words"),
  [
    ("rings", 4, 16, ["rings", "'ring'"]),
    ("chunked", 0, 16, ["chunk = 0"]),
    ("ring", 4, 12, ["batch_size = 12", "multiple of 8"]),
  ],
)
def test_bad_input(impl, chunk, batch, words):
  image, text, t, _ = (jnp.asarray(x, jnp.float32) for x in inputs(batch))
  with layout_of("data8").use(), pytest.raises(errors.InputError) as error:
    contrastive.softmax(image, text, t, impl=impl, chunk=chunk)
  assert all(word in str(error.value) for word in words)
