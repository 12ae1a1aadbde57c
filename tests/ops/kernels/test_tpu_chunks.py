import jax
import jax.numpy as jnp
import numpy as np

from mmjax.ops import masks
from mmjax.ops.kernels import tpu_chunks, tpu_scores


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
  for chunk in chunks:
    for run in chunk[2]:
      for queries, keys in tpu_chunks.pieces(chunk, run):
        assert 0 <= keys.start < keys.stop <= S
        at = slice(chunk[0] + queries.start, chunk[0] + queries.stop), keys
        assert not done[at].any()
        done[at] = True
        free[at] = not run.ask
  return done, free


def test_runs_cover_what_the_mask_allows_and_no_pair_twice():
  slides = 0
  for T, S, rows in ((700, 700, 128), (700, 700, 512), (641, 700, 512)):
    for mask in (
      None,
      masks.Causal(),
      masks.Causal(-300),
      masks.Local(40, 9) | masks.Prefix(3),
      masks.Local(200, 70),
      masks.Banded(64),
      masks.Row(130, 19, 30),
      masks.Row(128, 16, 32),
      masks.Column(128, 17, 32).by_lines(),
      masks.Conv(130, 19, 30, 3),
      masks.Conv(128, 17, 32, 5),
      masks.KeyPadding(jnp.array([3])),
    ):
      chunks = tpu_chunks.chunks(_rule(mask), T, S, rows)
      ends = [c[1] for c in chunks]
      assert [c[0] for c in chunks] == [0, *ends[:-1]] and ends[-1] == T
      assert all(1 < b - a <= max(rows, 129) for a, b, _ in chunks)
      assert all(len(runs) <= 5 for *_, runs in chunks)
      slides += any(run.step for *_, runs in chunks for run in runs)
      done, free = _covered(chunks, T, S)
      if mask is None:
        assert free.all()
      elif isinstance(mask, masks.KeyPadding):
        assert done.all() and not free.any()
      else:
        seen = np.asarray(masks.dense(mask, T, S))[0, 0]
        assert done[seen].all() and seen[free].all()
  assert slides > 8


def test_work_is_that_of_the_masks_blocks():
  """Of DALL-E: against the dense causal kernel, by the pairs that are seen."""
  T = 1280
  causal = _rule(masks.Causal())
  grid = (256, 32, 32)
  # For each 128 queries there are the keys of five rows of the image, or for
  # the window of a convolution, which is 11 wide of 32 columns, of ten.
  limits = {
    False: {masks.Row: 1.2, masks.Column: 1.1, masks.Conv: 1.45},
    True: {masks.Row: 1.25, masks.Column: 1.25, masks.Conv: 1.5},
  }
  for backward, half in ((False, 0.66), (True, 0.6)):
    whole = tpu_chunks.pairs(tpu_chunks.chunks(causal, T, T, 512, backward))
    assert whole < half * T * T  # half, and the blocks on the diagonal
    for kind, most in limits[backward].items():
      mask = kind(*grid, 11) if kind is masks.Conv else kind(*grid)
      laid = mask.by_lines() if kind is masks.Column else mask
      seen = np.asarray(masks.dense(mask, T, T)).sum()
      density = seen / (T * (T + 1) / 2)
      cut = tpu_chunks.chunks(_rule(laid), T, T, 512, backward)
      done, _ = _covered(cut, T, T)
      assert done.sum() == tpu_chunks.pairs(cut)
      assert seen < done.sum() < most * density * whole, (mask, density)


def test_keys_from_and_to_whole_registers():
  of = tpu_chunks.aligned
  assert of(slice(352, 512), 1280) == slice(256, 512)
  assert of(slice(0, 130), 700) == slice(0, 256)
  assert of(slice(640, 690), 700) == slice(640, 700)  # or to the end


def test_long_runs_are_cut():
  for S, want in (
    (197, [197]),
    (257, [257]),
    (729, [256, 512, 729]),
    (577, [256, 577]),
  ):
    ((_, _, runs),) = tpu_chunks.chunks(_rule(None), S, S, S, True, 256)
    assert [run.stop for run in runs] == want
    assert [run.first for run in runs] == [0, *want[:-1]]
  for mask in (masks.Causal(), masks.Local(500, 0)):
    whole, cut = (
      tpu_chunks.chunks(_rule(mask), 640, 640, 512, True, n) for n in (0, 128)
    )
    assert sum(len(c[2]) for c in cut) > sum(len(c[2]) for c in whole)
    np.testing.assert_array_equal(
      _covered(cut, 640, 640), _covered(whole, 640, 640)
    )
    starts = [run.first for *_, runs in whole for run in runs]
    assert all(
      run.first % 128 == 0 or run.first in starts
      for *_, runs in cut
      for run in runs
    )
