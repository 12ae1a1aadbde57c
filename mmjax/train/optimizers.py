"""Optimizers from config keywords: schedule, decay, freezing by name -> optax.

The chain is clip by global norm -> [coupled decay] -> moments -> [decoupled
decay] -> multipliers by name -> times -lr(step).
"""

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax import errors, tree

Schedule = Callable[[Any], jax.Array]
SCHEDULES = ("constant", "cosine", "linear", "rsqrt")


def make_schedule(
  *,
  lr: float,
  steps: int,
  name: str = "cosine",
  warmup: int | float = 0,
  final: float = 0.0,
  cooldown: int | float = 0,
  timescale: int | None = None,
) -> Schedule:
  """Makes step -> learning rate (float32), step counted from 0.

  Warm-up is linear, lr (step + 1) / warmup, so that no step is lost to a rate
  of zero. With p from 0 to 1 between the end of warm-up and `steps`:
    constant  lr
    cosine    lr (final + (1 - final) (1 + cos(pi p)) / 2)
    linear    lr (final + (1 - final) (1 - p))
    rsqrt     lr sqrt(timescale / max(step, timescale))

  Args:
    lr: peak learning rate.
    steps: steps of the run.
    name: one of the four above.
    warmup: steps (int), or a fraction of `steps` (float below 1).
    final: fraction of lr at the end, for cosine and linear.
    cooldown: steps (int) or fraction (float) at the end, over which the rate
      falls linearly to zero, on top of the shape.
    timescale: of rsqrt; default the warm-up steps.

  Raises:
    InputError: unknown name, or a length beyond the run's.
  """
  if name not in SCHEDULES:
    raise errors.unknown("optimizer.schedule.name", name, SCHEDULES)
  warm = _steps("optimizer.schedule.warmup", warmup, steps)
  cool = _steps("optimizer.schedule.cooldown", cooldown, steps)
  scale = timescale or max(warm, 1)

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    p = jnp.clip((step - warm) / max(steps - warm, 1), 0.0, 1.0)
    factor = {
      "constant": lambda: jnp.ones_like(p),
      "cosine": lambda: final + (1 - final) * 0.5 * (1 + jnp.cos(math.pi * p)),
      "linear": lambda: final + (1 - final) * (1 - p),
      "rsqrt": lambda: jnp.sqrt(scale / jnp.maximum(step, scale)),
    }[name]()
    if warm:
      factor *= jnp.minimum(1.0, (step + 1) / warm)
    if cool:
      factor *= jnp.clip((steps - step) / cool, 0.0, 1.0)
    return lr * factor

  return schedule


def _steps(field: str, value: int | float, steps: int) -> int:
  known = isinstance(value, int | float) and not isinstance(value, bool)
  if known and isinstance(value, float) and 0 <= value < 1:
    return round(value * steps)
  if known and value == int(value) and 0 <= value <= steps:
    return int(value)
  raise errors.InputError(
    f"{field} = {value!r}: give a number of steps up to steps = {steps}, or a "
    "fraction of them as a float below 1."
  )


def _adam(*, b1=0.9, b2=0.999, eps=1e-8, mu_dtype=None):
  return optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype)


def _sgd(*, momentum=None, nesterov=False, mu_dtype=None):
  if momentum is None:
    return optax.identity()
  return optax.trace(momentum, nesterov, accumulator_dtype=mu_dtype)


def _adafactor(
  *,
  decay_rate=0.8,
  min_dim_size_to_factor=128,
  clipping_threshold=1.0,
  multiply_by_parameter_scale=False,
  momentum=None,
  eps=1e-30,
  mu_dtype=None,
):
  """Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235."""
  parts = [
    optax.scale_by_factored_rms(
      decay_rate=decay_rate,
      min_dim_size_to_factor=min_dim_size_to_factor,
      epsilon=eps,
    )
  ]
  if clipping_threshold is not None:
    parts.append(optax.clip_by_block_rms(clipping_threshold))
  if multiply_by_parameter_scale:
    parts.append(optax.scale_by_param_block_rms())
  if momentum is not None:
    parts.append(optax.ema(momentum, debias=False, accumulator_dtype=mu_dtype))
  return optax.chain(*parts)


# name -> (moments, is weight decay decoupled from them?)
OPTIMIZERS: Mapping[str, tuple[Callable[..., Any], bool]] = {
  "adamw": (_adam, True),
  "adam": (_adam, False),
  "sgd": (_sgd, False),
  "adafactor": (_adafactor, True),
}


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """A chain and what the step wants to know of it."""

  tx: optax.GradientTransformation
  schedule: Schedule
  frozen: Any  # tree of bools like params, or None
  ema_decay: float | None


