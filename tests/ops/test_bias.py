import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.ops import bias as biases
from mmjax.ops import masks
from mmjax.ops.attention import attention, settled
from mmjax.ops.bias import Buckets, Offsets, relative_buckets


def test_relative_buckets_of_t5():
  # Recorded of T5Attention._relative_position_bucket, 8 buckets up to 20.
  distance = np.array([[-30, -12, -7, -4, -3, -1, 0, 1, 2, 5, 9, 19, 40]])
  got = relative_buckets(distance, 8, 20, bidirectional=True)
  assert got.tolist() == [[3, 3, 3, 2, 2, 1, 0, 5, 6, 6, 7, 7, 7]]
  got = relative_buckets(distance, 8, 20, bidirectional=False)
  assert got.tolist() == [[7, 6, 5, 4, 3, 1, 0, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
  "buckets, furthest, both",
  [
    (32, 128, True),
    (32, 128, False),
    (8, 20, True),
    (6, 9, True),
    (5, 7, False),
  ],
)
def test_buckets_grow_as_the_logarithm(buckets, furthest, both):
  """The formula of T5, in float32, against comparisons of integers."""
  distance = np.arange(-300, 301)
  side = buckets // 2 if both else buckets
  single = side // 2
  size = np.abs(distance) if both else np.maximum(-distance, 0)
  far = np.log(np.maximum(size, 1).astype(np.float32) / single)
  far = far / np.float32(np.log(furthest / single)) * (side - single)
  far = np.minimum(single + far.astype(np.int32), side - 1)
  want = np.where(size < single, size, far)
  if both:
    want = want + np.where(distance > 0, side, 0)
  got = relative_buckets(distance, buckets, furthest, both)
  assert got.dtype == np.int32
  np.testing.assert_array_equal(got, want)
  assert set(got) <= set(range(buckets)) and got.max() == buckets - 1
  np.testing.assert_array_equal(
    jax.jit(lambda d: relative_buckets(d, buckets, furthest, both))(distance),
    got,
  )


def test_bad_buckets_are_named():
  with pytest.raises(errors.InputError, match="3 buckets"):
    relative_buckets(np.arange(3), 3, 128, True)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_offsets_of_a_grid(first):
  rows, columns = 2, 3
  n = first + rows * columns
  entries = 3 * 5 + (3 if first else 0)
  spec = Offsets(jnp.arange(2.0 * entries).reshape(2, -1), rows, columns, first)
  assert spec.entries() == entries
  got = np.asarray(spec.dense(n, n))
  assert got.shape == (1, 2, n, n)
  for q, k in np.ndindex(n, n):
    if q < first or k < first:
      at = 15 + (2 if q < first and k < first else int(k < first))
    else:
      (a, b), (c, d) = divmod(q - first, columns), divmod(k - first, columns)
      at = (a - c + rows - 1) * 5 + (b - d + columns - 1)
    np.testing.assert_array_equal(got[0, :, q, k], [at, at + entries])


SPECS = [
  lambda key: Buckets(jax.random.normal(key, (4, 8)), 20),
  lambda key: Buckets(jax.random.normal(key, (4, 5)), 7, False),
  lambda key: Offsets(jax.random.normal(key, (4, 18)), 2, 3, first=1),
]


@pytest.mark.parametrize("make", SPECS)
def test_the_gradient_of_a_table_sums_over_its_readers(key, make):
  q, k, v = (
    jax.random.normal(x, (2, 7, 4, 8)) for x in jax.random.split(key, 3)
  )
  spec = make(key)

  @jax.jit
  def f(bias):
    y = attention(q, k, v, bias=bias, mask=masks.Causal(1), softcap=2.0)
    return jnp.square(y).sum()

  value, grad = jax.value_and_grad(f)(spec)
  want, d_dense = jax.value_and_grad(f)(spec.dense(7, 7))
  np.testing.assert_allclose(value, want, rtol=1e-6)
  assert abs(value - f(None)) > 1e-2
  # By hand: what the dense bias gets, summed over all that read an entry.
  at = np.asarray(spec.index(np.arange(7)[:, None], np.arange(7)[None]))
  want = [
    np.bincount(at.ravel(), d.ravel(), spec.entries())
    for d in np.asarray(d_dense)[0]
  ]
  np.testing.assert_allclose(grad.table, np.stack(want), atol=1e-5)
  assert np.abs(grad.table).max() > 1e-2


def test_tables_that_do_not_fit_are_named():
  q = jnp.ones((1, 7, 2, 8))
  with pytest.raises(errors.InputError, match=r"Buckets has shape \(3, 8\)"):
    attention(q, q, q, bias=Buckets(jnp.ones((3, 8))))
  with pytest.raises(errors.InputError, match=r"give \(2, 15\)"):
    attention(q, q, q, bias=Offsets(jnp.ones((2, 14)), 2, 3))
  with pytest.raises(errors.InputError, match="are 6, but there are 7"):
    attention(q, q, q, bias=Offsets(jnp.ones((2, 15)), 2, 3))


def test_a_table_settles_to_a_dense_bias_where_no_kernel_reads_it():
  spec = Buckets(jnp.ones((2, 8)))
  assert settled(None, 3, 4) is None
  dense = settled(spec, 3, 4, impl="xla")
  assert not isinstance(dense, biases.Bias) and dense.shape == (1, 2, 3, 4)
