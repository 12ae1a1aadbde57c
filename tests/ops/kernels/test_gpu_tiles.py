import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops import blocks, masks
from mmjax.ops.kernels import gpu_tiles as gt

MASKS = {
  "none": None,
  "causal": masks.Causal(),
  "late": masks.Causal(-100),
  "local": masks.Local(70, 30),
  "column": masks.Column(64, 16, 16),
  "conv": masks.Conv(64, 8, 64, 3),
  "nothing": masks.Prefix(0),
}


def _walked(walk, rows, batch=1):
  """Returns which tiles each row of the map walks over: [B rows] of dicts."""
  found = np.empty((batch, rows), object)
  for b, row in np.ndindex(batch, rows):
    tables = [np.asarray(x) for x in walk.tables]
    if len(tables) == 2:
      mine = b if tables[0].shape[0] > 1 else 0
      refs = tuple(x[mine : mine + 1, row : row + 1] for x in tables)
    else:
      refs = tuple(x[row : row + 1] for x in tables)
    refs = tuple(map(jnp.asarray, refs))
    seen = walk.run(
      refs,
      lambda j, carry, partial: (
        carry[0].at[j].add(1),
        carry[1].at[j].add(int(partial)),
      ),
      (jnp.zeros(64, jnp.int32), jnp.zeros(64, jnp.int32)),
    )
    found[b, row] = [np.asarray(x) for x in seen]
  return found


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("tail", [False, True])
def test_walks_over_every_tile_that_is_not_empty_once(name, tail):
  kinds = blocks.static_map(MASKS[name], 320, 310, 64, 32)
  for row, (times, partial) in enumerate(
    _walked(gt.walk(kinds, tail), len(kinds))[0]
  ):
    np.testing.assert_array_equal(
      times[: kinds.shape[1]], kinds[row] != blocks.EMPTY
    )
    want = kinds[row] == blocks.PARTIAL
    want[-1] |= tail and kinds[row, -1] != blocks.EMPTY
    # A full tile may be walked over with the predicate, never the reverse.
    assert (partial[: kinds.shape[1]] >= want).all()
    assert partial.sum() <= want.sum() + 1


def test_walks_of_data_masks_differ_by_row_of_the_batch():
  mask = masks.KeyPadding(jnp.array([100, 0, 310]))
  kinds = blocks.dynamic_map(mask, 320, 310, 64, 32)
  found = _walked(gt.walk(kinds, tail=True), 5, batch=3)
  for b in range(3):
    for times, partial in found[b]:
      np.testing.assert_array_equal(
        times[:10], np.asarray(kinds)[b, 0] != blocks.EMPTY
      )
      assert partial.sum() == (b != 1)


def test_regular_masks_need_no_list_and_even_ones_no_table():
  def tables(mask, length=512):
    return len(
      gt.walk(blocks.static_map(mask, length, length, 64, 64), False).tables
    )

  assert tables(None) == 0
  assert tables(masks.Causal()) == 1
  assert tables(masks.Local(100, 100)) == 1
  # One window a row of the image, with gaps between.
  assert tables(masks.Conv(0, 8, 256, 5), 2048) == 2


def test_the_longest_walks_come_first():
  kinds = blocks.static_map(masks.Causal(), 512, 512, 64, 64)
  assert gt.walk(kinds, False).last_first
  assert not gt.walk(kinds.T, False).last_first


@pytest.mark.parametrize(
  "width", [1, 8, 16, 20, 40, 64, 72, 80, 96, 100, 144, 256]
)
def test_parts_cover_a_width_in_powers_of_two(width):
  parts = gt.parts(width)
  assert parts[0][0] == 0 and all(
    n >= 16 and n & (n - 1) == 0 for _, n in parts
  )
  assert all(o + n == p for (o, n), (p, _) in itertools.pairwise(parts))
  assert parts[-1][0] < width <= gt.padded(width)
  assert gt.padded(width) <= max(16, 2 * width)


def test_parts_waste_less_than_the_next_power_of_two():
  assert gt.padded(72) == 80
  assert gt.padded(96) == 96
  assert gt.padded(100) == 128
