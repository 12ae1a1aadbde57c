"""Which head a program computes when, and where it is read from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops import masks
from mmjax.ops.kernels import tpu_call, tpu_heads, tpu_scores
from mmjax.ops.kernels.tiles import Whole

RULE = tpu_scores.Rule(None, (), 1.0, None, 0.0, False)


def _call(tiles, batch, heads, width, narrow=False):
  x = jax.ShapeDtypeStruct((batch, 24, heads * width), jnp.bfloat16)
  plan = tpu_call.Plan(RULE, tiles, True, width, narrow)
  return tpu_call.Call(plan, (x, x, x, None, (), None), False)


@pytest.mark.parametrize("unroll", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("rows, kv_heads", [(1, 12), (4, 6), (3, 2), (2, 4)])
def test_each_tile_comes_once(rows, kv_heads, unroll):
  call = _call(Whole(rows, kv_heads, 1, 128, 2 * unroll), rows, kv_heads, 64)
  count = kv_heads // 2

  def run(_):
    found = jnp.zeros((rows, count), jnp.int32)

    def body(tiles):
      nonlocal found
      assert len(tiles) <= max(unroll, count)
      for b, at in tiles:
        found = found.at[b, at].add(1)

    def loop(low, high, each, none):
      nonlocal found
      for r in range(low, high):  # in place of fori_loop, whose state it is
        each(r, none)

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(jax.lax, "fori_loop", loop)
      tpu_heads.each_tile(call, body)
    return found

  np.testing.assert_array_equal(run(None), 1)


@pytest.mark.parametrize("turns", [False, True])
def test_stages_of_units_overlap_in_order(turns):
  said = []

  def stage(name):
    def do(unit, *found):
      assert [*found] == [(unit, name - 1)][: name and 1]
      for part in range(2):
        said.append((unit, name, part))
        yield
      return ((unit, name),)

    return do

  tpu_heads.pipeline(["a", "b", "c"], *map(stage, range(3)), turns=turns)
  assert said[:2] == [("a", 0, 0), ("a", 0, 1)]
  both = [("b", 0, 0), ("b", 0, 1), ("a", 1, 0), ("a", 1, 1)]
  assert said[2:6] == ([both[i] for i in (0, 2, 1, 3)] if turns else both)
  assert sorted(said) == [
    (u, n, part) for u in "abc" for n in range(3) for part in range(2)
  ]


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("width, heads", [(64, 4), (72, 16), (80, 8), (24, 16)])
def test_a_head_is_read_alone_from_among_others(width, heads, narrow):
  """Of tokens [24 N*H], its columns turned; and beside zeros in its window."""
  call = _call(Whole(1, heads, 1, 128, heads), 1, heads, width, narrow)
  draw = np.random.default_rng(0)
  x = jnp.asarray(draw.normal(size=(1, 24, heads * width)), jnp.bfloat16)
  reader = object.__new__(tpu_heads.Heads)  # no program to ask where it is
  reader.call, reader.laid, reader.rule = call, {}, RULE
  for unit in tpu_heads.units(
    call, [(0, i) for i in range(heads // call.share)], [0]
  ):
    n = unit.tile * call.share + unit.head
    want = np.asarray(x, np.float32)[0, :, n * width : (n + 1) * width].T
    got = reader.turned(x, unit, slice(0, 24))
    np.testing.assert_array_equal(np.asarray(got, np.float32), want)
    keys = np.asarray(reader.keys(x, unit, slice(0, 24)), np.float32)
    if narrow:  # no more lanes than a register has
      assert keys.shape[1] <= 128
    alone = np.asarray(reader.alone(got, unit), np.float32)
    assert narrow or keys.shape[1] % 128 == 0
    assert alone.shape == keys.shape[::-1]
    np.testing.assert_allclose(
      keys @ alone, want.T @ want, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("among", [(0, 128), (32, 128), (0, 64), (32, 64)])
def test_weights_among_those_of_other_keys(among):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(32, 5)), jnp.bfloat16)
  got = tpu_heads.spread(x, slice(32, 64), slice(*among))
  want = np.zeros((128, 5), np.float32)
  want[32:64] = np.asarray(x, np.float32)
  np.testing.assert_array_equal(
    np.asarray(got, np.float32), want[slice(*among)]
  )


@pytest.mark.parametrize("masked", [False, True])
def test_keys_are_turned_once(masked):
  """Of a mask, whose runs of keys overlap, block by block."""
  call = _call(Whole(1, 2, 1, 128, 2), 1, 2, 64)
  reader = object.__new__(tpu_heads.Heads)
  reader.call, reader.laid = call, {}
  mask = jax.tree.structure(masks.Causal()) if masked else None
  reader.rule = dataclasses.replace(RULE, mask=mask)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 400, 128)))
  unit = tpu_heads.units(call, [(0, 0)], [0])[1]  # the second head
  for first, stop in ((0, 256), (128, 400)):
    got = reader.turned(x, unit, slice(first, stop), of_keys=True)
    np.testing.assert_array_equal(got, x[0, first:stop, 64:].T)
  assert len(unit.memo) == (4 if masked else 2)
