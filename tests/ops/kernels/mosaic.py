"""Runs Pallas Mosaic GPU kernels on a CPU, for tests.

Pallas' own interpreter of GPU kernels has warpgroups (as threads), barriers,
TMA and shared memory. What it lacks of wgmma is added here: products whose left
side is in registers, and accumulators that begin with values. And the members
of a `RefUnion`, of one shape, are one memory; Pallas gives each its own.
"""

import contextlib

import jax
import jax.numpy as jnp
import pytest
from jax._src.state import primitives as state
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mmjax.ops.kernels import gpu_hopper_memory as memory

# jax 0.10 has none.
MISSING = not hasattr(plgpu, "force_gpu_interpret_mode")


def any_of_warp(x):
  """What each warp asks of its rows, asked of all of a warpgroup."""
  return jnp.any(x)


@contextlib.contextmanager
def interpreted():
  """Kernels that are traced in this context run on the CPU."""
  from jax._src.pallas.mosaic_gpu import core, primitives
  from jax._src.pallas.mosaic_gpu.interpret import (
    gpu_callbacks,
    jaxpr_interpret,
  )

  interpreter = jaxpr_interpret.JaxprInterpreter
  from_memory = interpreter._interpret_wgmma_ref_p

  def resolve(aval, key, transforms):
    if isinstance(aval, core.AbstractRefUnion):
      return key[0], tuple(transforms[1:])
    return key, transforms

  def product(self, eqn, token, get_invals):
    """acc += a b, a being an array."""
    if not isinstance(eqn.invars[1].aval, jax.core.ShapedArray):
      return from_memory(self, eqn, token, get_invals)
    acc, a, b, *leaves = get_invals()
    assert not eqn.params["acc_transforms_tree"]
    tree = eqn.params["b_transforms_tree"]
    transforms = () if tree is None else jax.tree.unflatten(tree, leaves)
    shared = dict(mesh_location=self.mesh_location, thread=self.thread)

    def get(token, key, shape, dtype, transforms):
      return gpu_callbacks.call_get(
        token=token,
        result_shape_and_dtype=jax.ShapeDtypeStruct(shape, dtype),
        allocation_key_as_array=key,
        transforms=transforms,
        **shared,
      )

    out = eqn.invars[0].aval
    b, transforms = resolve(eqn.invars[2].aval, b, transforms)
    token, b = get(token, b, (a.shape[1], out.shape[1]), a.dtype, transforms)
    token, old = get(token, acc, out.shape, out.dtype, ())
    new = old + jnp.dot(a, b, preferred_element_type=out.dtype)
    token, _ = gpu_callbacks.call_swap(
      token=token,
      result_shape_and_dtype=out.inner_aval,
      allocation_key_as_array=acc,
      transforms=(),
      val=new,
      mask=None,
      **shared,
    )
    return token, []

  def store(ref, value):
    state.ref_swap(ref, ..., value)

  pad, clip = (
    gpu_callbacks._pad_to_requested,
    gpu_callbacks._clip_store_to_shape,
  )

  def read(value, requested, *rest):
    """Past the end of a row of bytes is the next one, no zeros."""
    inside = value is not None and value.shape == requested
    assert inside or len(requested) > 1, "vector read past the end"
    return pad(value, requested, *rest)

  def write(access, value, shape):
    found = clip(access, value, shape)
    inside = found is not None and found[1].shape == value.shape
    assert inside or value.ndim > 1, "vector written past the end"
    return found

  def run_state(function):
    def run(values):
      leaves, tree = jax.tree.flatten(values)
      # An accumulator stands for the array that it begins with.
      leaves = [getattr(x, "_init", x) for x in leaves]

      def scoped(*refs):
        for ref, x in zip(refs, leaves, strict=True):
          store(ref, x)
        function(jax.tree.unflatten(tree, refs))
        return jax.tree.unflatten(tree, [x[...] for x in refs])

      return pl.run_scoped(
        scoped, *(plgpu.ACC(x.shape, x.dtype) for x in leaves)
      )

    return run

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(interpreter, "_interpret_wgmma_ref_p", product)
    patch.setattr(jaxpr_interpret, "resolve_ref", resolve)
    patch.setattr(gpu_callbacks, "_pad_to_requested", read)
    patch.setattr(gpu_callbacks, "_clip_store_to_shape", write)
    patch.setattr(primitives, "wgmma_accumulator_store", store)
    patch.setattr(pl, "run_state", run_state)
    patch.setattr(memory, "any_of_warp", lambda x: any_of_warp(x))
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams()):
      yield
