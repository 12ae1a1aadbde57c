import jax
import jax.numpy as jnp
import numpy as np

from mmjax.ops import masks
from mmjax.ops.kernels import tpu_scores, tpu_whole


def _rule(mask):
  return tpu_scores.Rule(
    None if mask is None else jax.tree.structure(mask),
    () if mask is None else masks.leaf_axes(mask),
    1.0,
    None,
    0.0,
    False,
  )


def _covered(chunks, T, S):
  """Returns where pairs are computed, and where without the predicate."""
  done, free = np.zeros((2, T, S), bool)
  for start, stop, runs in chunks:
    for a, b, masked in runs:
      assert not done[start:stop, a:b].any()
      done[start:stop, a:b] = True
      free[start:stop, a:b] = not masked
  return done, free


def test_runs_cover_what_the_mask_allows_and_no_pair_twice():
  T = S = 700
  for mask in (
    None,
    masks.Causal(),
    masks.Causal(-300),
    masks.Local(40, 9) | masks.Prefix(3),
    masks.Row(130, 19, 30),
    masks.Conv(130, 19, 30, 3),
    masks.KeyPadding(jnp.array([3])),
  ):
    chunks = tpu_whole.chunks(_rule(mask), T, S, 128)
    assert all(len(runs) <= 4 for *_, runs in chunks)
    done, free = _covered(chunks, T, S)
    if mask is None:
      assert free.all()
    elif isinstance(mask, masks.KeyPadding):
      assert done.all() and not free.any()
    else:
      seen = np.asarray(masks.dense(mask, T, S))[0, 0]
      assert done[seen].all() and seen[free].all()


def test_work_is_that_of_the_masks_blocks():
  """Of DALL-E: against the dense causal kernel, by the pairs that are seen."""
  T = 1280
  causal = _rule(masks.Causal())
  whole = tpu_whole.pairs(tpu_whole.chunks(causal, T, T, 256))
  assert whole < 0.61 * T * T  # half, and the blocks on the diagonal
  grid = (256, 32, 32)
  # At 128 queries a chunk; what is taken is 256, for less work in all. A tile
  # of 128 has four rows of the image, and meets the keys of
  # nine for the window of a convolution, which is 11 wide of 32 columns.
  for mask, laid, most in (
    (masks.Row(*grid), None, 1.3),
    (masks.Column(*grid), masks.Column(*grid).by_lines(), 1.3),
    (masks.Conv(*grid, 11), None, 1.45),
  ):
    seen = np.asarray(masks.dense(mask, T, T)).sum()
    density = seen / (T * (T + 1) / 2)
    cut = tpu_whole.chunks(_rule(laid or mask), T, T, 128)
    done, _ = _covered(cut, T, T)
    assert done.sum() == tpu_whole.pairs(cut)
    assert seen < done.sum() < most * density * whole, mask
