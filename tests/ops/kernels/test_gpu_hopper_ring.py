"""What the backward kernels for Hopper are cut into."""

import numpy as np
import pytest

from mmjax.ops import masks
from mmjax.ops.kernels import gpu_hopper_ring
from mmjax.ops.kernels import gpu_tiles as gt
from mmjax.ops.kernels.gpu_hopper_ring import BackwardTiles

REGISTERS = 65_536  # of a multiprocessor


@pytest.mark.parametrize("wgs", (1, 2, 3))
def test_registers_are_what_the_warpgroups_start_with(wgs):
  # A kernel begins with equal shares, in eights; nobody can take what nobody
  # gave: it would wait for ever.
  tiles = BackwardTiles(wgs)
  many, few = tiles.registers
  start = min(REGISTERS // (128 * (wgs + 1)) // 8 * 8, 255 // 8 * 8)
  assert many * wgs + few <= start * (wgs + 1)
  assert many % 8 == few % 8 == 0
  assert tiles.rows == 64 * wgs


@pytest.mark.parametrize(
  "mask",
  (None, masks.Causal(), masks.Causal(-100), masks.Conv(20, 8, 16, 5)),
  ids=str,
)
def test_walks_take_the_tiles_that_are_not_empty(mask):
  T, step = 148, 16
  seen = np.ones((T, T), bool)
  if mask is not None:
    seen = np.asarray(masks.dense(mask, T, T)).reshape(T, T)
  kinds = gt.blocks.static_map(mask, T, T, step, step)
  walk = gt.walk(kinds, tail=True)
  for row in range(len(kinds)):
    found = []

    def body(column, carry, partial, found=found):
      found.append((int(column), partial))
      return carry

    limits = gpu_hopper_ring._limits(walk, walk.tables, row)
    for n, partial in enumerate(walk.partial):
      for t in range(int(limits[n]), int(limits[n + 1])):
        body(gpu_hopper_ring._column(walk, walk.tables, row, t), None, partial)
    rows = seen[row * step : (row + 1) * step]
    for column in range(len(kinds)):
      tile = rows[:, column * step : (column + 1) * step]
      taken = [partial for x, partial in found if x == column]
      assert len(taken) == int(tile.any())  # once, if anything is seen
      if taken == [False]:
        assert tile.all() and tile.shape[1] == step
