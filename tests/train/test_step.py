"""One step against numpy; policies for what is not finite; averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.train import optimizers, state
from mmjax.train.step import make_step
from mmjax.typing import Aux

W = np.array([[1.0, -2.0], [0.5, 3.0], [2.0, 1.0]], np.float32)
X = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
Y = np.ones((4, 2), np.float32)
BATCH = {"x": X, "y": Y}


class Regression:
  """Mean squared error of x @ w + dead; counts steps in `mutable`."""

  def init(self, rng, batch):
    return {
      "params": {"w": jnp.asarray(W), "dead": jnp.zeros(2)},
      "stats": {"steps": jnp.zeros(())},
    }

  def loss(self, params, mutable, batch, rngs):
    out = batch["x"] @ params["w"] + params["dead"][None]
    noise = jax.random.normal(rngs["dropout"])
    value = jnp.mean((out - batch["y"]) ** 2)
    stats = {"steps": mutable["stats"]["steps"] + 1}
    return value, Aux({"stats": stats}, {"loss": value, "noise": noise})


def start(**keywords):
  keywords = {
    "name": "sgd", "lr": 0.1, "steps": 10, "schedule": {"name": "linear"},
    **keywords,
  }  # fmt: skip
  variables = Regression().init(None, None)
  opt = optimizers.build(variables["params"], **keywords)
  s = state.create(
    jax.random.key(0), variables, opt.tx, ema=opt.ema_decay is not None
  )
  return opt, s


def step_of(opt, **keywords):
  return jax.jit(
    make_step(
      Regression(),
      opt.tx,
      ema_decay=opt.ema_decay,
      schedule=opt.schedule,
      frozen=opt.frozen,
      **keywords,
    )
  )


def numpy_grad(w, b):
  return 2 * X.T @ (X @ w + b - Y) / Y.size


def test_two_steps_by_hand():
  opt, s = start()
  step = step_of(opt)
  w, b = W.astype(np.float64), np.zeros(2)
  noises = []
  for i in range(2):
    s, metrics = step(s, BATCH)
    g, gb = numpy_grad(w, b), 2 * (X @ w + b - Y).sum(0) / Y.size
    lr = 0.1 * (1 - i / 10)
    loss = ((X @ w + b - Y) ** 2).mean()
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    norm = np.sqrt((g**2).sum() + (gb**2).sum())
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["lr"], lr, rtol=1e-6)
    w, b = w - lr * g, b - lr * gb
    np.testing.assert_allclose(s.params["w"], w, rtol=1e-5)
    noises.append(float(metrics["noise"]))
  assert noises[0] != noises[1]
  assert int(s.step) == 2 and float(s.mutable["stats"]["steps"]) == 2


def test_average():
  opt, s = start(ema_decay=0.75)
  step = step_of(opt)
  want = W.astype(np.float64)
  for _ in range(3):
    s, _ = step(s, BATCH)
    want = 0.75 * want + 0.25 * np.asarray(s.params["w"])
  np.testing.assert_allclose(s.ema["w"], want, rtol=1e-6)


def test_frozen_has_no_gradient():
  opt, s = start(freeze=["dead"])
  new, metrics = step_of(opt)(s, BATCH)
  np.testing.assert_array_equal(new.params["dead"], np.zeros(2))
  norm = np.linalg.norm(numpy_grad(W, np.zeros(2)))
  np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)


BAD = {"x": np.where(X == X[1, 1], np.nan, X), "y": Y}


def test_skip_keeps_the_old_state_but_moves_on():
  opt, s = start(name="adamw", ema_decay=0.9)
  step = step_of(opt, nan="skip")
  s, metrics = step(s, BATCH)
  assert float(metrics["skipped"]) == 0
  new, metrics = step(s, BAD)
  assert float(metrics["skipped"]) == 1 and np.isnan(metrics["loss"])
  assert int(new.step) == 2
  for a, b in zip(
    jax.tree.leaves(s.replace(step=0)),
    jax.tree.leaves(new.replace(step=0)),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  newer, metrics = step(new, BATCH)
  assert float(metrics["skipped"]) == 0
  assert np.isfinite(newer.params["w"]).all()
  # The rate follows the step, not the number of updates.
  np.testing.assert_allclose(metrics["lr"], 0.1 * 0.8, rtol=1e-6)


def test_stop_lets_it_through_for_the_reader_to_see():
  opt, s = start()
  new, metrics = step_of(opt, nan="stop")(s, BAD)
  assert np.isnan(metrics["loss"]) and "skipped" not in metrics
  assert np.isnan(new.params["w"]).any()


def test_unknown_policy():
  with pytest.raises(errors.InputError, match="Did you mean 'skip'"):
    make_step(Regression(), optimizers.optax.identity(), nan="skipp")
