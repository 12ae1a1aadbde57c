"""Blocks and costs of the whole-sequence kernels, by hand."""

import jax
import jax.numpy as jnp
import pytest

from mmjax.ops.kernels import tiles, tpu_call, tpu_scores
from mmjax.ops.kernels.tiles import Whole

RULE = tpu_scores.Rule(None, (), 1.0, None, 0.0, False)


def _call(tiles, *shape, width=0, backward=False):
  x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  q = x
  if not width:
    q = jax.ShapeDtypeStruct((*shape[:2], 1, *shape[2:]), jnp.bfloat16)
  plan = tpu_call.Plan(RULE, tiles, True, width)
  return tpu_call.Call(plan, (q, x, x, None, (), None), backward)


@pytest.mark.parametrize(
  "width, heads", [(16, 8), (64, 2), (72, 16), (80, 8), (88, 16), (128, 1)]
)
def test_heads_that_fill_tiles_of_lanes_together(width, heads):
  assert tiles.sharing(width) == heads
  assert heads * width % 128 == 0
  assert all(n * width % 128 for n in range(1, heads))


def test_a_block_of_packed_heads_is_some_lanes_of_all_tokens():
  call = _call(Whole(2, 4, 1, 128, 4), 8, 197, 12 * 64, width=64)
  assert call.heads == (8, 12, 1) and call.share == 2
  assert call.counts == (4, 3, 1) and (call.T, call.S) == (197, 197)
  spec = call.specs[0]
  assert spec.block_shape == (2, 197, 4 * 64)
  assert spec.index_map(3, 2, 0) == (3, 0, 2)


def test_a_block_of_query_heads_that_share_keys():
  """Some of one key head's, or all of several's, which lie in order."""
  q, k = (jax.ShapeDtypeStruct((2, 24, n * 128), jnp.bfloat16) for n in (12, 3))
  for some, counts, program, lanes in (
    (Whole(1, 1, 2, 128), (2, 3, 2), (1, 2, 1), (5, 2)),
    (Whole(1, 3, 4, 128), (2, 1, 1), (1, 0, 0), (0, 0)),
  ):
    plan = tpu_call.Plan(RULE, some, True, 128)
    call = tpu_call.Call(plan, (q, k, k, None, (), None), False)
    assert call.heads == (2, 3, 4) and call.counts == counts
    for spec, many, at in zip(
      call.specs, (some.groups, 1), lanes, strict=False
    ):
      assert spec.block_shape == (1, 24, some.kv_heads * many * 128)
      assert spec.index_map(*program) == (1, 0, at)


@pytest.mark.parametrize("tiles", [Whole(2, 1, 2, 128), Whole(1, 3, 2, 128)])
def test_some_query_heads_of_several_key_heads_are_refused(tiles):
  q, k = (jax.ShapeDtypeStruct((2, 24, n * 128), jnp.bfloat16) for n in (12, 3))
  plan = tpu_call.Plan(RULE, tiles, True, 128)
  with pytest.raises(ValueError, match="one row and one key head"):
    tpu_call.Call(plan, (q, k, k, None, (), None), True)


def test_a_block_of_heads_first_is_some_heads():
  call = _call(Whole(2, 4, 1, 128, 4), 8, 12, 197, 72)
  assert call.heads == (8, 12, 1) and call.share == 1
  assert call.specs[0].block_shape == (2, 4, 1, 197, 72)
  assert call.specs[0].index_map(3, 2, 0) == (3, 2, 0, 0, 0)
  assert call.specs[1].block_shape == (2, 4, 197, 72)


def test_tiles_laid_side_by_side():
  def of(*given):
    call = _call(Whole(*given), 8, 197, 12 * 64, width=64)
    return tpu_call.side_by_side(call)

  assert of(1, 12, 1, 128, 12) == 6  # two heads a tile
  assert of(1, 12, 1, 128, 4) == 2
  assert of(1, 2, 1, 128, 8) == 1  # no more than a program has
  assert of(4, 2, 1, 128, 8) == 4


def test_a_pass_has_tiles_of_its_own():
  both = Whole(1, 4, 1, 256, 4, backward=Whole(1, 2, 1, 128, 2))
  assert _call(both, 1, 512, 4 * 64, width=64).block == (1, 4, 1)
  back = _call(both, 1, 512, 4 * 64, width=64, backward=True)
  assert back.block == (1, 2, 1)
  assert [stop - start for start, stop, _ in back.chunks] == [128] * 4
