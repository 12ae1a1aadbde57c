"""The training loop, top to bottom: called by everyone, forked by no one."""

import contextlib
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mmjax import errors
from mmjax.parallel import hosts
from mmjax.train import cadence, pictures, report, throughput
from mmjax.train import workdir as workdirs
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.metrics import Log, Pending, results
from mmjax.train.resilience import StopSignal, Watchdog, check_finite
from mmjax.train.setup import Run, setup
from mmjax.train.validate import resolve


def fit(
  config: Any,
  workdir: str | pathlib.Path,
  *,
  devices: Sequence[Any] | None = None,
  watchdog: float | None = None,
) -> dict[str, float]:
  """Trains a config to its end, or goes on where it stopped.

  Args:
    config: ConfigDict or dict, see `validate.FIELDS`.
    workdir: folder of config.json, metrics.jsonl, checkpoints, TensorBoard
      events, pictures and results; shared by all processes.
    devices: default all.
    watchdog: end the process if a step takes longer, in seconds.

  Returns:
    The last step's evaluation, {"evaluator/metric": value}.

  Raises:
    InputError: bad config, a workdir or checkpoint of another config.
    DataError: too many records cannot be read.
    DivergedError: loss or gradient not finite, and config.nan = "stop".
    StorageError: no room, or no permission to write.
    Preempted: SIGTERM or SIGINT; the state is saved.
  """
  config, folder = resolve(config), pathlib.Path(workdir).absolute()
  workdirs.check(folder, config)
  run = setup(config, workdir=str(folder), devices=devices)
  workdirs.claim(folder, config)
  return train(run, folder, config, watchdog=watchdog)


def train(
  run: Run,
  folder: pathlib.Path,
  config: Any,
  *,
  watchdog: float | None = None,
) -> dict[str, float]:
  """Trains a run that is set up, in a workdir that exists; see `fit`."""
  steps, batch_size = config["steps"], config["batch_size"]
  log_every = cadence.parse(config["log_every"], "log_every")
  save_every, eval_every = _cadences(config, batch_size)
  evaluators = run.evaluators()
  with contextlib.ExitStack() as stack:
    stop = stack.enter_context(StopSignal())
    watch = stack.enter_context(Watchdog(watchdog))
    saved = stack.enter_context(
      Checkpoints(
        folder / "checkpoints", keep=config["checkpoint"]["keep"], config=config
      )
    )
    saved.check_space(run.state_shapes)
    last_good = saved.latest()
    state = run.init() if last_good is None else saved.restore(run.state_shapes)
    start = step = last_good or 0
    log = stack.enter_context(Log(folder, start=start, steps=steps))
    if start:
      log.say(f"resumed from the checkpoint of step {start}")
    # The run is closed to new batches before the log is: workers stop first.
    feed = stack.enter_context(_feed(run, step)) if step < steps else iter(())
    meter = _meter(run, batch_size)
    if meter.flops and step < steps:
      log.say(throughput.FORMULA)
    pending = Pending()
    # One step runs while Python prepares the next. Several CPU devices in one
    # process share threads, and two steps with collectives can starve there.
    ahead = 0 if run.layout.mesh.devices.flat[0].platform == "cpu" else 1

    def settle(upto: int) -> None:
      for done, logged, values in pending.drain(upto):
        if config["nan"] == "stop":
          check_finite(done, values, last_good)
        if logged:
          row = {"step": done, "kind": "train", **values, **meter.read()}
          log.write(row)
          log.show(row)

    def evaluate(names: Sequence[str]) -> None:
      for name in names:
        began = time.monotonic()
        with meter.paused():
          watch.rest()
          found = evaluators[name].run(state.variables())
          named = {f"{name}/{k}": float(v) for k, v in found.items()}
          taken = {"time/eval_s": time.monotonic() - began}
          log.write({"step": step, "kind": "eval", **named, **taken})
          log.say(f"step {step}/{steps}  " + report.line(named))

    while step < steps:
      with meter.waiting():
        batch = next(feed)
      with meter.inside():
        state, metrics = run.step(state, batch)
      step += 1
      pending.push(step, metrics, log_every.due(step))
      with meter.inside():
        pending.wait(step - ahead)
      meter.step()
      watch.beat()
      if step == start + 1:
        pending.wait(step)
        meter.reset()  # what was measured until here is the compiler
      if log_every.due(step - ahead):
        settle(step - ahead)
        saved.check()
      log.progress(step)

      due = [name for name, every in eval_every.items() if every.due(step)]
      saving = save_every.due(step) or step == steps
      signal = stop.agreed(step)
      if due or saving or signal:
        settle(step)
      evaluate(due)
      if saving or signal:
        # Everything up to this step is finite and on the disk before the
        # checkpoint, which a resume starts from, can be.
        with meter.paused():
          watch.rest()
          log.flush()
          saved.save(step, state)
          last_good = step
      if signal and step < steps:
        saved.wait()
        _tell_corrupt(run, log, start)
        raise errors.Preempted(
          f"{signal} at step {step} of {steps}: the state is saved in "
          f"{saved.folder}; run the same command again to go on."
        )

    # A run that was killed here comes back with some of them done.
    done = results(log.rows, steps)
    evaluate(
      [n for n in evaluators if not any(k.startswith(n + "/") for k in done)]
    )
    log.flush()
    saved.wait()
    log.end_progress()
    found = results(log.rows, steps)
    gallery = pictures.collect(evaluators, state.variables())
    _tell_corrupt(run, log, start)
    if jax.process_index() == 0:
      report.write(folder, found, config["evals"], log)
      pictures.write(folder, log, gallery)
    return found


