import jax
import numpy as np

from mmjax.ops import algebra, masks

IDS = np.array([[1, 1, 2], [3, 0, 0]], np.int32)


def test_leaf_axes_are_in_the_order_of_the_leaves():
  mask = (
    masks.KeyPadding(np.array([1, 3]))
    & (masks.Causal() | masks.Segments(IDS, IDS[:, :2]))
  ) | masks.Keys(IDS)
  assert masks.leaf_axes(mask) == ("b", "q", "k", "k")
  shapes = [leaf.shape for leaf in jax.tree.leaves(mask)]
  assert shapes == [(2,), (2, 3), (2, 2), (2, 3)]


def test_seen_on_slices_of_the_leaves_is_the_tile_of_the_mask():
  """What a kernel does with the tile of row 1, queries 1:3, keys 0:2."""
  mask = (masks.Segments(IDS, IDS) | masks.Causal(-1)) & masks.KeyPadding(
    np.array([3, 1])
  )
  want = np.asarray(masks.dense(mask, 3, 3))[1, 0, 1:3, 0:2]
  slices = {
    "b": lambda x: x[1],
    "q": lambda x: x[1, 1:3, None],
    "k": lambda x: x[1, None, 0:2],
  }
  tile = mask.holding(
    [
      slices[axis](leaf)
      for leaf, axis in zip(
        jax.tree.leaves(mask), masks.leaf_axes(mask), strict=True
      )
    ]
  )
  got = tile.seen(np.arange(1, 3)[:, None], np.arange(0, 2)[None])
  np.testing.assert_array_equal(got, want)
  assert want.any() and not want.all()


def test_pairs_are_on_the_safe_side():
  """Of prefix-LM the parts tell less than the whole, never more."""
  mask = masks.Prefix(2) | masks.Causal()
  block = algebra.Interval(1, 2), algebra.Interval(1, 2)
  some, every = mask.bounds(*block)
  assert some and not every
  assert masks.dense(mask, 3, 3)[0, 0, 1:, 1:].sum() == 3
  every = (masks.Prefix(3) | masks.Causal()).bounds(*block).every
  assert every
  far = (masks.Local(1, 1) & masks.Prefix(3)).bounds(
    algebra.Interval(0, 1), algebra.Interval(3, 5)
  )
  assert not far.some
