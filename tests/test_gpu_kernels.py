"""The GPU kernels where they belong: on a GPU, compiled, against float64.

Whatever kernels the door would take on this GPU. Not run by default:
`JAX_PLATFORMS=cuda pytest -m gpu -n 8 tests/test_gpu_kernels.py`.
"""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops.kernels import gpu

CASES = pathlib.Path(__file__).parent / "ops" / "kernels" / "cases.py"
_spec = importlib.util.spec_from_file_location("cases", CASES)
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)

pytestmark = [
  pytest.mark.gpu,
  pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU here"),
]
WITHIN = {"float32": 2e-5, "bfloat16": 1.2e-2, "float16": 2e-3}
# T, S, heads, key heads, width, dtype, features
SHAPES = {
  "vit": (197, 197, 3, 3, 64, "bfloat16", {}),
  "grouped72": (229, 197, 4, 2, 72, "bfloat16", {}),
  "wide": (256, 320, 2, 1, 128, "float16", {}),
  "few": (20, 36, 2, 2, 64, "bfloat16", {}),
  "text": (77, 100, 2, 2, 64, "float16", {}),
  "cut": (257, 257, 2, 2, 64, "bfloat16", {}),
  # Tiles of three warpgroups end past the sums of rows, which end at 640.
  "long": (577, 600, 2, 1, 64, "bfloat16", {}),
  "longer": (1100, 1030, 2, 2, 72, "bfloat16", {}),
  "all": (133, 140, 4, 2, 40, "bfloat16", {"softcap": 2.0, "rate": 0.2}),
  "float32": (140, 133, 2, 2, 20, "float32", {"rate": 0.3}),
}


def _off(shape, mask, wrong=None):
  """Returns the greatest differences, by the truth's size if above 1."""
  T, S, N, K, H, dtype, features = shape
  B, draw = 2, np.random.default_rng(T + H)
  shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H)
  q, k, v, d_out = (jnp.asarray(draw.normal(size=x), dtype) for x in shapes)
  bias = None
  if features:
    bias = jnp.asarray(draw.normal(size=(1, N, T, S)), jnp.float32)
  seeds = jnp.asarray(draw.integers(0, 2**32, (B, N)), jnp.uint32)
  softcap, rate = features.get("softcap"), features.get("rate", 0.0)
  args = q, k, v, bias

  @jax.jit
  def run(args, d_out, mask):
    def attend(q, k, v, bias):
      return gpu.attend(
        q,
        k,
        v,
        mask=mask,
        bias=bias,
        scale=0.2,
        softcap=softcap,
        dropout_rate=rate,
        dropout_seeds=seeds,
      )

    out, transpose = jax.vjp(attend, *args)
    return out, transpose(d_out)

  got = jax.tree.leaves(run(args, d_out, wrong or mask))
  want = cases.truth(args, d_out, mask, 0.2, softcap, rate, seeds)
  return [
    np.abs(np.asarray(x, np.float64) - y).max() / max(np.abs(y).max(), 1.0)
    for x, y in zip(got, want, strict=True)
  ]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("mask", cases.specs(1, 1))
def test_values_and_gradients(mask, name):
  T, S, *_, dtype, _ = shape = SHAPES[name]
  off = _off(shape, cases.specs(T, S)[mask])
  assert max(off) < WITHIN[dtype], off


@pytest.mark.parametrize("name", SHAPES)
def test_wrong_mask_is_noticed(name):
  masks = cases.specs(*SHAPES[name][:2])
  off = _off(SHAPES[name], masks["causal"], wrong=masks["banded"])
  assert min(off) > 0.05, off


@pytest.mark.parametrize("name", ["vit", "wide"])
def test_a_mapped_axis_is_one_more_of_the_batch(name):
  T, S, N, K, H, dtype, _ = SHAPES[name]
  draw = np.random.default_rng(1)
  q, k = (
    jnp.asarray(draw.normal(size=x), dtype)
    for x in ((3, 2, T, N, H), (3, 2, S, K, H))
  )

  def loss(q, k):
    out = gpu.attend(
      q,
      k,
      k,
      mask=None,
      bias=None,
      scale=0.2,
      softcap=None,
      dropout_rate=0.0,
      dropout_seeds=None,
    )
    return (out.astype(jnp.float32) ** 2).sum()

  gradients = jax.jit(jax.grad(loss, (0, 1)))
  mapped = jax.jit(jax.vmap(jax.grad(loss, (0, 1))))(q, k)
  for i in range(3):
    for one, all_ in zip(gradients(q[i], k[i]), mapped, strict=True):
      np.testing.assert_array_equal(one, all_[i])


def test_two_runs_are_the_same_bit_for_bit():
  draw = np.random.default_rng(1)
  q, k = (
    jnp.asarray(draw.normal(size=(64, 197, 12, 64)), "bfloat16") for _ in "qk"
  )

  @jax.jit
  def run(q, k):
    def attend(q, k):
      return gpu.attend(
        q,
        k,
        k,
        mask=None,
        bias=None,
        scale=0.125,
        softcap=None,
        dropout_rate=0.0,
        dropout_seeds=None,
      )

    out, transpose = jax.vjp(attend, q, k)
    return out, *transpose(out)

  first = run(q, k)
  for _ in range(5):
    for one, other in zip(first, run(q, k), strict=True):
      np.testing.assert_array_equal(one, other)
