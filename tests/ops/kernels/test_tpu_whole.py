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
  T = 1280
  full = tpu_whole.chunks(_rule(masks.Causal()), T, T, 256)
  done, _ = _covered(full, T, T)
  assert done.mean() < 0.61  # half, and the blocks on the diagonal
  row, _ = _covered(
    tpu_whole.chunks(_rule(masks.Row(256, 32, 32)), T, T, 128), T, T
  )
  assert row.mean() < 0.36
