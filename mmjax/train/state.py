"""All that changes from step to step, and nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax import tree


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


def owner(
  name: str, shape: Sequence[int], params: Mapping[str, Sequence[int]]
) -> tuple[str, tuple[int, ...]] | None:
  """Finds the parameter that a leaf of the optimizer state belongs to.

  Args:
    name: name of the leaf; it ends in its parameter's name.
    shape: the leaf's.
    params: shapes of all parameters by name.

  Returns:
    (parameter, the parameter's dimensions that the leaf has), or None for a
    counter or placeholder. Adafactor's rows and columns lack one dimension.
  """
  parts = name.split("/")
  for start in range(len(parts)):
    param = "/".join(parts[start:])
    if param not in params:
      continue
    full = tuple(params[param])
    dims = tuple(range(len(full)))
    if tuple(shape) == full:
      return param, dims
    lacking = [i for i in dims if full[:i] + full[i + 1 :] == tuple(shape)]
    if not lacking or len(full) < 2:
      return None
    # In a square matrix both fit: v_row lacks the last, v_col the first.
    gone = lacking[-1] if "v_row" in parts[:start] else lacking[0]
    return param, tuple(i for i in dims if i != gone)
  return None


def opt_shardings(opt: Any, params: Any, shardings: Any) -> Any:
  """Returns where each leaf of the optimizer state lives: by its parameter.

  Args:
    opt: shapes of the optimizer state.
    params: shapes of the parameters.
    shardings: NamedSharding of each parameter.

  Returns:
    Tree like opt; leaves without a parameter are replicated.
  """
  shapes = {name: x.shape for name, x in tree.items(params)}
  places = dict(tree.items(shardings))
  mesh = next(iter(places.values())).mesh

  def place(name: str, leaf: Any) -> NamedSharding:
    spec = P()
    found = owner(name, leaf.shape, shapes)
    if found:
      param, dims = found
      full = tuple(places[param].spec)
      full += (None,) * (len(shapes[param]) - len(full))
      spec = P(*(full[i] for i in dims))
    return NamedSharding(mesh, spec)

  return tree.map_named(place, opt)
