import jax
import jax.numpy as jnp
import numpy as np

from mmjax.ops import masks
from mmjax.ops.kernels import tpu_chunks, tpu_scores, tpu_whole, tpu_whole_backward
from mmjax.ops.kernels.tiles import Whole

T, H = 512, 8
MASK = masks.Local(60, 0)


def _dense(q, k, v):
  """Attention of one head, as the formula says."""
  seen = np.asarray(masks.dense(MASK, T, T))[0, 0]
  scores = jnp.where(seen, 0.3 * q @ k.T, -jnp.inf)
  return jax.nn.softmax(scores) @ v


def test_a_window_in_one_tile_for_all_queries():
  rule = tpu_scores.Rule(
    jax.tree.structure(MASK), (), 0.3, None, rate=0.0, biased=False
  )
  chunks = tpu_chunks.chunks(rule, T, T, T)
  assert [run.step for *_, runs in chunks for run in runs][-1] == 128
  plan = tpu_whole.Plan(rule, Whole(1, 1, 1, T, 1), True)
  draw = np.random.default_rng(0)
  q, k, v, g = (
    jnp.asarray(draw.normal(size=(T, H)), "float32") for _ in "qkvg"
  )

  def ours(q, k, v):
    four = q[None, None, None], k[None, None], v[None, None]
    return tpu_whole_backward.attend(plan, *four, None, (), None)[0, 0, 0]

  got, pull = jax.vjp(ours, q, k, v)
  want, truth = jax.vjp(_dense, q, k, v)
  for a, b in zip((got, *pull(g)), (want, *truth(g)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))
