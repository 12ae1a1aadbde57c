"""The GPU kernels on a CPU, in interpret mode, against float64.

What a case asks is several features at once: a compilation costs seconds.
"""

import importlib.metadata
import importlib.util
import itertools
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from mmjax import errors
from mmjax.ops import masks
from mmjax.ops.kernels import (
  gpu,
  gpu_hopper,
  gpu_hopper_backward,
  gpu_hopper_whole,
)
from mmjax.ops.kernels import gpu_tiles as gt
from mmjax.ops.kernels.gpu_hopper_backward import BackwardTiles
from mmjax.ops.kernels.gpu_hopper_whole import Whole
from mmjax.ops.kernels.gpu_tiles import Tiles

CASES = pathlib.Path(__file__).parent / "cases.py"
_spec = importlib.util.spec_from_file_location("cases", CASES)
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)

PLAIN: dict[str, Any] = dict(
  mask=None,
  bias=None,
  scale=1.0,
  softcap=None,
  dropout_rate=0.0,
  dropout_seeds=None,
)
SMALL = (Tiles(16, 16),) * 4
UNEVEN = (Tiles(32, 16), Tiles(16, 32), Tiles(32, 16), Tiles(16, 32))
# No time for LLVM to make the interpreter fast: most of a test is compilation.
QUICK = {"xla_backend_optimization_level": 0}
# What a float of the dtype may be off, by the size of the numbers.
WITHIN = {"float32": 1e-5, "bfloat16": 1.2e-2, "float16": 2e-3}


def _case(
  mask,
  T=37,
  S=45,
  N=2,
  K=1,
  H=20,
  W=20,
  bias=None,
  softcap=None,
  rate=0.0,
  dtype="float32",
  tiles=SMALL,
  wrong=None,
  B=2,
):
  """Returns the greatest differences, by the truth's size if above 1."""
  draw = np.random.default_rng(T + S + H)
  shapes = (B, T, N, H), (B, S, K, H), (B, S, K, W), (B, T, N, W)
  q, k, v, d_out = (jnp.asarray(draw.normal(size=x), dtype) for x in shapes)
  if bias is not None:
    bias = jnp.asarray(draw.normal(size=bias), jnp.float32)
  seeds = jnp.asarray(draw.integers(0, 2**32, (B, N)), jnp.uint32)
  args = q, k, v, bias
  given: dict[str, Any] = dict(scale=0.3, softcap=softcap)

  def run(args, d_out, mask):
    def attend(q, k, v, bias):
      return gpu.attend(
        q,
        k,
        v,
        mask=mask,
        bias=bias,
        dropout_rate=rate,
        dropout_seeds=seeds,
        interpret=True,
        tiles=tiles,
        **given,
      )

    out, transpose = jax.vjp(attend, *args)
    return out, transpose(d_out)

  got = jax.jit(run, compiler_options=QUICK)(args, d_out, wrong or mask)
  want = cases.truth(args, d_out, mask, rate=rate, seeds=seeds, **given)
  got = [np.asarray(x, np.float64) for x in jax.tree.leaves(got)]
  assert [x.shape for x in got] == [x.shape for x in want]
  return [
    np.abs(x - y).max() / max(np.abs(y).max(), 1.0)
    for x, y in zip(got, want, strict=True)
  ]


FAST = {
  "none": dict(S=20, T=13, W=24, tiles=UNEVEN),
  "causal_late": dict(N=4, K=2, bias=(1, 4, 37, 45), softcap=2.0),
  "lengths": dict(H=72, W=8, dtype="bfloat16"),
  "packed": dict(rate=0.2, dtype="float16", T=45),
  "conv": dict(T=64, S=64, bias=(2, 1, 1, 64), rate=0.3, tiles=UNEVEN),
}


@pytest.mark.parametrize("name", FAST)
def test_values_and_gradients(name):
  given = FAST[name]
  mask = cases.specs(given.get("T", 37), given.get("S", 45))[name]
  off = _case(mask, **given)
  assert max(off) < WITHIN[given.get("dtype", "float32")], off


