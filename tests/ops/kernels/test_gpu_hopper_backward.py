"""The backward kernels for Hopper: on a CPU against float64, and lowered.

Where jax has an interpreter of GPU kernels; `mosaic` says what of it is ours.
"""

import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops import masks
from mmjax.ops.kernels import gpu_hopper_backward, gpu_hopper_grid
from mmjax.ops.kernels import gpu_tiles as gt
from mmjax.ops.kernels.gpu_hopper_backward import BackwardTiles

HERE = pathlib.Path(__file__).parent


def _beside(name):
  spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


cases, hopper, mosaic = map(_beside, ("cases", "hopper", "mosaic"))
interpreted = pytest.mark.skipif(mosaic.MISSING, reason="no GPU interpreter")
# Of the greatest gradient: slopes are of 16 bits, and so are results.
WITHIN = {"bfloat16": 1.2e-2, "float16": 2e-3}
ONE = BackwardTiles(1)


def _both(plan, tiles, q, k, v, d_out, lse, out):
  given = q, k, v, d_out, lse
  d_q, delta = gpu_hopper_backward.d_q(plan, *given, out, tiles)
  d_k, d_v = gpu_hopper_backward.d_kv(plan, *given, delta, tiles)
  return d_q, d_k, d_v, delta


def _case(mask, tiles, T, S, N=1, K=1, H=64, B=1, dtype="bfloat16", wrong=None):
  """Returns the gradients of q, k and v, and how far off they are."""
  draw = np.random.default_rng(T + S + H)
  shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H)
  q, k, v, d_out = (jnp.asarray(draw.normal(size=x), dtype) for x in shapes)
  plan = hopper.plan(T, S, N, K, H, wrong or mask, B)
  out, *want = cases.truth(
    (q, k, v, None), d_out, mask, plan.scale, None, 0.0, None
  )
  args = q, k, v, d_out, hopper.lse(plan, mask, q, k), jnp.asarray(out, dtype)
  with mosaic.interpreted():
    *got, delta = jax.jit(lambda *x: _both(plan, tiles, *x))(*args)
  out = np.asarray(args[-1], float)
  sums = np.einsum("BTNH,BTNH->BNT", out, np.asarray(d_out, float))
  np.testing.assert_allclose(delta[..., :T], sums, rtol=1e-4, atol=1e-4)
  assert delta.shape[2] == gt.up(T, gt.LSE_ROWS) and not delta[..., T:].any()
  assert [(x.shape, x.dtype) for x in got] == [(x, dtype) for x in shapes[:3]]
  got = [np.asarray(x, float) for x in got]
  return got, [
    np.abs(x - y).max() / max(np.abs(y).max(), 1.0)
    for x, y in zip(got, want, strict=True)
  ]


FAST = {
  # Tails on both sides and of the width; one warpgroup is all past the end.
  "none": (None, dict(T=60, S=75, H=72, tiles=BackwardTiles(2, 64, 2))),
  # More steps than slots, grouped heads, rows in registers.
  "causal": (
    masks.Causal(),
    dict(
      T=203,
      S=203,
      N=2,
      dtype="float16",
      tiles=BackwardTiles(1, 64, 2, held=2),
    ),
  ),
  "banded": (
    masks.Banded(11),
    dict(T=70, S=140, H=128, tiles=BackwardTiles(1, 64, 2)),
  ),
  # Tiles from a list.
  "row": (masks.Row(64, 3, 64), dict(T=200, S=200, H=24, tiles=ONE)),
}


@interpreted
@pytest.mark.parametrize("name", FAST)
def test_gradients(name):
  mask, given = FAST[name]
  _, off = _case(mask, **given)
  assert max(off) < WITHIN[given.get("dtype", "bfloat16")], off


RESIDENT = {
  # More steps than slots, the longest rows first, grouped heads.
  "causal": (
    masks.Causal(),
    dict(T=260, S=260, N=2, B=2, tiles=BackwardTiles(2, 64, 2, held=1)),
  ),
  # Rows without a step, in both kernels; no overlap of steps of dk and dv.
  "late": (
    masks.Causal(-130),
    dict(T=300, S=280, N=2, K=1, H=128, tiles=BackwardTiles(2, 64, 2)),
  ),
  # Some rows of tiles are past the end of what is stored of sums.
  "none": (None, dict(T=200, S=205, N=3, H=72, tiles=BackwardTiles(3, 64, 2))),
}


