import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops import masks
from mmjax.ops.kernels import cudnn, reference

PLAIN = dict(bias=None, softcap=None, dropout_rate=0.0, dropout_seeds=None)
LENGTHS = np.array([4, 0])


def refusal(T=6, S=6, H=64, V=64, dtype=jnp.bfloat16, mask=None, **kw):
  shapes = (2, T, 4, H), (2, S, 2, H), (2, S, 2, V)
  bias = kw.pop("bias_shape", None)
  return cudnn.refuses(*shapes, dtype, mask, bias, **kw)


@pytest.mark.parametrize(
  "kw, words",
  [
    (dict(softcap=1.0), "softcap"),
    (dict(dropout_rate=0.1), "seeds"),
    (dict(bias_shape=(1, 1, 1, 6)), "gradient of a bias"),
    (dict(dtype=jnp.float32), "not float32"),
    (dict(H=136, V=136), "136"),
    (dict(H=68, V=68), "multiple of 8"),
    (dict(V=32), "64 and 32"),
    (dict(mask=masks.Local(2, 2)), "no other mask"),
    (dict(mask=masks.Causal(), S=8), "square"),
    (dict(mask=masks.Causal() | masks.KeyPadding(LENGTHS)), "no other mask"),
    (dict(T=5), "odd lengths, 5 x 6"),
    (dict(S=197), "odd lengths, 6 x 197"),
  ],
)
def test_refuses(kw, words):
  assert words in refusal(**kw)


def test_takes_what_is_right():
  assert refusal() is None
  assert refusal(mask=masks.Causal() & masks.KeyPadding(LENGTHS)) is None
  assert refusal(T=5, named=True) is None
  with pytest.raises(ValueError, match="other mask"):
    x = jnp.ones((1, 2, 1, 8), jnp.bfloat16)
    cudnn.attend(x, x, x, mask=masks.Local(1, 1), scale=1.0, **PLAIN)


@pytest.mark.parametrize(
  "mask",
  [
    None,
    masks.Causal(),
    masks.KeyPadding(LENGTHS),
    masks.KeyPadding(LENGTHS) & masks.Causal(),
  ],
)
def test_asks_for_the_same_attention(monkeypatch, key, mask):
  """The call, with JAX's own attention in the place of cuDNN's."""
  call = jax.nn.dot_product_attention

  def in_place(*args, implementation, **kw):
    assert implementation == "cudnn"
    return call(*args, implementation="xla", **kw)

  monkeypatch.setattr(jax.nn, "dot_product_attention", in_place)
  q, k, v = (
    jax.random.normal(x, (2, 6, n, 8), jnp.bfloat16)
    for x, n in zip(jax.random.split(key, 3), (4, 2, 2), strict=True)
  )

  def grads(attend):
    def f(q, k, v):
      y = attend(q, k, v, mask=mask, scale=0.3, **PLAIN)
      return jnp.square(y.astype(jnp.float32)).sum(), y

    return jax.jit(jax.grad(f, (0, 1, 2), has_aux=True))(q, k, v)

  got, want = grads(cudnn.attend), grads(reference.attend)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(a, b, atol=0.03 * np.abs(b).max())
