import jax
import jax.numpy as jnp
import numpy as np

from mmjax.layers.norm import layer_norm


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