def test_wrong_mask_is_noticed():
  off = _case(masks.Causal(), T=17, S=17, wrong=masks.Causal(1))
  assert min(off) > 0.05, off


@pytest.mark.slow
@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("feature", range(4))
@pytest.mark.parametrize("name", cases.specs(1, 1))
def test_every_mask_with_every_feature(name, feature, dtype):
  given = [
    dict(T=53, S=61, tiles=UNEVEN),
    dict(N=6, K=2, bias=(2, 6, 37, 45), softcap=3.0),
    dict(rate=0.4, H=16, W=40, tiles=UNEVEN),
    dict(T=20, S=36, N=4, K=4, bias=(1, 4, 20, 36), rate=0.1, softcap=1.5),
  ][feature]
  mask = cases.specs(given.get("T", 37), given.get("S", 45))[name]
  off = _case(mask, dtype=dtype, **given)
  assert max(off) < WITHIN[dtype], off


@pytest.mark.slow
@pytest.mark.parametrize("many", list(itertools.product((0, 1), repeat=4)))
def test_bias_of_any_broadcast(many):
  full = (2, 4, 37, 45)
  bias = tuple(n if m else 1 for m, n in zip(many, full, strict=True))
  off = _case(masks.Causal(3), N=4, K=2, bias=bias, rate=0.2)
  assert max(off) < WITHIN["float32"], off


def test_rows_that_see_nothing_give_and_get_nothing():
  q = jnp.ones((1, 20, 1, 16))

  def out(q, k, v):
    given = {**PLAIN, "mask": masks.KeyPadding(jnp.array([0]))}
    return gpu.attend(q, k, v, **given, interpret=True, tiles=SMALL)

  def run(q):
    got, transpose = jax.vjp(out, q, q, q)
    return got, *transpose(q)

  for x in jax.jit(run, compiler_options=QUICK)(q):
    np.testing.assert_array_equal(x, 0.0)


def test_a_bias_of_minus_infinity_is_a_mask():
  q = jax.random.normal(jax.random.key(0), (1, 18, 1, 16))
  bias = jnp.where(jnp.arange(18) < 16, -jnp.inf, 0.0).reshape(1, 1, 1, 18)
  given = {**PLAIN, "bias": bias, "scale": 0.0}
  got = gpu.attend(q, q, q, **given, interpret=True, tiles=SMALL)
  want = jnp.broadcast_to(q[:, 16:].mean(1, keepdims=True), q.shape)
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_what_is_refused_is_said():
  shape = (1, 5, 2, 8)
  assert gpu.refuses(shape, shape, shape, jnp.bfloat16) is None
  assert "float64" in str(gpu.refuses(shape, shape, shape, "float64"))
  wide = (1, 5, 2, 320)
  assert "head_dim 320" in str(gpu.refuses(wide, wide, shape, "float32"))
  assert "value width" in str(gpu.refuses(shape, shape, wide, "float32"))
  long = (64, 2**17, 16, 128)
  assert "offsets" in str(gpu.refuses(long, shape, shape, "float32"))
  q = jnp.zeros(shape)
  with pytest.raises(errors.InputError, match="one dtype"):
    gpu.attend(q, q, q.astype(jnp.bfloat16), **PLAIN, interpret=True)
  with pytest.raises(errors.InputError, match="head_dim 320"):
    wide = jnp.zeros(wide)
    gpu.attend(wide, wide, wide, **PLAIN, interpret=True)


def test_tiles_are_powers_of_two_that_fit_short_lengths():
  for T, S, width, dtype in itertools.product(
    (1, 20, 197, 4096), (36, 1500), (8, 72, 128, 256), ("bfloat16", "float32")
  ):
    for tiles in gpu.choose_tiles(T, S, width, dtype):
      for block, length in ((tiles.q, T), (tiles.k, S)):
        assert block >= 16 and block & (block - 1) == 0
        assert block < max(2 * length, 32)


