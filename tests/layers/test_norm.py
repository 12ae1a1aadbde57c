import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.layers.norm import layer_norm, norm, placed


def test_equals_float64_and_computes_in_float32(key):
  x = 3.0 + 2.0 * np.random.default_rng(0).normal(size=(2, 3, 64))
  want = (x - x.mean(-1, keepdims=True)) / np.sqrt(
    x.var(-1, keepdims=True) + 1e-6
  )
  for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)):
    norm = layer_norm(dtype=dtype)
    y, variables = jax.jit(norm.init_with_output)(key, jnp.float32(x))
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype(np.float32), want, atol=tolerance)
    assert variables["params"]["scale"].names == ("norm",)
    assert variables["params"]["scale"].unbox().dtype == jnp.float32


@pytest.mark.parametrize(
  "kind, centred",
  [("layer_no_bias", True), ("rms", False), ("rms_plus_one", False)],
)
def test_other_kinds_by_their_formulas(key, kind, centred):
  rng = np.random.default_rng(1)
  x, scale = 3.0 + rng.normal(size=(2, 3, 64)), rng.normal(size=64)
  variables = {"params": {"scale": jnp.float32(scale)}}
  got = norm(kind, epsilon=0.1).apply(variables, jnp.float32(x))
  if centred:
    x = x - x.mean(-1, keepdims=True)
  want = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1)
  want = want * (1 + scale if kind == "rms_plus_one" else scale)
  np.testing.assert_allclose(got, want, atol=1e-5)
  # At the start each scales by 1.
  _, start = norm(kind).init_with_output(key, jnp.float32(x))
  value = 0.0 if kind == "rms_plus_one" else 1.0
  assert (start["params"]["scale"].unbox() == value).all()
  assert list(start["params"]) == ["scale"]


def test_without_a_scale_there_is_a_bias_only(key):
  x = 3.0 + np.random.default_rng(1).normal(size=(2, 3, 64))
  bias = np.linspace(-1, 1, 64)
  variables = {"params": {"bias": jnp.float32(bias)}}
  got = norm("layer_no_scale", epsilon=0.1).apply(variables, jnp.float32(x))
  x = x - x.mean(-1, keepdims=True)
  want = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) + bias
  np.testing.assert_allclose(got, want, atol=1e-5)
  _, start = norm("layer_no_scale").init_with_output(key, jnp.float32(x))
  assert list(start["params"]) == ["bias"]


def test_rms_without_a_scale_has_no_parameters(key):
  x = 3.0 + np.random.default_rng(1).normal(size=(2, 3, 64))
  module = norm("rms_no_scale", epsilon=0.1)
  got, variables = module.init_with_output(key, jnp.float32(x))
  want = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1)
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert not variables


def test_places_of_norms():
  got = placed("normformer", "layer", False)
  assert got == dict(
    norm="layer_no_scale",
    norm_after="layer",
    norm_after_mlp=None,
    norm_mlp="layer_no_scale",
  )
  got = placed("cogview", "rms", True)
  assert got == dict(
    norm="rms", norm_after="rms", norm_after_mlp="rms", norm_mlp=None
  )
  assert set(placed("preln", "rms", False).values()) == {"rms_no_scale", None}


def test_unknown_kind_names_the_known():
  with pytest.raises(errors.InputError, match=r"norm = 'rmsnorm'.*'rms'"):
    norm("rmsnorm")
  with pytest.raises(errors.InputError, match=r"norm = 'layer_no_bias'"):
    placed("preln", "layer_no_bias", True)
  with pytest.raises(errors.InputError, match=r"norms = 'postln'"):
    placed("postln", "layer", True)