@interpreted
@pytest.mark.parametrize("name", RESIDENT)
def test_a_block_that_stays_takes_one_tile_after_the_other(name, monkeypatch):
  monkeypatch.setattr(gpu_hopper_grid, "processors", lambda: 2)
  mask, given = RESIDENT[name]
  tiles = dataclasses.replace(given["tiles"], resident=True)
  _, off = _case(mask, **given | {"tiles": tiles})
  assert max(off) < WITHIN["bfloat16"], off


@interpreted
@pytest.mark.parametrize("tiles", (BackwardTiles(2), ONE))
def test_rows_that_see_nothing_give_and_get_nothing(tiles):
  mask = masks.Causal(-70)  # a whole tile of queries, and some of the next
  (d_q, d_k, d_v), off = _case(mask, tiles, T=100, S=80)
  assert max(off) < WITHIN["bfloat16"], off
  np.testing.assert_array_equal(d_q[:, :70], 0.0)
  for x in (d_k, d_v):
    np.testing.assert_array_equal(x[:, 30:], 0.0)
    assert x[:, :30].any()


@interpreted
def test_wrong_mask_is_noticed():
  tiles = BackwardTiles(1)
  _, off = _case(masks.Causal(), tiles, T=50, S=50, wrong=masks.Causal(1))
  assert min(off) > 0.05, off


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("width", (8, 40, 72, 96, 104))
@pytest.mark.parametrize(
  "name", [x for x, y in cases.specs(1, 1).items() if not jax.tree.leaves(y)]
)
def test_every_mask_with_every_width(name, width):
  tiles = {
    8: BackwardTiles(2, 128, 2),
    40: BackwardTiles(3, 64, 2),
    72: BackwardTiles(1, 64, 2, held=2),
    96: BackwardTiles(2, 64, 4),
    104: BackwardTiles(1, 64, 3),
  }[width]
  mask = cases.specs(133, 140)[name]
  _, off = _case(mask, tiles, T=133, S=140, N=4, K=2, H=width, B=2)
  assert max(off) < WITHIN["bfloat16"], off


def _lower(plan, tiles):
  q, k, rows = hopper.shapes(plan)
  return hopper.lowered(lambda *x: _both(plan, tiles, *x), q, k, k, q, rows, q)


@pytest.mark.parametrize(
  "plan, tiles",
  (
    (hopper.plan(197, 197, 4, 4, 64, None), BackwardTiles(held=2)),
    (hopper.plan(729, 729, 2, 2, 72, None), BackwardTiles(2, 64, 2)),
    (
      hopper.plan(1280, 1280, 4, 2, 128, masks.Conv(256, 32, 32, 11)),
      BackwardTiles(),
    ),
    (hopper.plan(100, 1500, 2, 2, 96, masks.Causal(1400)), ONE),
    (hopper.plan(300, 100, 2, 1, 32, masks.Column(44, 16, 16)), ONE),
  ),
)
def test_lowers_for_a_gpu(plan, tiles):
  text = _lower(plan, tiles)
  assert "attention_dq" in text and "attention_dkv" in text


def test_what_is_refused_is_said():
  def why(tiles=BackwardTiles(), H=64, width=None):  # noqa: B008
    plan = hopper.plan(197, 197, 4, 2, H, None)
    plan = dataclasses.replace(plan, width=width or H)
    return gpu_hopper_backward.refuses(plan, tiles)

  for width in (8, 72, 80, 96, 128):
    assert why(H=width) is None
  for word, given in {
    "value width 32": dict(width=32),
    "head_dim 68": dict(H=68),
    "head_dim 136": dict(H=136),
    "step": dict(tiles=BackwardTiles(step=96)),
    "stages": dict(tiles=BackwardTiles(stages=1)),
    "wgs are": dict(tiles=BackwardTiles(4)),
    "held": dict(tiles=BackwardTiles(held=3)),
    "resident": dict(tiles=BackwardTiles(1, resident=True)),
    "shared memory": dict(tiles=BackwardTiles(2, 128, 3), H=128),
  }.items():
    assert word in str(why(**given))
  q = jax.ShapeDtypeStruct((1, 197, 4, 64), jnp.bfloat16)
  rows = jax.ShapeDtypeStruct((1, 4, 256), jnp.float32)
  plan = hopper.plan(197, 197, 4, 4, 64, None)
  tiles = BackwardTiles(stages=1)
  for f, last in (
    (gpu_hopper_backward.d_q, q),
    (gpu_hopper_backward.d_kv, rows),
  ):
    with pytest.raises(ValueError, match=r"refuses .*stages at least 2"):
      f(plan, q, q, q, q, rows, last, tiles)
