import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops import masks
from mmjax.ops.kernels import reference

PLAIN = dict(bias=None, softcap=None, dropout_rate=0.0, dropout_seeds=None)


def test_equals_the_library_of_jax(key):
  q, k, v = (
    jax.random.normal(x, (2, 7, 4, 8)) for x in jax.random.split(key, 3)
  )
  got = reference.attend(q, k, v, mask=masks.Causal(), scale=0.3, **PLAIN)
  want = jax.nn.dot_product_attention(q, k, v, scale=0.3, is_causal=True)
  np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.fixture
def compute(key):
  """Two query heads a key head: gradients, outputs with and without, program."""
  q, k, v = (
    jax.random.normal(x, (4, length, heads, 8))
    for x, length, heads in zip(
      jax.random.split(key, 3), (7, 5, 5), (8, 4, 4), strict=True
    )
  )
  mask = masks.Causal(-1) & masks.KeyPadding(jnp.array([5, 2, 0, 4]))

  def both(**kw):
    def f(q, k, v):
      out = reference.attend(q, k, v, mask=mask, scale=0.3, **{**PLAIN, **kw})
      return jnp.sin(out).sum(), out

    grad = jax.jit(jax.grad(f, (0, 1, 2), has_aux=True))
    results = grad(q, k, v), jax.jit(f)(q, k, v)
    programs = (str(jax.make_jaxpr(g)(q, k, v)) for g in (grad, f))
    return results, "".join(programs)

  return both


@pytest.mark.parametrize("cache", [1, 4 * 2 * 7 * 5 * 2], ids=["1", "2"])
def test_heads_in_turn_compute_the_same(compute, monkeypatch, cache):
  """One or two key heads at a time."""
  want, whole = compute()
  monkeypatch.setattr(reference, "_LARGE", 0)
  monkeypatch.setattr(reference, "_HEAD", 0)
  monkeypatch.setattr(reference, "_CACHE", cache)
  got, turns = compute()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want
  )
  # Without a gradient, heads are cut out of the arrays where they lie.
  for word in ("scan", "dynamic_update_slice"):
    assert word in turns and word not in whole
  assert f"length={16 if cache == 1 else 8}" in turns


def test_parts_of_the_batch_compute_the_same(compute, key, monkeypatch):
  """With a bias that all rows share, and weights dropped in each its own."""
  more = dict(
    bias=jax.random.normal(key, (1, 8, 7, 5)),
    dropout_rate=0.5,
    dropout_seeds=jnp.arange(32, dtype=jnp.uint32).reshape(4, 8),
  )
  want, whole = compute(**more)
  monkeypatch.setattr(reference, "_MEDIUM", 0)
  monkeypatch.setattr(
    os, "sched_getaffinity", lambda _: range(3), raising=False
  )
  got, parts = compute(**more)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want
  )
  assert "platform_index" in parts and "platform_index" not in whole


def test_a_part_of_the_batch_for_each_core(monkeypatch):
  monkeypatch.setattr(
    os, "sched_getaffinity", lambda _: range(6), raising=False
  )
  assert [reference._parts(n) for n in (1, 7, 8, 12)] == [1, 1, 4, 6]


@pytest.mark.parametrize("mask", [None, masks.Causal()], ids=["all", "causal"])
def test_a_cpu_writes_no_scores_where_nothing_is_differentiated(mask):
  B, T, N, H = 4, 512, 4, 16
  x = jax.ShapeDtypeStruct((B, T, N, H), jnp.float32)

  def f(q, k, v):
    return reference.attend(q, k, v, mask=mask, scale=1.0, **PLAIN)

  temporary = jax.jit(f).lower(x, x, x).compile().memory_analysis()
  scores = 4 * B * N * T * T
  # Four arrays of heads first, and a mask.
  most = 4 * 4 * B * T * N * H + (0 if mask is None else 5 * T * T)
  assert temporary.temp_size_in_bytes <= most < scores / 2


def test_large_scores_neither_overflow_nor_lose_their_order(key):
  q = jnp.full((1, 1, 1, 4), 1e4)
  k = jnp.array([1.0, 1.1, -1.0]).reshape(1, 3, 1, 1) * jnp.ones((1, 3, 1, 4))
  v = jnp.arange(3.0).reshape(1, 3, 1, 1)
  got = reference.attend(q, k, v, mask=None, scale=1.0, **PLAIN)
  np.testing.assert_allclose(got, 1.0)


def test_scale_is_not_rounded_in_bfloat16(key):
  # 7**-0.5 is no bfloat16 number.
  q, k, v = (
    jax.random.normal(x, (1, 1, 1, 7), jnp.bfloat16)
    for x in jax.random.split(key, 3)
  )
  k = jnp.repeat(k, 4, axis=1) * jnp.arange(1.0, 5.0).reshape(1, 4, 1, 1)
  k = k.astype(jnp.bfloat16)
  v = jnp.eye(4, dtype=jnp.bfloat16).reshape(1, 4, 1, 4)
  got = reference.attend(q, k, v, mask=None, scale=7**-0.5, **PLAIN)
  scores = (
    np.asarray(q, np.float64)[0, :, 0] @ np.asarray(k, np.float64)[0, :, 0].T
  )
  want = np.exp(scores * 7**-0.5)
  np.testing.assert_allclose(
    got[0, :, 0].astype(np.float32), want / want.sum(), rtol=5e-3
  )
