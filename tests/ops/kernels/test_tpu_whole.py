"""The forward pass, and the log of sums that the backward one takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from mmjax.ops import masks
from mmjax.ops.kernels import tpu_call, tpu_scores, tpu_whole
from mmjax.ops.kernels.tiles import Whole


@pytest.mark.parametrize(
  "dtype, within", [("float32", 1e-5), ("bfloat16", 2e-2)]
)
@pytest.mark.parametrize(
  "width, share, narrow",
  [(16, 8, True), (64, 2, False), (20, 1, True), (48, 8, True), (192, 2, True)],
)
def test_values_and_log_of_sums(width, share, narrow, dtype, within):
  """Rows of ones beside the values sum the weights; one query sees nothing."""
  T, S, N = 37, 45, share
  mask = masks.Causal(-1)
  rule = tpu_scores.Rule(
    jax.tree.structure(mask), (), 0.3, None, rate=0.0, biased=False
  )
  packed = N > 1
  tiles = Whole(1, N, 1, 128, N)
  plan = tpu_call.Plan(rule, tiles, True, width * packed, narrow)
  draw = np.random.default_rng(0)
  shapes = (1, T, N, width), (1, S, N, width), (1, S, N, width)
  q, k, v = (jnp.asarray(draw.normal(size=x), dtype) for x in shapes)
  if packed:
    given = [x.reshape(*x.shape[:2], -1) for x in (q, k, v)]
  else:
    given = [q.swapaxes(1, 2)[:, :, None], k.swapaxes(1, 2), v.swapaxes(1, 2)]
  out, lse = tpu_whole.forward(plan, (*given, None, (), None), keep=True)
  q, k, v = (np.asarray(x, np.float64)[0].swapaxes(0, 1) for x in (q, k, v))
  seen = np.asarray(masks.dense(mask, T, S))[0, 0]
  scores = np.where(seen, 0.3 * q @ k.swapaxes(1, 2), -np.inf)[:, 1:]
  want = special.softmax(scores, -1) @ v
  out = np.asarray(out, np.float64)
  if packed:
    out = out.reshape(T, N, width).swapaxes(0, 1)
  out = out.reshape(N, T, width)
  np.testing.assert_allclose(out[:, 1:], want, atol=within)
  np.testing.assert_array_equal(out[:, 0], 0.0)
  logs = np.asarray(lse).reshape(N, T)
  want = special.logsumexp(scores, -1) * np.log2(np.e)
  np.testing.assert_allclose(logs[:, 1:], want, atol=within)
  assert np.isposinf(logs[:, 0]).all()  # so that its weights come out 0
