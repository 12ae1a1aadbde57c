"""Nothing of T x S leaves the kernels; the gradients are in test_tpu."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from mmjax.ops import masks
from mmjax.ops.kernels import tpu_flash, tpu_flash_backward
from mmjax.ops.kernels import tpu_scores as tile
from mmjax.ops.kernels.tiles import Flash


def _calls(jaxpr):
  for e in jaxpr.eqns:
    if e.primitive.name == "pallas_call":
      yield e
    else:
      for inner in core.jaxprs_in_params(e.params):
        yield from _calls(inner)


@pytest.mark.parametrize("bias", [None, (1, 2, 1, 64)])
@pytest.mark.parametrize("fused", [True, False])
def test_few_kernels_and_no_scores_in_memory(bias, fused, monkeypatch):
  """Forward and backward, one more of a bias; one more where q is too long."""
  if not fused:
    monkeypatch.setattr(tpu_flash_backward, "_MOST", 3 * 64 * 128)
  rule = tile.Rule(None, (), 0.5, None, 0.0, bias is not None)
  plan = tpu_flash.Plan(rule, Flash(16, 16), True)
  q = jax.ShapeDtypeStruct((3, 2, 64, 8), jnp.bfloat16)
  bias = None if bias is None else jax.ShapeDtypeStruct(bias, jnp.float32)

  def step(q, bias):
    out, pull = jax.vjp(
      lambda *a: tpu_flash_backward.attend(plan, *a, (), None), q, q, q, bias
    )
    return pull(out)

  calls = list(_calls(jax.make_jaxpr(step)(q, bias).jaxpr))
  assert len(calls) == 2 + (bias is not None) + (not fused)
  assert all(e.params["cost_estimate"].flops > 0 for e in calls)
  for e in calls:
    for x in e.outvars:
      assert math.prod(x.aval.shape) <= math.prod(q.shape)


@pytest.mark.parametrize("length", [64, 52])
def test_one_kernel_and_two_give_the_same(length, monkeypatch):
  """Heads that share keys, a causal mask, and blocks that T does not fill."""
  mask = masks.Causal(3)
  rule = tile.Rule(jax.tree.structure(mask), (), 0.5, None, 0.0, False)
  plan = tpu_flash.Plan(rule, Flash(32, 16), True)
  rng = np.random.default_rng(0)
  shapes = [(1, n, length, 8) for n in (4, 2, 2, 4)]
  q, k, v, d_out = (
    jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes
  )

  def step():
    _, pull = jax.vjp(
      lambda *a: tpu_flash_backward.attend(plan, *a, None, (), None), q, k, v
    )
    return pull(d_out)

  one = jax.jit(step)()
  monkeypatch.setattr(tpu_flash_backward, "_MOST", 0)
  two = jax.jit(lambda: step())()
  for a, b in zip(one, two, strict=True):
    assert np.abs(np.asarray(b)).max() > 0.1
    np.testing.assert_allclose(a, b, atol=2e-5)
