"""Optimizers against steps written out in numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax import errors
from mmjax.train import optimizers

RNG = np.random.default_rng(0)
PARAMS = {
  "tower": {
    "kernel": RNG.normal(size=(4, 3)).astype("float32"),
    "bias": RNG.normal(size=3).astype("float32"),
  },
  "head": {"kernel": RNG.normal(size=(3, 2)).astype("float32")},
}
GRADS = [
  jax.tree.map(lambda p: RNG.normal(size=p.shape).astype("float32"), PARAMS)
  for _ in range(3)
]


def run(steps=3, **keywords):
  """Applies three steps, returns the parameters."""
  keywords = {"lr": 0.1, "steps": 10, "schedule": {"name": "constant"}} | (
    keywords
  )
  made = optimizers.build(PARAMS, **keywords)
  params, opt = PARAMS, made.tx.init(PARAMS)
  for i, grads in enumerate(GRADS[:steps]):
    updates, opt = made.tx.update(grads, opt, params, step=jnp.int32(i))
    params = optax.apply_updates(params, updates)
  return params


def numpy_adam(p, grads, lr, wd=0.0, coupled=0.0, b1=0.9, b2=0.999, eps=1e-8):
  p = p.astype(np.float64)
  m, v = np.zeros_like(p), np.zeros_like(p)
  for i, g in enumerate(grads, 1):
    g = g + coupled * p
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    step = (m / (1 - b1**i)) / (np.sqrt(v / (1 - b2**i)) + eps)
    p = p - lr * (step + wd * p)
  return p


def close(a, b):
  np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def grads_of(*path):
  out = []
  for g in GRADS:
    for key in path:
      g = g[key]
    out.append(g)
  return out


def test_adamw_decays_kernels_only():
  got = run(name="adamw", weight_decay=0.3, b2=0.95)
  for path, wd in (
    (("tower", "kernel"), 0.3),
    (("head", "kernel"), 0.3),
    (("tower", "bias"), 0.0),
  ):
    p = PARAMS[path[0]][path[1]]
    want = numpy_adam(p, grads_of(*path), 0.1, wd=wd, b2=0.95)
    close(got[path[0]][path[1]], want)


def test_adam_adds_decay_to_the_gradient():
  got = run(name="adam", weight_decay=0.3, wd_mask=["bias"])
  p = PARAMS["tower"]["bias"]
  want = numpy_adam(p, grads_of("tower", "bias"), 0.1, coupled=0.3)
  close(got["tower"]["bias"], want)
  close(
    got["head"]["kernel"],
    numpy_adam(PARAMS["head"]["kernel"], grads_of("head", "kernel"), 0.1),
  )


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_momentum(nesterov):
  got = run(name="sgd", momentum=0.9, nesterov=nesterov)["tower"]["kernel"]
  p, m = PARAMS["tower"]["kernel"].astype(np.float64), 0.0
  for g in grads_of("tower", "kernel"):
    m = 0.9 * m + g
    p = p - 0.1 * (g + 0.9 * m if nesterov else m)
  close(got, p)


def test_clip_is_by_the_global_norm():
  got = run(steps=1, name="sgd", clip=0.5)["head"]["kernel"]
  norm = math.sqrt(sum((g**2).sum() for g in jax.tree.leaves(GRADS[0])))
  want = PARAMS["head"]["kernel"] - 0.1 * GRADS[0]["head"]["kernel"] * (
    0.5 / norm
  )
  assert norm > 0.5
  close(got, want)


def test_adafactor_factored_and_not():
  got = run(name="adafactor", min_dim_size_to_factor=2, decay_rate=0.8)
  p = PARAMS["tower"]["kernel"].astype(np.float64)  # [4 3]
  row, col = np.zeros(4), np.zeros(3)
  for i, g in enumerate(grads_of("tower", "kernel")):
    beta = 1 - (i + 1) ** -0.8
    row = beta * row + (1 - beta) * (g**2 + 1e-30).mean(1)
    col = beta * col + (1 - beta) * (g**2 + 1e-30).mean(0)
    u = g / np.sqrt(np.outer(row, col) / row.mean())
    u = u / max(1.0, np.sqrt((u**2).mean()))
    p = p - 0.1 * u
  close(got["tower"]["kernel"], p)
  p, v = PARAMS["tower"]["bias"].astype(np.float64), 0.0
  for i, g in enumerate(grads_of("tower", "bias")):
    beta = 1 - (i + 1) ** -0.8
    v = beta * v + (1 - beta) * (g**2 + 1e-30)
    u = g / np.sqrt(v)
    p = p - 0.1 * u / max(1.0, np.sqrt((u**2).mean()))
  close(got["tower"]["bias"], p)


def test_adafactor_keeps_less_than_a_matrix():
  params = {"kernel": jnp.ones((256, 128))}
  opt = optimizers.build(params, name="adafactor", lr=1.0, steps=1).tx.init(
    params
  )
  assert sum(x.size for x in jax.tree.leaves(opt)) < 500


def test_multipliers_first_match():
  base = run(name="adamw")
  got = run(name="adamw", lr_mult=[("tower/b", 0.0), ("tower", 0.5)])
  np.testing.assert_array_equal(got["tower"]["bias"], PARAMS["tower"]["bias"])
  half = numpy_adam(
    PARAMS["tower"]["kernel"], grads_of("tower", "kernel"), 0.05
  )
  close(got["tower"]["kernel"], half)
  np.testing.assert_array_equal(got["head"]["kernel"], base["head"]["kernel"])


def test_frozen_leaves_stay_and_have_no_moments():
  keywords = dict(name="adamw", weight_decay=0.1, clip=0.5, freeze=["^tower/"])
  got = run(**keywords)
  for key, value in PARAMS["tower"].items():
    np.testing.assert_array_equal(got["tower"][key], value)
  assert not np.array_equal(got["head"]["kernel"], PARAMS["head"]["kernel"])
  made = optimizers.build(PARAMS, lr=0.1, steps=3, **keywords)
  sizes = [x.size for x in jax.tree.leaves(made.tx.init(PARAMS))]
  assert sum(sizes) == 2 * PARAMS["head"]["kernel"].size + 1  # mu, nu, count
  assert made.frozen["tower"] == {"kernel": True, "bias": True}
  # The norm that clips is that of what is trained.
  grads = jax.tree.map(lambda g: g * 1e-3, GRADS[0]) | {
    "tower": jax.tree.map(lambda g: g * 1e6, GRADS[0]["tower"])
  }
  tx = optimizers.build(
    PARAMS, name="sgd", lr=1.0, steps=3, clip=1.0, freeze=["^tower/"],
    schedule={"name": "constant"},
  ).tx  # fmt: skip
  updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS, step=0)
  close(updates["head"]["kernel"], -grads["head"]["kernel"])


def test_mu_dtype():
  made = optimizers.build(
    PARAMS, name="adamw", lr=1.0, steps=1, mu_dtype="bfloat16"
  )
  dtypes = {str(x.dtype) for x in jax.tree.leaves(made.tx.init(PARAMS))}
  assert dtypes == {"bfloat16", "float32", "int32"}


def test_the_rate_follows_the_step_it_is_given():
  made = optimizers.build(
    PARAMS, name="sgd", lr=2.0, steps=10, schedule={"name": "linear"}
  )
  for step in (0, 7):
    updates, _ = made.tx.update(
      GRADS[0], made.tx.init(PARAMS), PARAMS, step=step
    )
    want = -2.0 * (1 - step / 10) * GRADS[0]["tower"]["bias"]
    close(updates["tower"]["bias"], want)


@pytest.mark.parametrize(
  "keywords, at",
  [
    (dict(name="constant"), {0: 2.0, 99: 2.0}),
    (dict(name="cosine"), {0: 2.0, 50: 1.0, 25: 1 + math.sqrt(0.5), 100: 0}),
    (dict(name="cosine", final=0.1), {100: 0.2, 50: 1.1}),
    (dict(name="linear", warmup=20), {0: 0.1, 9: 1.0, 20: 2.0, 60: 1.0}),
    (dict(name="linear", warmup=0.2), {0: 0.1, 9: 1.0, 20: 2.0, 60: 1.0}),
    (dict(name="rsqrt", warmup=4), {0: 0.5, 4: 2.0, 16: 1.0, 64: 0.5}),
    (dict(name="rsqrt", timescale=25), {0: 2.0, 100: 1.0}),
    (dict(name="constant", cooldown=0.1), {90: 2.0, 95: 1.0, 100: 0.0}),
  ],
)
def test_schedules(keywords, at):
  schedule = optimizers.make_schedule(lr=2.0, steps=100, **keywords)
  for step, value in at.items():
    close(schedule(jnp.int32(step)), value)


@pytest.mark.parametrize(
  "keywords, words",
  [
    (dict(name="adamm"), "Did you mean 'adam"),
    (dict(b3=0.9), "b3"),
    (dict(name="sgd", b1=0.9), "b1"),
    (dict(weight_dcay=1.0), "Did you mean 'weight_decay'"),
    (dict(schedule={"name": "cosin"}), "Did you mean 'cosine'"),
    (dict(schedule={"warm_up": 3}), "Did you mean 'warmup'"),
    (dict(schedule={"warmup": 11}), "warmup = 11"),
    (dict(schedule={"warmup": -1}), "warmup = -1"),
    (dict(freeze=["towr"]), "matches none"),
    (dict(lr_mult=[("hed", 1.0)]), "matches none"),
    (dict(weight_decay=1.0, wd_mask=["krnel"]), "matches none"),
    (dict(freeze=["("]), "not a regular expression"),
    (dict(ema_decay=1.5), "ema_decay = 1.5"),
  ],
)
def test_mistakes_are_named(keywords, words):
  with pytest.raises(errors.InputError) as e:
    optimizers.build(PARAMS, **{"lr": 0.1, "steps": 10, **keywords})
  assert words in str(e.value)
