"""All that changes from step to step, and nothing else."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


class TrainState(flax.struct.PyTreeNode):
  """The state of a run; every leaf is a plain array.

  Attributes:
    step: int32 scalar, steps done. The data pipeline, the schedule and the
      random keys all depend on it, so it is all that a resume needs.
    params: tree of parameters.
    mutable: other variable collections, {} if the model has none.
    opt: optax state.
    ema: moving average of the parameters, or None.
    rng: uint32 key data (not a typed key, which few formats can store).
  """

  step: Any
  params: Any
  mutable: Any
  opt: Any
  ema: Any
  rng: Any

  def key(self) -> jax.Array:
    """Returns the random key of this step, a different one each step."""
    return jax.random.fold_in(jax.random.wrap_key_data(self.rng), self.step)

  def advance(
    self, params: Any, opt: Any, mutable: Any, ema: Any = None
  ) -> "TrainState":
    """Returns the state of the next step."""
    return self.replace(
      step=self.step + 1, params=params, opt=opt, mutable=mutable, ema=ema
    )

  def variables(self, *, ema: bool = True) -> dict[str, Any]:
    """Returns what a task's predict functions take.

    Args:
      ema: take the averaged parameters where there are any.
    """
    params = self.ema if ema and self.ema is not None else self.params
    return {"params": params, **self.mutable}


def create(
  key: jax.Array,
  variables: dict[str, Any],
  tx: optax.GradientTransformation,
  *,
  ema: bool = False,
) -> TrainState:
  """Makes the state at step 0.

  Args:
    key: typed random key of the run.
    variables: unboxed, {"params": ..., **mutable}.
    tx: the optimizer.
    ema: keep a moving average, which starts at the parameters.
  """
  mutable = {k: v for k, v in variables.items() if k != "params"}
  params = variables["params"]
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    mutable=mutable,
    opt=tx.init(params),
    # A copy: two leaves of a donated state must not share a buffer.
    ema=jax.tree.map(jnp.copy, params) if ema else None,
    rng=jax.random.key_data(key),
  )