def check(
  *,
  steps: int,
  lr: float,
  name: str = "adamw",
  schedule: Mapping[str, Any] | None = None,
  weight_decay: float = 0.0,
  wd_mask: Sequence[str] = (r"(^|/)kernel$",),
  lr_mult: Sequence[tuple[str, float]] = (),
  clip: float | None = None,
  freeze: Sequence[str] = (),
  ema_decay: float | None = None,
  **own: Any,
) -> dict[str, Any]:
  """Checks all keywords of `build` that can be checked without parameters.

  Returns:
    Them, completed by defaults; the optimizer's own ones under "own".

  Raises:
    InputError: names the keyword and the nearest known one.
  """
  if name not in OPTIMIZERS:
    raise errors.unknown("optimizer.name", name, OPTIMIZERS)
  core = inspect.signature(OPTIMIZERS[name][0]).parameters
  common = [
    k
    for k, p in inspect.signature(check).parameters.items()
    if p.kind is p.KEYWORD_ONLY
  ]
  for key in own:
    if key not in core:
      raise errors.unknown(
        f"optimizer ({name}) keyword", key, {*core, *common} - {"steps"}
      )
  schedule = dict(schedule or {})
  known = set(inspect.signature(make_schedule).parameters) - {"lr", "steps"}
  for key in schedule:
    if key not in known:
      raise errors.unknown("optimizer.schedule keyword", key, known)
  make_schedule(lr=lr, steps=steps, **schedule)
  patterns = (*wd_mask, *freeze, *(pattern for pattern, _ in lr_mult))
  for pattern in patterns:
    try:
      re.compile(pattern)
    except re.error as e:
      raise errors.InputError(
        f"optimizer pattern {pattern!r}: not a regular expression ({e}); "
        "correct it."
      ) from None
  if ema_decay is not None and not 0 <= ema_decay < 1:
    raise errors.InputError(
      f"optimizer.ema_decay = {ema_decay}: it must lie in [0, 1), for example "
      "0.999, or be None for no average."
    )
  return dict(
    name=name,
    steps=steps,
    lr=lr,
    schedule=schedule,
    weight_decay=weight_decay,
    wd_mask=tuple(wd_mask),
    lr_mult=tuple(map(tuple, lr_mult)),
    clip=clip,
    freeze=tuple(freeze),
    ema_decay=ema_decay,
    own=own,
  )


def build(params: Any, **keywords: Any) -> Optimizer:
  """Builds the optimizer of a config.

  Args:
    params: the parameters, or their shapes; patterns are checked against their
      names ("image/blocks/mlp/kernel", `re.search`).
    **keywords: see `check`. `weight_decay` is decoupled and multiplied by the
      learning rate in adamw and adafactor (Loshchilov and Hutter 2019), added
      to the gradient in adam and sgd. `wd_mask` names the leaves that decay;
      by default those called "kernel", which leaves out biases, norms,
      embeddings and temperatures (not by rank: under scan a bias has two
      axes). `lr_mult` is [(pattern, factor)], the first match counts.
      `freeze`d leaves get no update, no gradient and no moments.

  Raises:
    InputError: as `check`; or a pattern that matches no parameter.
  """
  given = check(**keywords)
  own = given["own"]
  core, decoupled = OPTIMIZERS[given["name"]]
  schedule = make_schedule(
    lr=given["lr"], steps=given["steps"], **given["schedule"]
  )
  wd, wd_mask = given["weight_decay"], given["wd_mask"]
  decay = []
  if wd:
    _must_match("wd_mask", wd_mask, params)
    decay = [optax.add_decayed_weights(wd, lambda p: tree.match(wd_mask, p))]
  parts = []
  if given["clip"] is not None:
    parts.append(optax.clip_by_global_norm(given["clip"]))
  parts += [core(**own), *decay] if decoupled else [*decay, core(**own)]
  if given["lr_mult"]:
    _must_match("lr_mult", [pattern for pattern, _ in given["lr_mult"]], params)
    parts.append(_scale_by_name(given["lr_mult"]))
  parts.append(_scale_by_schedule(schedule))
  tx, frozen = optax.chain(*parts), None
  if given["freeze"]:
    _must_match("freeze", given["freeze"], params)
    frozen = tree.match(given["freeze"], params)
    labels = jax.tree.map(lambda f: "freeze" if f else "train", frozen)
    tx = optax.partition({"train": tx, "freeze": optax.set_to_zero()}, labels)
  return Optimizer(tx, schedule, frozen, given["ema_decay"])


def _must_match(field: str, patterns: Sequence[str], params: Any) -> None:
  names = tree.names(params)
  for pattern in patterns:
    if not any(re.search(pattern, name) for name in names):
      guess = errors.nearest(pattern, names) or names[0]
      raise errors.InputError(
        f"optimizer.{field} = {pattern!r}: it matches none of the "
        f"{len(names)} parameters; the nearest is {guess!r}. `mmjax inspect` "
        "lists all names."
      )


def _stateless(update: Callable[..., Any]) -> optax.GradientTransformation:
  def apply(updates, state, params=None, **extra):
    del params
    return update(updates, **extra), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), apply
  )


def _scale_by_schedule(schedule: Schedule) -> optax.GradientTransformation:
  # Not optax's, which counts its own steps: one counter, the state's, serves
  # schedule, data and keys, also after skipped steps and on resume.
  def update(updates, *, step, **_):
    lr = schedule(step)
    return jax.tree.map(lambda u: jnp.asarray(-lr, u.dtype) * u, updates)

  return _stateless(update)


def _scale_by_name(
  rules: Sequence[tuple[str, float]],
) -> optax.GradientTransformation:
  def factor(name: str) -> float:
    return next((x for pattern, x in rules if re.search(pattern, name)), 1.0)

  return _stateless(
    lambda updates, **_: tree.map_named(lambda n, u: factor(n) * u, updates)
  )
