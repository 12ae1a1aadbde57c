"""What tests of the kernels for Hopper have in common: calls, and their chip."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractDevice, AbstractMesh

from mmjax.ops import masks
from mmjax.ops.kernels import gpu_tiles as gt


def plan(T, S, N, K, H, mask, B=1):
  """Returns a call without bias, soft-cap and dropout."""
  return gt.Plan(
    *(B, T, S, N, K, H, H),
    scale=0.3,
    softcap=None,
    rate=0.0,
    mask=None if mask is None else jax.tree.structure(mask),
    axes=() if mask is None else masks.leaf_axes(mask),
    bias=None,
    tiles=(),
    interpret=False,
  )


def lse(plan, mask, q, k):
  """Returns log2 of the sums of rows, as the backward kernels take them."""
  q, k = (np.asarray(x, float) for x in (q, k))
  k = np.repeat(k, plan.group, axis=2)
  e = np.exp(np.einsum("BTNH,BSNH->BNTS", q, k) * plan.scale)
  if mask is not None:
    e = np.where(np.asarray(masks.dense(mask, plan.T, plan.S)), e, 0.0)
  total = e.sum(-1)
  lse = np.where(total, np.log2(np.where(total, total, 1.0)), np.inf)
  length = gt.up(plan.T, gt.LSE_ROWS)
  return gt.fit(jnp.asarray(lse, jnp.float32), length, jnp.inf)


def shapes(plan):
  """Returns the shapes of q, of k, and of sums of rows."""
  rows = (plan.B, plan.N, gt.up(plan.T, gt.LSE_ROWS))
  return (
    jax.ShapeDtypeStruct((plan.B, plan.T, plan.N, plan.H), jnp.bfloat16),
    jax.ShapeDtypeStruct((plan.B, plan.S, plan.K, plan.H), jnp.bfloat16),
    jax.ShapeDtypeStruct(rows, jnp.float32),
  )


def lowered(f, *args):
  """Lowers f for an H100; returns the module's text."""
  h100 = AbstractDevice(
    device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu"
  )
  mesh = AbstractMesh((1,), ("x",), abstract_device=h100)
  with jax.sharding.use_abstract_mesh(mesh):
    traced = jax.jit(f).trace(*args)
    return traced.lower(lowering_platforms=("cuda",)).as_text()
