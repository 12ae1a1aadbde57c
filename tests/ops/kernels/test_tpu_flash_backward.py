"""Nothing of T x S leaves the kernels; the gradients are in test_tpu."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

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
def test_a_kernel_for_each_gradient_and_no_scores_in_memory(bias):
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
  assert len(calls) == (3 if bias is None else 4)
  assert all(e.params["cost_estimate"].flops > 0 for e in calls)
  for e in calls:
    for x in e.outvars:
      assert math.prod(x.aval.shape) <= math.prod(q.shape)
