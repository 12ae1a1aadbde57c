"""The forward kernel for Hopper: on a CPU against float64, and lowered.

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
from mmjax.ops.kernels import gpu_hopper, gpu_hopper_grid
from mmjax.ops.kernels import gpu_tiles as gt
from mmjax.ops.kernels.gpu_hopper import HopperTiles

HERE = pathlib.Path(__file__).parent


def _beside(name):
  spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


cases, hopper, mosaic = map(_beside, ("cases", "hopper", "mosaic"))
interpreted = pytest.mark.skipif(mosaic.MISSING, reason="no GPU interpreter")
WITHIN = {"bfloat16": 1.2e-2, "float16": 2e-3}


def _truth(plan, mask, q, k, v):
  """Returns the output and the log2 of each row's sum, float64."""
  q, k, v = (np.asarray(x, float) for x in (q, k, v))
  k, v = (np.repeat(x, plan.group, axis=2) for x in (k, v))
  s = np.einsum("BTNH,BSNH->BNTS", q, k) * plan.scale
  seen = np.ones((1, 1, plan.T, plan.S), bool)
  if mask is not None:
    seen = np.asarray(masks.dense(mask, plan.T, plan.S))
  top = np.where(seen, s, -np.inf).max(-1, keepdims=True)
  top = np.where(np.isinf(top), 0.0, top)
  e = np.where(seen, np.exp(s - top), 0.0)
  total = e.sum(-1)
  share = e / np.where(total == 0.0, 1.0, total)[..., None]
  lse = np.log2(np.where(total, total, 1.0)) + top[..., 0] / np.log(2)
  lse = np.where(total == 0.0, np.inf, lse)
  return np.einsum("BNTS,BSNH->BTNH", share, v), lse


def _case(
  mask,
  tiles,
  T,
  S,
  N=1,
  K=1,
  H=64,
  B=1,
  dtype="bfloat16",
  wrong=None,
  loud=1.0,
  low=0.0,
):
  """Returns the greatest differences of the output and of lse.

  By the size of the greatest output, if above 1. Logits are `loud` times as
  large, and lower by about `low`.
  """
  draw = np.random.default_rng(T + S + H)
  shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H)
  q, k, v = (draw.normal(size=x) for x in shapes)
  if low:
    q, k = 0.1 * q + low**0.5, 0.1 * k - low**0.5
  args = [jnp.asarray(x, dtype) for x in (q * loud, k, v)]
  plan = hopper.plan(T, S, N, K, H, wrong or mask, B)
  with mosaic.interpreted():
    out, lse = jax.jit(lambda *x: gpu_hopper.forward(plan, *x, tiles))(*args)
  assert (out.shape, out.dtype) == (shapes[0], dtype)
  assert lse.shape == (B, N, gt.up(T, 128))
  assert np.isinf(lse[..., T:]).all()
  want, want_lse = _truth(plan, mask, *args)
  off = np.abs(np.asarray(out, float) - want).max()
  lse = np.asarray(lse[..., :T], float)
  assert (np.isinf(lse) == np.isinf(want_lse)).all()
  off_lse = np.where(np.isinf(lse), 0.0, lse) - np.where(
    np.isinf(lse), 0.0, want_lse
  )
  return off / max(np.abs(want).max(), 1.0), np.abs(off_lse).max()


FAST = {
  # All tiles have a slot; two of three warpgroups have rows past the end.
  "none": dict(T=70, S=75, H=72, tiles=HopperTiles(3, 64, 2)),
  # A ring, turns, lengths that TMA could not tile by 8, grouped heads.
  "full": dict(T=67, S=203, N=2, dtype="float16", tiles=HopperTiles(2, 64, 2)),
  "causal": dict(T=136, S=136, H=128, tiles=HopperTiles(2, 64, 2, True, True)),
  # Rows that see nothing.
  "causal_late": dict(T=70, S=50, tiles=HopperTiles(2, 32, 2)),
  # The loops over partial and over full tiles begin with other steps.
  "conv": dict(T=132, S=132, H=24, tiles=HopperTiles(1, 32, 2, False, True)),
}


@interpreted
@pytest.mark.parametrize("name", FAST)
def test_values(name):
  given = FAST[name]
  mask = cases.specs(given["T"], given["S"])[name]
  off, lse = _case(mask, **given)
  assert off < WITHIN[given.get("dtype", "bfloat16")], off
  assert lse < 1e-4


RESIDENT = {
  # More steps than slots, the longest rows first, turns, grouped heads.
  "causal": dict(T=200, S=200, N=2, B=2, tiles=HopperTiles(2, 64, 2)),
  # Rows that see nothing have no step; results by parts.
  "causal_late": dict(T=140, S=75, N=3, H=72, tiles=HopperTiles(2, 32, 2)),
  # All rows alike, the next keys ahead of time.
  "none": dict(T=195, S=203, N=3, tiles=HopperTiles(3, 64, 2, overlap=True)),
  # The loops over partial and over full tiles begin with other steps.
  "conv": dict(
    T=260, S=260, H=128, tiles=HopperTiles(2, 64, 2, True, overlap=True)
  ),
}


@interpreted
@pytest.mark.parametrize("name", RESIDENT)
def test_a_block_that_stays_takes_one_tile_after_the_other(name, monkeypatch):
  monkeypatch.setattr(gpu_hopper_grid, "processors", lambda: 2)
  given = dict(RESIDENT[name])
  given["tiles"] = dataclasses.replace(given["tiles"], resident=True)
  mask = cases.specs(given["T"], given["S"])[name]
  off, lse = _case(mask, **given)
  assert off < WITHIN["bfloat16"] and lse < 1e-4, (off, lse)


