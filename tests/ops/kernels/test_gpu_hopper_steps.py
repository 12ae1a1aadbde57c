"""What a block of the Hopper kernel is told: parts of a head, and its work.

Its steps run in `test_gpu_hopper`.
"""

import jax
import jax.numpy as jnp

from mmjax.ops import masks
from mmjax.ops.kernels import gpu_hopper_steps as steps
from mmjax.ops.kernels import gpu_tiles as gt
from mmjax.ops.kernels.gpu_hopper_steps import HopperTiles


def _work(tiles, T=256, S=256, H=64, mask=None):
  plan = gt.Plan(
    *(1, T, S, 1, 1, H, H),
    scale=1.0,
    softcap=None,
    rate=0.0,
    mask=None if mask is None else jax.tree.structure(mask),
    axes=(),
    bias=None,
    tiles=(),
    interpret=False,
  )
  return steps.Work.of(plan, tiles, jnp.dtype("bfloat16"))


def test_where_tma_tiles_rows_a_head_is_one_part():
  tiles = HopperTiles()
  assert _work(tiles, H=128).parts == ((0, 128),)
  assert _work(tiles, H=128, S=255).parts == ((0, 64), (64, 64))
  assert _work(tiles, H=72).parts == ((0, 64), (64, 16))
  assert [_work(tiles, H=x).tiled for x in (64, 72)] == [True, False]


def test_without_a_ring_nobody_loads_alone():
  assert _work(HopperTiles(k=64, stages=2)).loader
  short = _work(HopperTiles(k=64, stages=4))
  assert (short.loader, short.stages) == (False, 4)
  assert _work(HopperTiles(k=64, stages=8)).stages == 4
  # Which steps there are depends on the row: tables.
  assert _work(HopperTiles(k=128), mask=masks.Causal()).loader


def test_two_warpgroups_take_turns_at_more_than_one_step():
  assert _work(HopperTiles(2, 128)).turns
  assert not _work(HopperTiles(2, 256)).turns
  assert not _work(HopperTiles(3, 128)).turns
  assert not _work(HopperTiles(2, 128, pingpong=False)).turns


def test_steps_overlap_where_every_row_has_one():
  tiles = HopperTiles(overlap=True)
  assert _work(tiles, mask=masks.Causal()).overlap
  assert not _work(tiles, mask=masks.Causal(-200)).overlap


def test_values_of_a_step_are_multiples_of_what_wgmma_takes():
  assert steps.value_rows(HopperTiles(k=208)) == 256
  assert steps.value_rows(HopperTiles(k=64)) == 64