A100 = "NVIDIA A100-SXM4-80GB", 108
H100 = "NVIDIA H100 80GB HBM3", 132


def _lower(q_shape, k_shape, mask, bias=None, softcap=None, rate=0.0, on=H100):
  """Lowers forward and backward for a GPU; returns the module's text."""
  kind, cores = on
  device = AbstractDevice(device_kind=kind, num_cores=cores, platform="gpu")
  q, k = (jax.ShapeDtypeStruct(x, jnp.bfloat16) for x in (q_shape, k_shape))
  if bias is not None:
    bias = jax.ShapeDtypeStruct(bias, jnp.float32)
  seeds = jax.ShapeDtypeStruct((q_shape[0], q_shape[2]), jnp.uint32)

  def loss(q, k, v, bias, mask, seeds):
    out = gpu.attend(
      q,
      k,
      v,
      mask=mask,
      bias=bias,
      scale=0.1,
      softcap=softcap,
      dropout_rate=rate,
      dropout_seeds=seeds,
    )
    return out.astype(jnp.float32).sum()

  wanted = (0, 1, 2) if bias is None else (0, 1, 2, 3)
  mesh = AbstractMesh((1,), ("x",), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    traced = jax.jit(jax.grad(loss, wanted)).trace(q, k, k, bias, mask, seeds)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def _kernels(text):
  return text.count("custom_call @__gpu$xla.gpu.triton") or text.count("triton")


def _of_hopper(text):
  return len(re.findall(r"custom_call @mosaic_gpu\w*\(", text))


def test_lowers_for_a_gpu():
  vit = _lower((2, 197, 4, 64), (2, 197, 4, 64), None, on=A100)
  assert _kernels(vit) == 3  # forward, dq, dkv
  assert _of_hopper(vit) == 0
  ids = jnp.zeros((2, 45), jnp.int32)
  mask = masks.Conv(20, 5, 6, 3) & masks.Segments(ids, ids) | masks.Local(3, 1)
  text = _lower(
    (2, 45, 4, 72), (2, 45, 2, 72), mask, (1, 4, 45, 45), softcap=2.0, rate=0.1
  )
  assert _kernels(text) == 4  # and the bias' gradient


def _many_kernels_of_hopper(q_shape, mask):
  text = _lower(q_shape, q_shape, mask)
  return _kernels(text), _of_hopper(text)


of_hopper = pytest.mark.skipif(
  jax.__version_info__ < (0, 11), reason="not taken with this JAX"
)


@of_hopper
def test_hopper_has_kernels_of_its_own():
  whisper = _lower((2, 1500, 4, 64), (2, 1500, 4, 64), None)
  assert (_kernels(whisper), _of_hopper(whisper)) == (0, 3)
  vit = _lower((2, 197, 4, 64), (2, 197, 4, 64), None)
  assert (_kernels(vit), _of_hopper(vit)) == (0, 2)  # forward, all gradients
  clip = _lower((2, 257, 4, 64), (2, 257, 4, 64), None)
  assert (_kernels(clip), _of_hopper(clip)) == (1, 2)  # dq: fills tiles badly
  text = _lower((2, 77, 4, 64), (2, 77, 4, 64), masks.Causal())
  assert (_kernels(text), _of_hopper(text)) == (0, 2)
  # Short ones and what they refuse are for the others, whatever the chip.
  short = _lower((2, 20, 4, 64), (2, 36, 4, 64), None)
  assert (_kernels(short), _of_hopper(short)) == (3, 0)
  bias = _lower((2, 197, 4, 64), (2, 197, 4, 64), None, (1, 4, 1, 197))
  assert (_kernels(bias), _of_hopper(bias)) == (4, 0)
  q = (1, 1280, 2, 64)
  conv = _lower(q, q, masks.Conv(256, 32, 32, 11))
  assert (_kernels(conv), _of_hopper(conv)) == (0, 3)
  # A predicate on most tiles.
  near = _lower(q, q, masks.Local(30, 30))
  assert (_kernels(near), _of_hopper(near)) == (3, 0)


@of_hopper
@pytest.mark.parametrize("mask", (None, masks.Causal(), masks.Local(9, 9)))
@pytest.mark.parametrize("K", (1, 4))
def test_no_kernel_for_hopper_is_taken_that_refuses(mask, K):
  for length in (64, 77, 128, 197, 257, 400, 512, 577, 729, 1500, 4096):
    for width in (*range(8, 129, 8), 256):
      plan = gt.Plan(
        *(2, length, length + 3, 4, K, width, width),
        scale=0.1,
        softcap=None,
        rate=0.0,
        mask=None if mask is None else jax.tree.structure(mask),
        axes=(),
        bias=None,
        tiles=gpu.choose_tiles(length, length + 3, width, "bfloat16"),
        interpret=False,
      )
      tiles = gpu.for_hopper(plan, "bfloat16").tiles
      if isinstance(tiles.forward, gpu.HopperTiles):
        assert gpu_hopper.refuses(plan, "bfloat16", tiles.forward) is None
      if isinstance(tiles.d_q, Whole):
        assert gpu_hopper_whole.refuses(plan) is None
      for mine, own in ((tiles.d_q, 3), (tiles.d_kv, 2)):
        if isinstance(mine, BackwardTiles):
          assert gpu_hopper_backward.refuses(plan, mine, own) is None


@of_hopper
def test_an_assembler_that_makes_wrong_code_of_masks_gets_none(monkeypatch):
  real = importlib.metadata.version

  def found(version):
    monkeypatch.setattr(
      importlib.metadata,
      "version",
      lambda x: version if x.startswith("nvidia-cuda-nvcc") else real(x),
    )

  q = (1, 1024, 2, 64)
  for version, wrong in (
    ("12.6.85", False),
    ("12.8.61", True),
    ("12.9.41", True),
    ("12.9.86", False),
  ):
    found(version)
    assert gpu.miscompiles_masks() == wrong
    causal = (3, 0) if wrong else (0, 3)
    assert _many_kernels_of_hopper(q, masks.Causal()) == causal
  found("12.8.61")
  assert _many_kernels_of_hopper(q, None) == (0, 3)


def test_a_jax_that_nobody_ran_them_on_takes_none(monkeypatch):
  monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
  assert _many_kernels_of_hopper((1, 1024, 2, 64), None) == (3, 0)


@of_hopper
def test_chips_of_hopper_are_known_by_name():
  for kind, known in (
    ("NVIDIA H100 80GB HBM3", True),
    ("NVIDIA H200", True),
    ("NVIDIA GH200 480GB", True),
    ("NVIDIA H20", True),
    ("NVIDIA A100-SXM4-80GB", False),
    ("NVIDIA B200", False),
    ("NVIDIA GeForce RTX 5090", False),
  ):
    device = AbstractDevice(device_kind=kind, num_cores=1, platform="gpu")
    mesh = AbstractMesh((1,), ("x",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
      assert gpu.on_hopper() == known, kind
  assert not gpu.on_hopper()  # this is a CPU


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.specs(1, 1))
def test_every_mask_lowers_for_a_gpu(name):
  bias = (1, 1, 1, 45)
  text = _lower((2, 37, 4, 72), (2, 45, 2, 72), cases.specs(37, 45)[name], bias)
  assert _kernels(text) == 4


def test_cost_is_estimated_and_sparse_masks_cost_less():
  q = jax.ShapeDtypeStruct((1, 1024, 2, 64), jnp.bfloat16)

  def flops(mask):
    def out(q):
      return gpu.attend(q, q, q, **{**PLAIN, "mask": mask})

    found = re.findall(r"flops=(\d+)", str(jax.make_jaxpr(out)(q)))
    return int(found[0])

  full = flops(None)
  assert full == 4 * 64 * 2 * 1024**2
  assert 0.5 < flops(masks.Causal()) / full < 0.6
