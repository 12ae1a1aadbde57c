import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.ops import algebra, blocks, masks

B, T, S = 2, 19, 23


def numbers(lo, hi, *shape):
  """Data leaves: sorted or not, as packed sequences are or are not."""
  n = int(np.prod(shape))
  flat = st.lists(st.integers(lo, hi), min_size=n, max_size=n)
  rows = flat.map(lambda x: np.array(x, np.int32).reshape(shape))
  return st.one_of(rows, rows.map(lambda x: np.sort(x, -1)))


static = st.one_of(
  st.just(masks.Full()),
  st.builds(masks.Causal, st.integers(-9, 9)),
  st.builds(masks.Prefix, st.integers(0, S)),
  st.builds(masks.Local, st.integers(-3, 9), st.integers(-3, 9)),
  st.builds(masks.Banded, st.integers(1, 9)),
  st.sampled_from([masks.Row, masks.Column, masks.Lines]).flatmap(
    lambda kind: st.builds(
      kind, st.integers(0, 9), st.just(24), st.integers(1, 7)
    )
  ),
  st.builds(
    masks.Conv,
    st.integers(0, 9),
    st.just(24),
    st.integers(1, 9),
    st.sampled_from([1, 3, 5, 7]),
  ),
)
data = st.one_of(
  st.builds(masks.KeyPadding, numbers(0, S, B)),
  st.builds(masks.PrefixLengths, numbers(0, S, B)),
  st.builds(
    masks.Segments, numbers(0, 4, B, T), numbers(0, 4, B, S), st.integers(0, 1)
  ),
  st.builds(masks.Keys, numbers(0, 1, B, S)),
  st.builds(masks.Keys, numbers(0, 1, B, S).map(lambda x: x > 0)),
  st.builds(
    masks.Positions,
    numbers(-1, 9, B, T),
    numbers(-1, 9, B, S),
    st.one_of(st.none(), st.integers(0, 4)),
  ),
)
trees = st.recursive(
  st.one_of(static, data),
  lambda x: st.one_of(
    st.tuples(x, x).map(lambda p: p[0] & p[1]),
    st.tuples(x, x).map(lambda p: p[0] | p[1]),
  ),
  max_leaves=4,
)
# Few shapes, which compile once each: with tails, without, one block, single.
SIZES = [(4, 6), (8, 8), (1, 5), (7, 1), (T, S), (32, 9)]
sizes = st.sampled_from(SIZES)


def truth(mask, block_q, block_k):
  """The map from the mask pair by pair, block by block, [B|1 nq nk]."""
  q, k = np.arange(T)[None, :, None], np.arange(S)[None, None]
  wide = {
    "b": np.s_[:, None, None],
    "q": np.s_[:, :, None],
    "k": np.s_[:, None],
  }
  leaves = [
    leaf[wide[axis]]
    for leaf, axis in zip(
      jax.tree.leaves(mask), masks.leaf_axes(mask), strict=True
    )
  ]
  seen = mask.holding(leaves).seen(q, k)
  rows = []
  for q in range(0, T, block_q):
    tiles = [
      seen[:, q : q + block_q, k : k + block_k] for k in range(0, S, block_k)
    ]
    rows.append(
      [
        np.where(tile.all((1, 2)), 2, np.where(tile.any((1, 2)), 1, 0))
        for tile in tiles
      ]
    )
  return np.moveaxis(np.array(rows), 2, 0)


@settings(max_examples=200, deadline=None)
@given(static, sizes)
def test_static_specs_are_classified_exactly(mask, block):
  want = truth(mask, *block)
  got = blocks.static_map(mask, T, S, *block)
  assert got.dtype == np.int8
  np.testing.assert_array_equal(got, want[0])
  np.testing.assert_array_equal(
    blocks.dynamic_map(mask, T, S, *block), got[None]
  )


