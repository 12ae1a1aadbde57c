"""All gradients by one kernel for Hopper: on a CPU against float64, and lowered.

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
from mmjax.ops.kernels import gpu_hopper_whole as hw

HERE = pathlib.Path(__file__).parent


def _beside(name):
  spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


cases, hopper, mosaic = map(_beside, ("cases", "hopper", "mosaic"))
interpreted = pytest.mark.skipif(mosaic.MISSING, reason="no GPU interpreter")
WITHIN = {"bfloat16": 1.2e-2, "float16": 2e-3}
MASKS = [x for x, y in cases.specs(1, 1).items() if not jax.tree.leaves(y)]


def _plan(T, S, N, mask, B=1):
  return hopper.plan(T, S, N, N, 64, mask, B)


def _case(mask, T, S, N=1, B=1, dtype="bfloat16", wrong=None):
  """Returns the gradients, and how far off they are."""
  draw = np.random.default_rng(T + S)
  shapes = (B, T, N, 64), (B, S, N, 64), (B, S, N, 64), (B, T, N, 64)
  q, k, v, d_out = (jnp.asarray(draw.normal(size=x), dtype) for x in shapes)
  out, *want = cases.truth((q, k, v, None), d_out, mask, 0.3, None, 0.0, None)
  plan = _plan(T, S, N, wrong or mask, B)
  args = q, k, v, d_out, hopper.lse(plan, mask, q, k), jnp.asarray(out, dtype)
  with mosaic.interpreted():
    got = jax.jit(lambda *x: hw.gradients(plan, *x))(*args)
  assert [(x.shape, x.dtype) for x in got] == [(x, dtype) for x in shapes[:3]]
  got = [np.asarray(x, float) for x in got]
  return got, [
    np.abs(x - y).max() / max(np.abs(y).max(), 1.0)
    for x, y in zip(got, want, strict=True)
  ]


FAST = {
  # ViT: an odd number of tiles would leave a warpgroup idle; here 4 and 4.
  "vit": (None, dict(T=197, S=197)),
  # One warpgroup skips the last tile of keys.
  "odd": (None, dict(T=70, S=140, N=2, B=2, dtype="float16")),
  # Chunks that see nothing of some tiles are left out.
  "causal": (masks.Causal(), dict(T=256, S=256)),
  "one tile": (masks.Causal(), dict(T=77, S=50)),
}


@interpreted
@pytest.mark.parametrize("name", FAST)
def test_gradients(name):
  mask, given = FAST[name]
  _, off = _case(mask, **given)
  assert max(off) < WITHIN[given.get("dtype", "bfloat16")], off


@interpreted
def test_rows_that_see_nothing_give_and_get_nothing():
  (d_q, d_k, d_v), off = _case(masks.Causal(-70), T=150, S=140)
  assert max(off) < WITHIN["bfloat16"], off
  np.testing.assert_array_equal(d_q[:, :70], 0.0)
  for x in (d_k, d_v):
    np.testing.assert_array_equal(x[:, 80:], 0.0)
    assert x[:, :80].any()


@interpreted
def test_wrong_mask_is_noticed():
  _, off = _case(masks.Causal(), T=50, S=50, wrong=masks.Causal(1))
  assert min(off) > 0.05, off


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("T, S", ((133, 140), (197, 256), (64, 20)))
@pytest.mark.parametrize("name", MASKS)
def test_every_mask(name, T, S):
  _, off = _case(cases.specs(T, S)[name], T=T, S=S, N=2)
  assert max(off) < WITHIN["bfloat16"], off


@pytest.mark.parametrize(
  "plan", (_plan(197, 197, 12, None), _plan(77, 250, 8, masks.Causal(4)))
)
def test_lowers_for_a_gpu(plan):
  q, k, rows = hopper.shapes(plan)
  text = hopper.lowered(lambda *x: hw.gradients(plan, *x), q, k, k, q, rows, q)
  assert "attention_dqkv" in text


def test_what_is_refused_is_said():
  plan = _plan(197, 197, 4, None)
  assert hw.refuses(plan) is None
  for word, given in {
    "head_dim 72": dict(H=72, width=72),
    "value width 32": dict(width=32),
    "2 key heads of 4": dict(K=2),
    "lengths 257, 197": dict(T=257),
    "lengths 197, 300": dict(S=300),
  }.items():
    assert word in str(hw.refuses(dataclasses.replace(plan, **given)))
  q = jax.ShapeDtypeStruct((1, 257, 4, 64), jnp.bfloat16)
  rows = jax.ShapeDtypeStruct((1, 4, 384), jnp.float32)
  with pytest.raises(ValueError, match="refuses lengths 257, 257"):
    hw.gradients(dataclasses.replace(plan, T=257, S=257), q, q, q, q, rows, q)
