"""Biases by distance: windows, tiles, and the kernels that read them."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops.bias import Buckets, Offsets
from mmjax.ops.kernels import tpu, tpu_band
from mmjax.ops.kernels.tiles import Flash, Whole

CASES = pathlib.Path(__file__).parent / "cases.py"
_spec = importlib.util.spec_from_file_location("cases", CASES)
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)

B, T, S, N, H = 2, 37, 45, 4, 16


def _bias(seed=0):
  draw = np.random.default_rng(seed)
  return Buckets(jnp.asarray(draw.normal(size=(N, 8)), jnp.float32), 20)


@pytest.mark.parametrize("block", [16, 256])
def test_tiles_are_those_of_the_dense_bias(block):
  length_q, length_k = 2 * block + 5, 3 * block - 7
  bias = _bias()
  dense = np.asarray(bias.dense(length_q, length_k))[0]
  found = tpu_band.windows(bias, length_q, length_k, block)
  assert found.shape == (N, 5, 8, 2 * block)
  other = tpu_band.turned(found)
  spread = jax.jit(tpu_band.spread)
  for i, j in np.ndindex(3, 3):
    at = np.s_[1, i * block : (i + 1) * block, j * block : (j + 1) * block]
    want = dense[at]
    rows, keys = want.shape
    tile = spread(found[1, j - i + 2])
    np.testing.assert_array_equal(tile[:rows, :keys], want)
    tile = spread(other[1, j - i + 2])
    np.testing.assert_array_equal(tile[:keys, :rows], want.T)


@pytest.mark.parametrize("block", [16, 256])
def test_to_fold_is_the_transpose_of_to_spread(key, block):
  a, b = jax.random.split(key)
  window = jax.random.normal(a, (8, 2 * block))
  tile = jax.random.normal(b, (block, block))
  got = jax.jit(tpu_band.fold)(tile)
  # <spread(w), t> = <w, fold(t)>
  want = (jax.jit(tpu_band.spread)(window) * tile).sum()
  np.testing.assert_allclose((window * got).sum(), want, rtol=1e-4)


def _run(tiles, rate, wrong=None, mask="prefix", bias=None):
  """Returns the differences from float64: values and all gradients."""
  draw = np.random.default_rng(3)
  shapes = (B, T, N, H), (B, S, 2, H), (B, S, 2, H), (B, T, N, H)
  q, k, v, d_out = (jnp.asarray(draw.normal(size=x), "float32") for x in shapes)
  seeds = jnp.asarray(draw.integers(0, 2**32, (B, N)), jnp.uint32)
  mask, bias = cases.specs(T, S)[mask], bias or _bias()

  @jax.jit
  def run(q, k, v, bias, mask):
    def attend(q, k, v, bias):
      return tpu.attend(
        q,
        k,
        v,
        mask=mask,
        bias=bias,
        scale=0.3,
        softcap=2.0,
        dropout_rate=rate,
        dropout_seeds=seeds,
        interpret=True,
        tiles=tiles,
      )

    out, transpose = jax.vjp(attend, q, k, v, bias)
    return out, transpose(d_out)

  got = jax.tree.leaves(run(q, k, v, wrong or bias, mask))
  args = q, k, v, bias.dense(T, S)
  *want, d_dense = cases.truth(args, d_out, mask, 0.3, 2.0, rate, seeds)
  at = np.asarray(bias.index(np.arange(T)[:, None], np.arange(S)[None]))
  want.append(
    np.stack(
      [np.bincount(at.ravel(), d.ravel(), bias.entries()) for d in d_dense[0]]
    )
  )
  return [
    np.abs(np.asarray(x, float) - y).max() / np.abs(y).max()
    for x, y in zip(got, want, strict=True)
  ]


def test_values_and_gradients():
  off = _run(Flash(16, 16), 0.2)
  assert len(off) == 5 and max(off) < 3e-6, off


def test_another_rule_is_noticed():
  bias = _bias()
  wrong = Buckets(bias.table, 20, bidirectional=False)
  off = _run(Flash(16, 16), 0.0, wrong)
  assert min(off) > 0.02, off


@pytest.mark.slow
@pytest.mark.parametrize(
  "tiles", [Flash(16, 16), Flash(32, 16), Whole(1, 1, 2, 128)]
)
@pytest.mark.parametrize("mask", ["none", "causal", "segments", "row", "local"])
@pytest.mark.parametrize("kind", ["buckets", "offsets"])
def test_tables_with_every_kind_of_mask(tiles, mask, kind):
  bias = _bias()
  if kind == "offsets":
    table = np.random.default_rng(0).normal(size=(N, 13 * 9 + 3))
    bias = Offsets(jnp.asarray(table, jnp.float32), 7, 5, 10)
  off = _run(tiles, 0.2, mask=mask, bias=bias)
  assert max(off) < 3e-6, off


def test_no_array_of_queries_by_keys_is_made():
  """A table stays one: neither pass of a long sequence has T x S numbers."""
  shape = jax.ShapeDtypeStruct((1, 2048, N, 64), jnp.bfloat16)

  def step(q, bias):
    out = tpu.attend(
      q,
      q,
      q,
      mask=None,
      bias=bias,
      scale=1.0,
      softcap=None,
      dropout_rate=0.0,
      dropout_seeds=None,
    )
    return out.astype(jnp.float32).sum()

  def largest(bias):
    jaxpr = jax.make_jaxpr(jax.grad(step, (0, 1)))(shape, bias)
    return max(x.aval.size for e in jaxpr.eqns for x in e.outvars)

  assert tpu.reads_table(_bias(), 2048, 2048)
  assert not tpu.reads_table(_bias(), 512, 512)
  assert largest(_bias()) < 2048 * 2048
  assert largest(_bias().dense(2048, 2048)) >= N * 2048 * 2048
