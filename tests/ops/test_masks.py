import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax import errors
from mmjax.ops import masks

B, T, S = 2, 5, 6


def truth(mask, b, q, k):
  """The rules once more, in plain Python on plain integers."""
  match mask:
    case masks.Full():
      return True
    case masks.Causal(offset):
      return k <= q + offset
    case masks.Prefix(n):
      return k < n
    case masks.Local(left, right):
      return q - left <= k <= q + right
    case masks.Banded(width):
      return k in range(q - width + 1, q + 1)
    case masks.KeyPadding(lengths) | masks.PrefixLengths(lengths):
      return k < lengths[b]
    case masks.Segments(q_ids, kv_ids, pad_id):
      return q_ids[b][q] == kv_ids[b][k] and q_ids[b][q] != pad_id
    case masks.And(x, y):
      return truth(x, b, q, k) and truth(y, b, q, k)
    case masks.Keys(valid):
      return bool(valid[b][k])
    case masks.Positions(q_positions, kv_positions, left):
      at, seen = q_positions[b][q], kv_positions[b][k]
      return 0 <= seen <= at and (left is None or at - seen <= left)
    case masks.Or(x, y):
      return truth(x, b, q, k) or truth(y, b, q, k)


def ids(rows, columns):
  row = st.lists(st.integers(0, 2), min_size=columns, max_size=columns)
  return st.lists(row, min_size=rows, max_size=rows).map(
    lambda x: np.array(x, np.int32)
  )


leaves = st.one_of(
  st.just(masks.Full()),
  st.builds(masks.Causal, st.integers(-3, 3)),
  st.builds(masks.Prefix, st.integers(0, S)),
  st.builds(masks.Local, st.integers(-1, 3), st.integers(-1, 3)),
  st.builds(masks.Banded, st.integers(1, 4)),
  st.builds(masks.KeyPadding, ids(1, B).map(lambda x: x[0] * 3)),
  st.builds(masks.PrefixLengths, ids(1, B).map(lambda x: x[0] * 3)),
  st.builds(masks.Segments, ids(B, T), ids(B, S), st.integers(0, 1)),
  st.builds(masks.Keys, ids(B, S)),
  st.builds(
    masks.Positions,
    ids(B, T).map(lambda x: x * 2 - 1),
    ids(B, S).map(lambda x: x * 2 - 1),
    st.one_of(st.none(), st.integers(0, 2)),
  ),
)
trees = st.recursive(
  leaves,
  lambda x: st.one_of(
    st.tuples(x, x).map(lambda p: p[0] & p[1]),
    st.tuples(x, x).map(lambda p: p[0] | p[1]),
  ),
  max_leaves=4,
)


@settings(max_examples=60, deadline=None)
@given(trees)
def test_dense_equals_the_rules(mask):
  want = [
    [[bool(truth(mask, b, q, k)) for k in range(S)] for q in range(T)]
    for b in range(B)
  ]
  got = np.asarray(masks.dense(mask, T, S))
  assert got.dtype == bool
  assert got.shape == (mask.batch_size() or 1, 1, T, S)
  np.testing.assert_array_equal(np.broadcast_to(got[:, 0], (B, T, S)), want)


def test_static_masks_compare_and_hash():
  assert masks.Causal(1) == masks.Causal(1) != masks.Causal(2)
  a = masks.Prefix(3) | masks.Causal()
  assert hash(a) == hash(masks.Prefix(3) | masks.Causal())
  assert jax.tree.leaves(a) == []


def test_travels_through_jit_without_retracing():
  traces = 0

  @jax.jit
  def f(mask):
    nonlocal traces
    traces += 1
    return masks.dense(mask, T, S)

  for lengths in ([1, 2], [3, 6]):
    mask = masks.KeyPadding(jnp.array(lengths)) & masks.Causal()
    np.testing.assert_array_equal(f(mask), masks.dense(mask, T, S))
  assert traces == 1
  f(masks.KeyPadding(jnp.array([1, 2])) & masks.Causal(1))
  assert traces == 2


def test_pad_id_does_not_match_itself():
  zeros = jnp.zeros((1, 3), jnp.int32)
  assert not masks.dense(masks.Segments(zeros, zeros), 3, 3).any()
  assert masks.dense(masks.Segments(zeros, zeros, pad_id=-1), 3, 3).all()


def test_check_names_field_and_shapes():
  bad = masks.Causal() & masks.KeyPadding(jnp.ones(3, jnp.int32))
  with pytest.raises(errors.InputError, match=r"KeyPadding.lengths .*\(3,\)"):
    masks.check(bad, 2, 4, 4)
  ok = masks.Segments(jnp.ones((2, 4)), jnp.ones((2, 5)))
  masks.check(ok, 2, 4, 5)
  with pytest.raises(errors.InputError, match="kv_ids"):
    masks.check(ok, 2, 4, 4)


def test_cached_tokens_see_all_up_to_themselves():
  got = masks.dense(masks.cached(2, 5, jnp.int32(2), 2), 2, 5)
  want = [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]
  np.testing.assert_array_equal(got[:, 0], np.array([want, want], bool))
