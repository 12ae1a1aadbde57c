"""One training step, a pure function."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax import errors
from mmjax.train.state import TrainState
from mmjax.typing import Batch, Metrics, Task

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
NAN_POLICIES = ("stop", "skip")


def make_step(
  task: Task,
  tx: optax.GradientTransformation,
  *,
  ema_decay: float | None = None,
  nan: str = "stop",
  schedule: Callable[[jax.Array], jax.Array] | None = None,
  frozen: Any = None,
) -> Step:
  """Makes (state, batch) -> (state, metrics).

  Parameters are float32, and so are gradients and optimizer; the compute
  dtype is the model's own. Metrics are the task's and `loss`, `grad_norm`
  (before clipping), `lr` and `skipped`, all scalars that stay on the device.

  Args:
    task: see `typing.Task`.
    tx: optax chain; `update` also gets `step=`, the state's step.
    ema_decay: d in ema = d ema + (1 - d) params, or None for no average.
    nan: what to do with a loss or gradient that is not finite. "stop" applies
      it: whoever reads the metrics stops the run. "skip" keeps parameters,
      optimizer and mutable variables as they were, counts `skipped`, goes on.
    schedule: step -> learning rate, for the metrics only.
    frozen: tree of bools like params: no gradient flows to True leaves.

  Raises:
    InputError: unknown nan policy.
  """
  if nan not in NAN_POLICIES:
    raise errors.unknown("nan", nan, NAN_POLICIES)
  tx = optax.with_extra_args_support(tx)

  def loss(params, mutable, batch, rngs):
    if frozen is not None:
      # Cut here, not in the optimizer, so that the gradients of a frozen tower
      # are never computed.
      stop = jax.lax.stop_gradient
      params = jax.tree.map(lambda f, p: stop(p) if f else p, frozen, params)
    return task.loss(params, mutable, batch, rngs)

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    rngs = {"dropout": state.key()}
    gradient = jax.value_and_grad(loss, has_aux=True)
    (value, aux), grads = gradient(state.params, state.mutable, batch, rngs)
    # Behind barriers, or XLA writes squares to memory once for both the norm
    # and the optimizer, which takes longer than to square again. One for each
    # leaf: one for all would keep all gradients until the last is there.
    apart = jax.tree.map(jax.lax.optimization_barrier, grads)
    grad_norm = optax.tree.norm(apart)
    updates, opt = tx.update(grads, state.opt, state.params, step=state.step)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema_decay is not None:
      ema = optax.incremental_update(params, ema, 1.0 - ema_decay)
    new = state.advance(params, opt, aux.mutable, ema)
    metrics = {**aux.metrics, "loss": value, "grad_norm": grad_norm}
    if schedule is not None:
      metrics["lr"] = schedule(state.step)
    if nan == "skip":
      good = jnp.isfinite(value) & jnp.isfinite(grad_norm)
      kept = state.replace(step=new.step)
      new = jax.tree.map(lambda n, k: jnp.where(good, n, k), new, kept)
      metrics["skipped"] = 1.0 - good.astype(jnp.float32)
    return new, metrics

  return step