@settings(max_examples=30, deadline=None)
@given(trees, sizes)
def test_what_is_claimed_of_any_mask_holds(mask, block):
  want = truth(mask, *block)
  static_map = blocks.static_map(mask, T, S, *block)[None]
  dynamic_map = np.asarray(blocks.dynamic_map(mask, T, S, *block))
  assert dynamic_map.shape == want.shape
  for got in (static_map, dynamic_map):
    sure = got != blocks.PARTIAL
    np.testing.assert_array_equal((got == want) | ~sure, True)
  # Data only ever adds to what is known.
  known = np.broadcast_to(static_map, want.shape)
  np.testing.assert_array_equal(
    dynamic_map[known != blocks.PARTIAL], known[known != blocks.PARTIAL]
  )


@settings(max_examples=120, deadline=None)
@given(data, st.data())
def test_data_leaves_are_classified_as_well_as_intervals_can(mask, draw):
  """Against all values of the leaves, queries and keys of the intervals."""

  def interval(lo, hi):
    a, b = draw.draw(st.tuples(st.integers(lo, hi), st.integers(lo, hi)))
    return algebra.Interval(min(a, b), max(a, b))

  q, k = interval(0, 6), interval(0, 6)
  leaves = [interval(-1, 5) for _ in jax.tree.leaves(mask)]
  got = mask.holding(leaves).bounds(q, k)
  axes = [np.arange(x.lo, x.hi + 1) for x in (q, k, *leaves)]
  q_index, k_index, *values = np.meshgrid(*axes, indexing="ij")
  seen = mask.holding(values).seen(q_index, k_index)
  assert (bool(got.some), bool(got.every)) == (seen.any(), seen.all())


def test_a_wrong_bound_would_be_found():
  """The properties fail for a spec whose bounds are off by one."""

  @algebra.register
  @dataclasses.dataclass(frozen=True)
  class Off(masks.Causal):
    def bounds(self, q, k):
      return masks.Causal(self.offset - 1).bounds(q, k)

  def wrong(mask):
    return [
      (blocks.static_map(mask, T, S, *size) != truth(mask, *size)[0]).sum()
      for size in SIZES
    ]

  assert sum(wrong(Off())) > 0
  assert sum(wrong(masks.Causal())) == 0


def test_segments_that_cannot_meet_are_pruned():
  ids = jnp.array([[1] * 8 + [2] * 8 + [3] * 8, [1] * 24])
  mask = masks.Segments(ids, ids) & masks.Causal()
  got = jax.jit(lambda m: blocks.dynamic_map(m, 24, 24, 8, 8))(mask)
  assert got.dtype == jnp.int8
  np.testing.assert_array_equal(got[0], np.eye(3))
  np.testing.assert_array_equal(got[1], [[1, 0, 0], [2, 1, 0], [2, 2, 1]])
  static_map = blocks.static_map(mask, 24, 24, 8, 8)
  np.testing.assert_array_equal(static_map, np.tril(np.ones((3, 3))))


def test_static_maps_are_made_while_tracing_and_cost_no_mask():
  @jax.jit
  def f(mask):
    found = blocks.static_map(mask, 1 << 20, 1 << 20, 1024, 1024)
    assert isinstance(found, np.ndarray)
    return jnp.asarray(np.bincount(found.ravel()))

  n = 1024
  lengths = masks.KeyPadding(jnp.array([5]))
  half = n * (n - 1) // 2
  np.testing.assert_array_equal(f(masks.Causal()), [half, n, half])
  np.testing.assert_array_equal(f(masks.Causal() & lengths), [half, n + half])
  assert (blocks.static_map(None, 9, 7, 4, 4) == blocks.FULL).all()


def test_dalle_maps_are_as_sparse_as_the_masks():
  """At one row of the image a block, 32 x 32 after 256 of text."""
  args = (1280, 1280, 32, 32)
  image = np.s_[8:, 8:]
  row = blocks.static_map(masks.Row(256, 32, 32), *args)
  np.testing.assert_array_equal(row[image], np.eye(32) + np.eye(32, k=-1))
  assert (row[8:, :8] == blocks.FULL).all()
  conv = blocks.static_map(masks.Conv(256, 32, 32, 11), *args)
  far = np.tril(np.ones((32, 32)), -7)
  assert (conv[image][far > 0] == blocks.EMPTY).all()
  assert (conv[image][(np.tril(np.ones((32, 32))) - far) > 0] == 1).all()
