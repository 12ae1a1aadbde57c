"""From a config to a Run: all that exists before step 0.

Cheap checks come first (names, mesh, batch, optimizer), then tokenizers and
one record, and only then shapes; nothing is allocated until `Run.init`.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax.core import unfreeze

from mmjax.build import build
from mmjax.parallel import mesh, rules
from mmjax.train import inputs, optimizers, state, validate
from mmjax.train.step import make_step
from mmjax.typing import Task


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """A run that is ready to start.

  Attributes:
    config: completed by defaults, frozen.
    layout: mesh and rules.
    task, optimizer, tokenizers: built.
    input: sources and preprocessing, see `inputs.Input`.
    axes: logical names of the parameters' axes, tree of tuples.
    state_shapes: TrainState of `jax.ShapeDtypeStruct`, with shardings.
    batch_shapes: the global batch, likewise.
    shardings: TrainState of NamedSharding, pinned on what `step` returns.
    step: (state, batch) -> (state, metrics); jitted, gives up its state.
  """

  config: ml_collections.FrozenConfigDict
  layout: rules.Layout
  task: Task
  optimizer: optimizers.Optimizer
  tokenizers: Mapping[str, Any]
  input: inputs.Input
  axes: Any
  state_shapes: state.TrainState
  batch_shapes: Mapping[str, jax.ShapeDtypeStruct]
  shardings: state.TrainState
  step: rules.Placed
  _init: rules.Placed

  @property
  def tx(self) -> Any:
    """Returns the optax chain."""
    return self.optimizer.tx

  def init(self) -> state.TrainState:
    """Makes the state at step 0, each part on the device where it lives."""
    return self._init()

  @functools.cached_property
  def _evaluators(self) -> dict[str, Any]:
    return {
      name: build(
        "evals",
        task=self.task,
        tokenizers=self.tokenizers,
        layout=self.layout,
        **{"seed": self.config.seed, **validate.own(spec)},
      )
      for name, spec in self.config.evals.to_dict().items()
    }

  def evaluators(self) -> dict[str, Any]:
    """Builds the config's evaluators, once; {name: Evaluator}."""
    return self._evaluators

  def batches(self, start_step: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yields this process's part of each batch, from a step on."""
    return self.input.batches(start_step)

  def feed(self, start_step: int = 0) -> Any:
    """Returns `batches` as global arrays, one step ahead; close it."""
    return self.input.feed(self.batches(start_step), self.layout)


def setup(
  config: Any,
  *,
  workdir: str | None = None,
  devices: Sequence[Any] | None = None,
) -> Run:
  """Validates a config and builds everything that a run needs.

  Args:
    config: ConfigDict or dict; `validate.FIELDS` lists its fields.
    workdir: where trained tokenizers are kept, and found again on resume;
      None keeps them in memory.
    devices: default all.

  Raises:
    InputError: names the field, its value and the fix.
    DataError: no record can be read.
  """
  c = validate.resolve(config)
  place = mesh.make_mesh(c["mesh"], devices)
  layout = rules.Layout(place)
  validate.check_batch(c, layout.batch_shards, jax.process_count())
  validate.check_names(c)

  tokenizers = inputs.build_tokenizers(c["tokenizers"], c["data"], workdir)
  c["task"] = validate.fill_vocab(c["task"], tokenizers)
  source = inputs.Input.create(
    c["data"], tokenizers, seed=c["seed"], batch_size=c["batch_size"]
  )
  task_keywords = c["task"]
  if "dtype" not in task_keywords and validate.takes(
    c["task"]["name"], "dtype"
  ):
    task_keywords = {**task_keywords, "dtype": c["dtype"]}
  task = build("tasks", **task_keywords)
  return assemble(
    task,
    c["optimizer"],
    source.shapes(),
    layout,
    steps=c["steps"],
    seed=c["seed"],
    nan=c["nan"],
    config=ml_collections.FrozenConfigDict(c),
    tokenizers=tokenizers,
    input=source,
  )


def assemble(
  task: Task,
  optimizer: Mapping[str, Any],
  batch: Mapping[str, jax.ShapeDtypeStruct],
  layout: rules.Layout,
  *,
  steps: int,
  seed: int = 0,
  nan: str = "stop",
  config: Any = None,
  tokenizers: Mapping[str, Any] | None = None,
  input: Any = None,
) -> Run:
  """Makes the Run of a task: shapes, shardings, init and step.

  Args:
    task: built.
    optimizer: keywords of `optimizers.build`.
    batch: shapes and dtypes of the global batch.
    layout: where everything lives.
    steps: length of the run, for the schedule.
    seed: of the parameters and of dropout.
    nan: see `make_step`.
    config, tokenizers, input: passed on to the Run.
  """

  # Jitted, so that it is traced once for the shapes and for the program.
  @jax.jit
  def variables(key):
    zeros = {k: jnp.zeros(x.shape, x.dtype) for k, x in batch.items()}
    made: Any = task.init(key, zeros)
    return unfreeze(made)

  with layout.use():
    # The key is made inside: the mesh may be of devices that are described,
    # not owned, on which nothing can run.
    boxed = jax.eval_shape(lambda: variables(jax.random.key(seed)))
  shapes = rules.unbox(boxed)
  opt = optimizers.build(shapes["params"], steps=steps, **optimizer)

  def init():
    init_key, run_key = jax.random.split(jax.random.key(seed))
    values = rules.unbox(variables(init_key))
    ema = opt.ema_decay is not None
    return state.create(run_key, values, opt.tx, ema=ema)

  with layout.use():
    state_shapes = jax.eval_shape(init)
  places = rules.shardings(layout, boxed)
  params = places.pop("params")
  shardings = state.TrainState(
    step=layout.replicated,
    params=params,
    mutable=places,
    opt=state.opt_shardings(state_shapes.opt, shapes["params"], params),
    ema=params if state_shapes.ema is not None else None,
    rng=layout.replicated,
  )
  batch_places = {k: layout.batch_sharding(x.ndim) for k, x in batch.items()}
  step = make_step(
    task,
    opt.tx,
    ema_decay=opt.ema_decay,
    nan=nan,
    schedule=opt.schedule,
    frozen=opt.frozen,
  )
  return Run(
    config=config,
    layout=layout,
    task=task,
    optimizer=opt,
    tokenizers=tokenizers or {},
    input=input,
    axes=rules.axis_names(boxed["params"]),
    state_shapes=_placed_shapes(state_shapes, shardings),
    batch_shapes=_placed_shapes(dict(batch), batch_places),
    shardings=shardings,
    # Pinned: left to itself the compiler drops the fsdp axis of a gradient,
    # and with it that of the parameter.
    step=layout.jit(
      step,
      in_shardings=(shardings, batch_places),
      out_shardings=(shardings, layout.replicated),
      donate_argnums=0,
    ),
    _init=layout.jit(init, out_shardings=shardings),
  )


def _placed_shapes(shapes: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings,
  )
