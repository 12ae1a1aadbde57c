"""The step moves nothing between host and devices, either way.

CPU devices share the host's memory, so that there JAX's guard sees only what
goes in. What a program could send out by itself is read from its text.
"""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

PATH = pathlib.Path(__file__).resolve().parent / "train" / "tiny_run.py"

# How a compiled program talks to the host.
DOORS = ("callback", "outfeed", "infeed", "send(", "recv(", "S(5)")


def _load():
  spec = importlib.util.spec_from_file_location("tiny_run", PATH)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


tiny_run = _load()


@pytest.fixture(scope="module")
def run():
  return tiny_run.make(tiny_run.config())


def doors(text):
  return [door for door in DOORS if door in text]


def test_two_steps_under_the_guard(run):
  feed = iter(tiny_run.Feed(run.layout, 0, run.config["batch_size"]))
  batches, state = [next(feed), next(feed)], run.init()
  jax.block_until_ready((batches, state))
  losses = []
  with jax.transfer_guard("disallow"):
    for batch in batches:
      state, metrics = run.step(state, batch)
      losses.append(metrics["loss"])
    jax.block_until_ready(state)
  assert all(isinstance(x, jax.Array) for x in metrics.values())
  first, second = map(float, losses)
  assert np.isfinite([first, second]).all() and first != second


def test_the_guard_sees_what_comes_in(run):
  """Negative control: a batch that is still on the host."""
  batch = next(iter(tiny_run.Feed(run.layout, 0, run.config["batch_size"])))
  on_host = {key: np.asarray(x) for key, x in batch.items()}
  state = run.init()
  with (
    jax.transfer_guard("disallow"),
    pytest.raises(Exception, match="Disallowed host-to-device transfer"),
  ):
    run.step(state, on_host)


def test_the_guard_sees_what_goes_out(run):
  """Negative control: a metric read between steps."""
  if jax.devices()[0].platform == "cpu":
    pytest.skip("reading an array of a CPU device is no transfer")
  batch = next(iter(tiny_run.Feed(run.layout, 0, run.config["batch_size"])))
  with jax.transfer_guard("disallow"):
    _, metrics = run.step(run.init(), batch)
    with pytest.raises(Exception, match="Disallowed device-to-host transfer"):
      float(metrics["loss"])


def test_the_program_has_no_door_to_the_host(run):
  program = run.step.lower(run.state_shapes, run.batch_shapes).compile()
  assert doors(program.as_text()) == []

  # Negative control: a step that prints.
  def chatty(x):
    jax.debug.print("{}", x)
    return x + 1

  assert doors(jax.jit(chatty).lower(1.0).compile().as_text())
