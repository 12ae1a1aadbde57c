import jax
import jax.numpy as jnp
import numpy as np

from mmjax.ops import masks
from mmjax.ops.kernels import reference

PLAIN = dict(bias=None, softcap=None, dropout_rate=0.0, dropout_seeds=None)


def test_equals_the_library_of_jax(key):
  q, k, v = (
    jax.random.normal(x, (2, 7, 4, 8)) for x in jax.random.split(key, 3)
  )
  got = reference.attend(q, k, v, mask=masks.Causal(), scale=0.3, **PLAIN)
  want = jax.nn.dot_product_attention(q, k, v, scale=0.3, is_causal=True)
  np.testing.assert_allclose(got, want, atol=2e-6)


def test_large_scores_neither_overflow_nor_lose_their_order(key):
  q = jnp.full((1, 1, 1, 4), 1e4)
  k = jnp.array([1.0, 1.1, -1.0]).reshape(1, 3, 1, 1) * jnp.ones((1, 3, 1, 4))
  v = jnp.arange(3.0).reshape(1, 3, 1, 1)
  got = reference.attend(q, k, v, mask=None, scale=1.0, **PLAIN)
  np.testing.assert_allclose(got, 1.0)


def test_scale_is_not_rounded_in_bfloat16(key):
  # 7**-0.5 is no bfloat16 number.
  q, k, v = (
    jax.random.normal(x, (1, 1, 1, 7), jnp.bfloat16)
    for x in jax.random.split(key, 3)
  )
  k = jnp.repeat(k, 4, axis=1) * jnp.arange(1.0, 5.0).reshape(1, 4, 1, 1)
  k = k.astype(jnp.bfloat16)
  v = jnp.eye(4, dtype=jnp.bfloat16).reshape(1, 4, 1, 4)
  got = reference.attend(q, k, v, mask=None, scale=7**-0.5, **PLAIN)
  scores = (
    np.asarray(q, np.float64)[0, :, 0] @ np.asarray(k, np.float64)[0, :, 0].T
  )
  want = np.exp(scores * 7**-0.5)
  np.testing.assert_allclose(
    got[0, :, 0].astype(np.float32), want / want.sum(), rtol=5e-3
  )
