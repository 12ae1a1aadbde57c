"""A run of milliseconds, for the tests of the loop; also a program.

A two-layer network with dropout learns a fixed function. Every batch is a
pure function of the step, as the real pipeline's is.
"""

import argparse
import ast
import dataclasses
import functools
import json
import os
import pathlib
import signal
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmjax import errors
from mmjax.parallel import hosts, mesh, rules
from mmjax.train import loop, setup
from mmjax.train import workdir as workdirs
from mmjax.typing import Aux

WIDTH, HIDDEN = 16, 32


class Task:
  """Regression; `poison` is a step's batch that holds a NaN."""

  predict = types.MappingProxyType({})

  def init(self, rng, batch):
    one, two = jax.random.split(rng)

    def box(key, shape, names):
      value = jax.random.normal(key, shape) / shape[0] ** 0.5
      return nn.LogicallyPartitioned(value, names)

    return {
      "params": {
        "up": box(one, (WIDTH, HIDDEN), ("embed", "mlp")),
        "down": box(two, (HIDDEN, WIDTH), ("mlp", "embed")),
      }
    }

  def loss(self, params, mutable, batch, rngs):
    hidden = jnp.tanh(batch["x"] @ params["up"])
    keep = jax.random.bernoulli(rngs["dropout"], 0.9, hidden.shape)
    error = jnp.where(keep, hidden, 0.0) @ params["down"] - batch["y"]
    loss = jnp.mean(error**2)
    return loss, Aux(mutable, {"loss": loss, "largest": jnp.abs(error).max()})


class Feed:
  """Batches from a step on; `hook(step)` is called before each."""

  def __init__(self, layout, start, size, poison=None, hook=None):
    self.layout, self.step, self.size = layout, start, size
    self.poison, self.hook, self.closed = poison, hook, False

  def __iter__(self):
    return self

  def __next__(self):
    self.step += 1
    if self.hook:
      self.hook(self.step)
    rng = np.random.default_rng(self.step)
    x = rng.normal(size=(self.size, WIDTH)).astype(np.float32)
    batch = {"x": x, "y": np.sin(x[:, ::-1])}
    if self.step == self.poison:
      batch["x"] = np.full_like(x, np.nan)
    return {
      key: jax.make_array_from_callback(
        value.shape,
        self.layout.batch_sharding(2),
        lambda index, value=value: value[index],
      )
      for key, value in batch.items()
    }

  def close(self):
    self.closed = True


class Evaluator:
  """Squared norm of the parameters."""

  def run(self, variables):
    # In numpy: what the loop calls may be anything.
    leaves = [hosts_whole(x) for x in jax.tree.leaves(variables)]
    return {"norm": float(sum(np.vdot(x, x) for x in leaves))}


def hosts_whole(x):
  """Returns an array that may be spread over processes, as numpy."""
  if x.is_fully_addressable:
    return np.asarray(x)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(x, tiled=True)


def config(**changes):
  """Returns a resolved config; the data and task fields are not read."""
  return {
    "seed": 0,
    "steps": 20,
    "batch_size": 16,
    "mesh": {"data": -1},
    "task": {"name": "tiny"},
    "optimizer": {"name": "adamw", "lr": 1e-2, "ema_decay": 0.9},
    "evals": {"size": {"name": "norm", "every": 8}},
    "log_every": 2,
    "checkpoint": {"every": 5, "keep": 2},
    "nan": "stop",
    **changes,
  }


def make(c, *, poison=None, hook=None):
  """Sets up a Run of a config; programs are compiled once a process."""
  source = types.SimpleNamespace(
    batches=lambda start: start,
    feed=lambda start, layout: Feed(
      layout, start, c["batch_size"], poison, hook
    ),
  )
  kept = ("optimizer", "steps", "seed", "nan", "mesh", "batch_size")
  run = _assemble(json.dumps({key: c[key] for key in kept}))
  run = dataclasses.replace(run, config=c, input=source)
  run.__dict__["_evaluators"] = {name: Evaluator() for name in c["evals"]}
  return run


@functools.cache
def _assemble(text):
  c = json.loads(text)
  layout = rules.Layout(mesh.make_mesh(c.pop("mesh")))
  shape = jax.ShapeDtypeStruct((c.pop("batch_size"), WIDTH), jnp.float32)
  optimizer = c.pop("optimizer")
  batch = {"x": shape, "y": shape}
  return setup.assemble(Task(), optimizer, batch, layout, **c)


def fit(c, workdir, **keywords):
  """Does what `loop.fit` does, with the tiny run."""
  folder = pathlib.Path(workdir)
  workdirs.check(folder, c)
  run = make(c, **keywords)
  workdirs.claim(folder, c)
  return loop.train(run, folder, c)


def rows(workdir):
  """Returns the rows of a workdir without what may differ: time."""
  from mmjax.train import metrics

  return [
    {k: v for k, v in row.items() if not k.startswith("time/")}
    for row in metrics.read(pathlib.Path(workdir) / "metrics.jsonl")
  ]


def main():
  """Runs one process of a tiny run."""
  parser = argparse.ArgumentParser()
  parser.add_argument("workdir")
  parser.add_argument("--devices", type=int, default=8)
  parser.add_argument("--change", default="{}")
  parser.add_argument("--pause", type=float, default=0.0, help="a step")
  parser.add_argument("--term_at", type=int, help="SIGTERM to itself")
  parser.add_argument("--kill_at", type=int, help="SIGKILL to itself")
  args = parser.parse_args()
  jax.config.update("jax_num_cpu_devices", args.devices)
  hosts.initialize()

  def hook(step):
    if step == args.kill_at:
      os.kill(os.getpid(), signal.SIGKILL)
    if step == args.term_at and hosts.is_lead():
      os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(args.pause)

  try:
    fit(config(**ast.literal_eval(args.change)), args.workdir, hook=hook)
  except errors.MmjaxError as error:
    print(f"mmjax: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


if __name__ == "__main__":
  main()
