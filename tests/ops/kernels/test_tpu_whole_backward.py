"""Gradients of a chunk whose keys move on with its queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops import masks
from mmjax.ops.kernels import (
  tpu_call,
  tpu_chunks,
  tpu_scores,
  tpu_whole_backward,
)
from mmjax.ops.kernels.tiles import Whole

T = 512
MASK = masks.Local(60, 0)


def _dense(q, k, v):
  """Attention of some heads [T N H], as the formula says."""
  seen = np.asarray(masks.dense(MASK, T, T))[0, 0]
  scores = jnp.where(seen, 0.3 * jnp.einsum("TNH,SNH->NTS", q, k), -jnp.inf)
  return jnp.einsum("NTS,SNH->TNH", jax.nn.softmax(scores), v)


@pytest.mark.parametrize(
  "heads, width, narrow", [(1, 8, False), (4, 32, False), (8, 48, True)]
)
def test_a_window_in_one_tile_for_all_queries(heads, width, narrow):
  rule = tpu_scores.Rule(
    jax.tree.structure(MASK), (), 0.3, None, rate=0.0, biased=False
  )
  chunks = tpu_chunks.chunks(rule, T, T, T)
  assert [run.step for *_, runs in chunks for run in runs][-1] == 128
  packed = heads > 1
  tiles = Whole(1, heads, 1, T, heads)
  plan = tpu_call.Plan(rule, tiles, True, width * packed, narrow)
  draw = np.random.default_rng(0)
  q, k, v, g = (
    jnp.asarray(draw.normal(size=(T, heads, width)), "float32") for _ in "qkvg"
  )

  def ours(q, k, v):
    if packed:
      given = [x.reshape(1, T, -1) for x in (q, k, v)]
    else:
      given = [x.swapaxes(0, 1)[None] for x in (q, k, v)]
      given[0] = given[0][:, :, None]
    out = tpu_whole_backward.attend(plan, *given, None, (), None)
    return out.reshape(T, heads, width)

  got, pull = jax.vjp(ours, q, k, v)
  want, truth = jax.vjp(_dense, q, k, v)
  for a, b in zip((got, *pull(g)), (want, *truth(g)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))
