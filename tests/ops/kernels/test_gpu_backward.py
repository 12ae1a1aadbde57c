"""What test_gpu does not ask of the gradients: by what they are computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops import masks
from mmjax.ops.kernels import gpu
from mmjax.ops.kernels.gpu_tiles import Tiles

QUICK = {"xla_backend_optimization_level": 0}
SMALL = (Tiles(16, 16),) * 4


def _loss(q, k, v, bias):
  out = gpu.attend(
    q,
    k,
    v,
    mask=masks.Causal(),
    bias=bias,
    scale=0.25,
    softcap=None,
    dropout_rate=0.0,
    dropout_seeds=None,
    interpret=True,
    tiles=SMALL,
  )
  return (out.astype(jnp.float32) ** 2).sum()


def _loops(wanted):
  """Counts the loops of the interpreted kernels that XLA computes."""
  q = jax.ShapeDtypeStruct((1, 18, 2, 16), jnp.float32)
  bias = jax.ShapeDtypeStruct((1, 2, 18, 18), jnp.float32)
  grad = jax.jit(jax.grad(_loss, wanted), compiler_options=QUICK)
  text = grad.lower(q, q, q, bias).compile().as_text()
  return str(text).count(" while(")


def test_gradients_nobody_asks_for_are_not_computed():
  # Each kernel is at least a loop over its programs and one inside.
  assert _loops((0, 1, 2, 3)) >= _loops((0,)) + 4


@pytest.mark.slow
def test_gradients_are_the_differences_of_values():
  draw = np.random.default_rng(0)
  q, k, v = (
    jnp.asarray(draw.normal(size=(1, 18, 2, 16)), "float32") for _ in "qkv"
  )
  bias = jnp.asarray(draw.normal(size=(1, 1, 18, 18)), jnp.float32)
  args = q, k, v, bias
  way = tuple(jnp.asarray(draw.normal(size=x.shape), "float32") for x in args)
  loss = jax.jit(_loss, compiler_options=QUICK)
  up, down = (
    float(loss(*(x + s * w for x, w in zip(args, way, strict=True))))
    for s in (1e-2, -1e-2)
  )
  grad = jax.jit(
    jax.grad(_loss, (0, 1, 2, 3)),
    compiler_options=QUICK,
  )(*args)
  slope = sum(float((g * w).sum()) for g, w in zip(grad, way, strict=True))
  np.testing.assert_allclose((up - down) / 2e-2, slope, rtol=5e-3)
