"""What the flash kernel keeps for its gradients; values are in test_tpu."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.ops import masks
from mmjax.ops.kernels import tpu_flash
from mmjax.ops.kernels import tpu_scores as tile
from mmjax.ops.kernels.tiles import Flash

PLAN = tpu_flash.Plan(
  tile.Rule(jax.tree.structure(masks.Causal(-3)), (), 0.5, None, 0.0, False),
  Flash(16, 16),
  True,
)


def test_log_of_sums_is_infinite_where_nothing_is_seen(key):
  q, k = jax.random.normal(key, (2, 1, 2, 21, 8))
  out, lse = tpu_flash.forward(PLAN, (q, k, k, None, (), None))
  s = np.einsum("BNTH,BNSH->BNTS", *np.asarray([q, k], float)) * 0.5
  seen = np.tri(21, 21, -3, dtype=bool)
  with np.errstate(divide="ignore"):
    want = np.log2(np.where(seen, np.exp(s), 0.0).sum(-1))
  assert lse.shape == (1, 2, 1, 21)
  np.testing.assert_array_equal(lse[0, :, 0, :3], np.inf)
  np.testing.assert_allclose(lse[0, :, 0, 3:], want[0, :, 3:], atol=1e-5)
  np.testing.assert_array_equal(out[:, :, :3], 0.0)


def test_cost_is_that_of_the_blocks():
  q = jax.ShapeDtypeStruct((1, 2, 64, 8), jnp.float32)
  jaxpr = jax.make_jaxpr(
    lambda q: tpu_flash.forward(PLAN, (q, q, q, None, (), None))
  )(q)
  (call,) = (e for e in jaxpr.eqns if e.primitive.name == "pallas_call")
  cost = call.params["cost_estimate"]
  # 4 x 4 blocks of 16 x 16, of which 10 are on or below the diagonal.
  assert cost.flops == 2 * 2 * 8 * 2 * 10 * 16 * 16
  assert cost.transcendentals == 2 * 10 * 16 * 16