LAZY = {
  # Turns; grouped heads; rows of which the first tile of keys sees few or none.
  "causal": dict(T=136, S=136, N=2, tiles=HopperTiles(2, 64, 2)),
  "causal_late": dict(T=70, S=75, H=72, tiles=HopperTiles(2, 32, 2)),
  "none": dict(T=67, S=203, dtype="float16", tiles=HopperTiles(1, 64, 2)),
  "conv": dict(T=132, S=132, H=128, tiles=HopperTiles(2, 64, 2)),
}


@interpreted
@pytest.mark.parametrize("name", LAZY)
@pytest.mark.parametrize(
  # At 300 no weight by the first reference is left; of 9 the first tiles' are.
  "loud, low",
  ((1.0, 0.0), (20.0, 0.0), (1.0, 300.0), (1.0, 9.0)),
)
def test_lazy_weights_are_right_however_high_logits_are(name, loud, low):
  given = dict(LAZY[name])
  given["tiles"] = dataclasses.replace(given["tiles"], lazy=True)
  mask = cases.specs(given["T"], given["S"])[name]
  off, lse = _case(mask, **given, loud=loud, low=low / 0.3 / given.get("H", 64))
  assert off < WITHIN[given.get("dtype", "bfloat16")], off
  assert lse < 1e-3, lse  # of up to 1e3


@interpreted
def test_lazy_weights_are_wrong_where_a_guess_stands(monkeypatch):
  monkeypatch.setattr(mosaic, "any_of_warp", lambda x: jnp.any(x) & False)
  tiles = HopperTiles(1, 64, 2, lazy=True)
  with pytest.raises(AssertionError):  # sums are beyond float32
    _case(None, tiles, T=64, S=128, loud=300.0)


@interpreted
def test_wrong_mask_is_noticed():
  tiles = HopperTiles(1, 32, 2)
  off = _case(masks.Causal(), tiles, T=50, S=50, wrong=masks.Causal(1))
  assert min(off) > 0.05, off


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize(
  "width, tiles",
  (
    (8, HopperTiles(1, 64, 2)),
    (80, HopperTiles(2, 48, 2, overlap=True)),
    (112, HopperTiles(3, 64, 2, overlap=True)),
    (256, HopperTiles(2, 64, 1)),
  ),
)
@pytest.mark.parametrize(
  "name", [x for x, y in cases.specs(1, 1).items() if not jax.tree.leaves(y)]
)
def test_every_mask_with_every_width(name, width, tiles):
  mask = cases.specs(133, 140)[name]
  off, lse = _case(mask, tiles, T=133, S=140, N=2, H=width)
  assert off < WITHIN["bfloat16"] and lse < 1e-4, (off, lse)


def _lower(plan, tiles):
  q, k, _ = hopper.shapes(plan)
  return hopper.lowered(
    lambda q, k, v: gpu_hopper.forward(plan, q, k, v, tiles), q, k, k
  )


@pytest.mark.parametrize(
  "plan, tiles",
  (
    (hopper.plan(197, 197, 4, 4, 64, None), HopperTiles(2, 128, 2)),
    (hopper.plan(729, 729, 2, 2, 72, None), HopperTiles(3, 64, 2)),
    (
      hopper.plan(1280, 1280, 4, 2, 128, masks.Conv(256, 32, 32, 11)),
      HopperTiles(2, 128, 2, overlap=True),
    ),
    (
      hopper.plan(100, 1500, 2, 2, 96, None),
      HopperTiles(2, 64, 3, overlap=True),
    ),
    pytest.param(
      hopper.plan(729, 729, 2, 2, 72, None),
      HopperTiles(2, 128, 2, lazy=True),
      marks=interpreted,
    ),
  ),
)
def test_lowers_for_a_gpu(plan, tiles):
  assert "mosaic_gpu" in _lower(plan, tiles)


def test_what_is_refused_is_said():
  plan = hopper.plan(197, 197, 4, 2, 64, masks.Causal())

  def why(dtype="bfloat16", tiles=None, **given):
    return str(
      gpu_hopper.refuses(dataclasses.replace(plan, **given), dtype, tiles)
    )

  assert gpu_hopper.refuses(plan, "bfloat16", HopperTiles()) is None
  for width in (8, 72, 80, 96, 256):
    same = dataclasses.replace(plan, H=width, width=width)
    assert gpu_hopper.refuses(same, "float16") is None
  assert "float32" in why("float32")
  assert "value width 32" in why(width=32)
  assert "head_dim 68" in why(H=68, width=68)
  assert "head_dim 136" in why(H=136, width=136)
  assert "soft-cap" in why(softcap=3.0)
  assert "bias" in why(bias=(1, 1, 1, 197))
  assert "dropout" in why(rate=0.1)
  assert "mask with data" in why(axes=("b",))
  assert "interpret" in why(interpret=True)
  assert "scale -1.0" in why(scale=-1.0)
  assert "empty" in why(S=0)
  assert "batch or heads" in why(B=2**16)
  for tiles, word in (
    (HopperTiles(wgs=4), "wgs"),
    (HopperTiles(stages=0), "stages"),
    (HopperTiles(k=72), "multiple of 16"),
    (HopperTiles(k=272), "up to 256"),
    (HopperTiles(lazy=True, overlap=True), "not both"),
    (HopperTiles(k=256, stages=8), "shared memory"),
  ):
    assert word in why(tiles=tiles)
  q = jnp.zeros((1, 197, 4, 64), jnp.float32)
  k = jnp.zeros((1, 197, 2, 64), jnp.float32)
  with pytest.raises(ValueError, match="refuses dtype float32"):
    gpu_hopper.forward(plan, q, k, k, HopperTiles())