def _cadences(config: Any, batch_size: int) -> tuple[Any, dict[str, Any]]:
  """Returns when to save, and when to run each evaluator."""

  def read(spec: Any, field: str) -> cadence.Cadence:
    return cadence.parse(spec, field, batch_size=batch_size)

  return read(config["checkpoint"]["every"], "checkpoint.every"), {
    name: read(spec.get("every"), f"evals.{name}.every")
    for name, spec in config["evals"].items()
  }


@contextlib.contextmanager
def _feed(run: Run, step: int) -> Any:
  feed = run.feed(step)
  try:
    yield feed
  finally:
    getattr(feed, "close", lambda: None)()


def _meter(run: Run, batch_size: int) -> throughput.Meter:
  mesh, state = run.layout.mesh, run.state_shapes
  rngs = {"dropout": jax.random.key(0)}
  with run.layout.use():
    flops = throughput.forward_flops(
      run.task.loss, state.params, state.mutable, run.batch_shapes, rngs
    )
  peak = throughput.peak(mesh.devices.flat[0].device_kind)
  return throughput.Meter(batch_size, 3 * flops, mesh.size, peak)


def _tell_corrupt(run: Run, log: Log, start: int, shown: int = 10) -> None:
  """Says what was corrupt since the run began or was resumed; all processes."""
  ledger = getattr(run.input, "ledger", None)
  if ledger is None:
    return
  # Each process reads its own part of the data. All send arrays of one shape.
  own = sorted(ledger.records)[:shown]
  told = hosts.allgather(
    {
      "counts": np.asarray([ledger.corrupt, ledger.draws], np.int32),
      "records": np.asarray(own + [-1] * (shown - len(own)), np.int32),
    }
  )
  corrupt, draws = told["counts"].sum(axis=0, dtype=np.int64).tolist()
  if corrupt:
    records = sorted({*told["records"].ravel().tolist()} - {-1})[:shown]
    since = f" since step {start}" if start else ""
    log.say(
      f"data: {corrupt} of {draws} examples{since} were corrupt and replaced "
      f"by others; their records: {records}"
    )
