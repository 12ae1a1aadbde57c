import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.layers.mlp import MLP, activation
from mmjax.ops import choice

X = np.linspace(-4, 4, 41)


@pytest.mark.parametrize(
  "name, f",
  [
    (
      "gelu",
      lambda x: (
        x / 2 * (1 + math.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))
      ),
    ),
    ("gelu_exact", lambda x: x / 2 * (1 + math.erf(x / 2**0.5))),
    ("silu", lambda x: x / (1 + math.exp(-x))),
    ("quick_gelu", lambda x: x / (1 + math.exp(-1.702 * x))),
    ("mish", lambda x: x * math.tanh(math.log1p(math.exp(x)))),
    ("leaky_relu", lambda x: max(x, 0.01 * x)),
    ("linear", lambda x: x),
    ("relu6", lambda x: min(max(x, 0), 6)),
    ("relu_squared", lambda x: max(x, 0) ** 2),
    ("hard_silu", lambda x: x * min(max(x + 3, 0), 6) / 6),
    (
      "laplace",
      lambda x: (1 + math.erf((x - 0.5**0.5) * (2 * math.pi) ** 0.5)) / 2,
    ),
    ("sigmoid", lambda x: 1 / (1 + math.exp(-x))),
    ("tanh", math.tanh),
  ],
)
def test_activations(name, f):
  got = activation(name)(jnp.float32(X))
  np.testing.assert_allclose(got, [f(x) for x in X], atol=1e-6)


def test_the_exact_gelu_keeps_its_digits_below_zero_in_bfloat16():
  x = jnp.array([-2.5, -1.0, 0.5], jnp.bfloat16)
  got = activation("gelu_exact")(x).astype(jnp.float32)
  want = [v / 2 * math.erfc(-v / 2**0.5) for v in x.tolist()]
  np.testing.assert_allclose(got, want, rtol=0.02)


def test_the_clipped_gelu_ends_at_10():
  x = jnp.array([-20.0, 1.0, 9.0, 12.0])
  got = activation("gelu_clipped")(x)
  np.testing.assert_allclose(got, [0, 0.8413447, 9, 10], atol=1e-6)


def test_unknown_activation_names_the_nearest():
  with pytest.raises(errors.InputError, match="'quick_gelu'"):
    activation("quickgelu")


def test_mlp_is_two_dense_layers(key):
  x = jax.random.normal(key, (2, 3, 8))
  mlp = MLP(16, act="gelu_exact")
  y, variables = jax.jit(mlp.init_with_output)(key, x)
  up, down = (variables["params"][n] for n in ("up", "down"))
  assert up["kernel"].names == ("embed", "mlp")
  assert down["kernel"].names == ("mlp", "embed")
  # NumPy arrays: conftest forbids JAX to broadcast ranks.
  up, down = (jax.tree.map(np.asarray, nn.unbox(p)) for p in (up, down))
  h = np.asarray(x) @ up["kernel"] + up["bias"]
  h = h * 0.5 * (1 + np.vectorize(math.erf)(h / 2**0.5))
  want = h @ down["kernel"] + down["bias"]
  np.testing.assert_allclose(y, want, atol=1e-5)


def test_another_width_comes_out(key):
  x = jax.random.normal(key, (2, 3, 8))
  y, variables = MLP(6, act="relu", out_width=5).init_with_output(key, x)
  up, down = (
    jax.tree.map(np.asarray, nn.unbox(variables)["params"][n])
    for n in ("up", "down")
  )
  hidden = np.maximum(np.asarray(x) @ up["kernel"] + up["bias"], 0)
  want = hidden @ down["kernel"] + down["bias"]
  assert y.shape == (2, 3, 5)
  np.testing.assert_allclose(y, want, atol=1e-5)


def test_gated_mlp_multiplies_by_the_gate(key):
  x = jax.random.normal(key, (2, 3, 8))
  mlp = MLP(16, act="relu", gated=True, use_bias=False)
  y, variables = jax.jit(mlp.init_with_output)(key, x)
  p = jax.tree.map(np.asarray, nn.unbox(variables)["params"])
  assert {name: list(v) for name, v in p.items()} == {
    name: ["kernel"] for name in ("up", "gate", "down")
  }
  x = np.asarray(x)
  hidden = np.maximum(x @ p["gate"]["kernel"], 0) * (x @ p["up"]["kernel"])
  np.testing.assert_allclose(y, hidden @ p["down"]["kernel"], atol=1e-5)


def test_hidden_units_can_be_normalised(key):
  x = jax.random.normal(key, (2, 3, 8))
  mlp = MLP(16, act="relu", norm="layer_no_scale", epsilon=0.1)
  y, variables = jax.jit(mlp.init_with_output)(key, x)
  p = jax.tree.map(np.asarray, nn.unbox(variables)["params"])
  assert list(p["norm"]) == ["bias"]
  h = np.maximum(np.asarray(x) @ p["up"]["kernel"] + p["up"]["bias"], 0)
  h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 0.1)
  want = h @ p["down"]["kernel"] + p["down"]["bias"]
  np.testing.assert_allclose(y, want, atol=1e-5)


def test_dropout_needs_train(key):
  x = jax.random.normal(key, (2, 3, 8))
  mlp = MLP(16, dropout=0.5)
  variables = jax.jit(mlp.init)(key, x)
  still = mlp.apply(variables, x)
  dropped = mlp.apply(variables, x, False, rngs={"dropout": key})
  assert np.abs(still - dropped).max() > 1e-3


@pytest.mark.parametrize("platform", ("cpu", "gpu"))
@pytest.mark.parametrize("gated", (False, True))
def test_but_on_a_tpu_the_backward_pass_bends_anew(
  gated, platform, key, monkeypatch
):
  x = jax.random.normal(key, (2, 3, 8))
  mlp = MLP(16, gated=gated)
  params = mlp.init(key, x)["params"]

  def gradients():
    # A function of its own: traces of one are kept.
    return jax.grad(lambda p, x: jnp.square(mlp.apply({"params": p}, x)).sum())

  monkeypatch.setattr(choice, "platform", lambda: "tpu")
  plain = gradients()
  want, before = plain(params, x), str(jax.make_jaxpr(plain)(params, x))
  monkeypatch.setattr(choice, "platform", lambda: platform)
  anew = gradients()
  after = str(jax.make_jaxpr(anew)(params, x))
  assert (before.count("tanh"), after.count("tanh")) == (1, 2)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    want,
    anew(params, x),
  )
