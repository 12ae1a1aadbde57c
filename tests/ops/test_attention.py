import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.ops import dropout, masks
from mmjax.ops.attention import attention

SEGMENTS = masks.Segments(
  np.array([[1, 1, 2, 0, 3], [1, 2, 2, 2, 0]], np.int32),
  np.array([[1, 2, 2, 0, 0, 1], [2, 2, 1, 1, 0, 3]], np.int32),
)


def inputs(B=2, T=5, S=6, N=4, K=2, H=8, dtype=np.float32):
  rng = np.random.default_rng(0)
  q = rng.normal(size=(B, T, N, H)).astype(dtype)
  k = rng.normal(size=(B, S, K, H)).astype(dtype)
  v = rng.normal(size=(B, S, K, H + 1)).astype(dtype)
  return q, k, v


def truth(q, k, v, mask=None, bias=None, scale=None, softcap=None, keep=None):
  """Attention head by head, query by query, in float64."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  B, T, N, H = q.shape
  S, K = k.shape[1:3]
  out = np.zeros((B, T, N, v.shape[-1]))
  scale = H**-0.5 if scale is None else scale
  allowed = np.ones((B, 1, T, S), bool)
  if mask is not None:
    allowed &= np.asarray(masks.dense(mask, T, S))
  for b in range(B):
    for n in range(N):
      for t in range(T):
        s = k[b, :, n * K // N] @ q[b, t, n] * scale
        if softcap is not None:
          s = softcap * np.tanh(s / softcap)
        if bias is not None:
          s = s + np.broadcast_to(bias, (B, N, T, S))[b, n, t]
        seen = np.flatnonzero(allowed[b, 0, t])
        if len(seen) == 0:
          continue
        w = np.exp(s[seen] - s[seen].max())
        w = w / w.sum()
        if keep is not None:
          w = w * keep[b, n, t][seen]
        out[b, t, n] = w @ v[b, seen, n * K // N]
  return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
  "mask", [None, masks.Causal(1), masks.Local(1, 1) | masks.Prefix(1), SEGMENTS]
)
def test_equals_float64(kv_heads, mask):
  q, k, v = inputs(K=kv_heads)
  got = jax.jit(lambda *a: attention(*a, mask=mask))(q, k, v)
  np.testing.assert_allclose(got, truth(q, k, v, mask), atol=2e-6)


@pytest.mark.parametrize("shape", [(2, 4, 5, 6), (1, 4, 1, 6), (1, 1, 5, 6)])
def test_bias_scale_and_softcap(shape):
  q, k, v = inputs()
  bias = np.random.default_rng(1).normal(size=shape).astype(np.float32)
  kw = dict(bias=bias, scale=0.7, softcap=1.5)
  got = attention(q, k, v, mask=masks.Causal(1), **kw)
  np.testing.assert_allclose(
    got, truth(q, k, v, masks.Causal(1), **kw), atol=2e-6
  )
  for field in kw:  # each of them counts
    less = {f: x for f, x in kw.items() if f != field}
    other = attention(q, k, v, mask=masks.Causal(1), **less)
    assert np.abs(other - got).max() > 1e-3, field


def test_bfloat16_keeps_a_float32_softmax():
  q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in inputs(S=300, H=64))
  got = attention(q, k, v)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(got.astype(np.float32), truth(q, k, v), atol=4e-3)


def test_gradients_equal_finite_differences():
  q, k, v = inputs(B=2, T=5, S=6, N=2, K=1, H=3)
  bias = np.random.default_rng(2).normal(size=(1, 2, 5, 6)).astype(np.float32)
  rng = np.random.default_rng(3)
  out = rng.normal(size=(2, 5, 2, 4))

  def f(q, k, v, bias):
    y = attention(q, k, v, bias=bias, mask=SEGMENTS, softcap=2.0)
    return (y * out.astype(np.float32)).sum()

  args = [q, k, v, bias]
  grads = jax.jit(jax.grad(f, (0, 1, 2, 3)))(*args)

  def exact(*args):
    y = truth(*args[:3], SEGMENTS, args[3], softcap=2.0)
    return (y * out).sum()

  for i, grad in enumerate(grads):
    step = rng.normal(size=args[i].shape)
    ends = []
    for sign in (1, -1):
      moved = [x.astype(np.float64) for x in args]
      moved[i] = moved[i] + sign * 1e-5 * step
      ends.append(exact(*moved))
    want = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose((grad * step).sum(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["mask", "bias"])
def test_a_row_that_sees_nothing_is_zero_with_zero_gradient(how):
  q, k, v = inputs(T=3)
  if how == "mask":
    kw = dict(mask=masks.KeyPadding(jnp.array([0, 4])))
  else:
    kw = dict(bias=jnp.zeros((2, 1, 1, 6)).at[0].set(-jnp.inf))

  def f(q, k, v):
    y = attention(q, k, v, **kw)
    return jnp.square(y + 1).sum(), y

  grads, y = jax.jit(jax.grad(f, (0, 1, 2), has_aux=True))(q, k, v)
  assert (y[0] == 0).all()
  assert (y[1] != 0).any()
  for grad in grads:
    assert np.isfinite(grad).all()
    assert (grad[0] == 0).all()
    assert (grad[1] != 0).any()


def test_dropout_drops_by_seed_and_keeps_the_mean(key):
  q, k, v = inputs(B=2, N=2, K=2)
  seeds = dropout.seeds(key, 2, 2)
  got = attention(q, k, v, dropout_rate=0.25, dropout_rng=key)
  kept = dropout.keep(
    seeds[:, :, None, None],
    np.arange(5).reshape(1, 1, 5, 1),
    np.arange(6).reshape(1, 1, 1, 6),
    0.25,
  )
  assert 0 < kept.sum() < kept.size
  keep = np.asarray(kept) / 0.75
  np.testing.assert_allclose(got, truth(q, k, v, keep=keep), atol=2e-6)
  same = attention(q, k, v, dropout_rate=0.25, dropout_rng=seeds)
  np.testing.assert_array_equal(got, same)
  raw = attention(
    q, k, v, dropout_rate=0.25, dropout_rng=jax.random.key_data(key)
  )
  np.testing.assert_array_equal(got, raw)
  # Seeds belong to rows and heads: half of the batch draws what it drew.
  half = attention(
    q[1:], k[1:], v[1:], dropout_rate=0.25, dropout_rng=seeds[1:]
  )
  np.testing.assert_allclose(half, got[1:], atol=1e-6)


@pytest.mark.parametrize(
  "kw, words",
  [
    (dict(impl="flash"), "impl = 'flash'.*Known: .*xla"),
    (dict(dropout_rate=0.1), "needs dropout_rng"),
    (dict(dropout_rate=1.0), "not in"),
    (
      dict(dropout_rate=0.1, dropout_rng=np.zeros((2, 3), np.uint32)),
      r"\(2, 3\).*\(2, 4\)",
    ),
    (dict(bias=np.zeros((5, 6))), "does not broadcast"),
    (dict(bias=np.zeros((1, 3, 1, 1))), "does not broadcast"),
    (dict(mask=masks.KeyPadding(np.ones(3))), "KeyPadding.lengths"),
  ],
)
def test_bad_arguments_are_named(kw, words):
  with pytest.raises(errors.InputError, match=words):
    attention(*inputs(), **kw)


def test_shapes_that_do_not_fit_are_named():
  q, k, v = inputs()
  with pytest.raises(errors.InputError, match="do not fit"):
    attention(q[:, :, :3], k, v)
  with pytest.raises(errors.InputError, match="do not fit"):
    attention(q, k, v[:, 1:])
  with pytest.raises(errors.InputError, match="arrays"):
    attention(q[0], k, v)
  with pytest.raises(errors.InputError, match="floats"):
    attention(q.astype(np.int32), k, v)
