"""Times training steps on the CPU: mmjax beside a PyTorch twin.

  python tools/bench_train.py                  # ViT-S/16, 224 px, batch 8
  python tools/bench_train.py --only-main-job  # the main job's host time

One step is forward, backward and the AdamW update of a classifier, in
float32. Both programs get the same weights and the same batches, and must
report the same losses, so that it is the same computation that is timed.
Each has a process of its own, as its users start it: mmjax with what the
command `mmjax` sets for the allocator, PyTorch with nothing. They take turns,
in rounds, the other one asleep; the figures are medians over rounds. PyTorch
is optional (`pip install torch==2.13.0`): without it only mmjax is timed.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch_vit

from mmjax import __main__ as command
from mmjax import build, errors, tree
from mmjax.losses import classification
from mmjax.parallel import mesh, rules
from mmjax.train import setup
from mmjax.typing import Aux

OPTIMIZER = dict(
  name="adamw",
  lr=1e-4,
  schedule=dict(name="constant"),
  weight_decay=0.1,
  wd_mask=("",),
)
# The loops of the two thread pools spin for a moment after their last work.
PAUSE_S = 0.3
# Steps before the clock: by `perf record`, a fifth of steps 4 to 15 went into
# clearing new pages of a heap that still grew, all of it in the first of these.
WARM = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Classify:
  """The least `typing.Task` with labels."""

  model: Any
  predict: Any = None

  def init(self, rng, batch):
    """Returns new variables."""
    return self.model.init(rng, batch["image"])

  def loss(self, params, mutable, batch, rngs):
    """Returns the mean cross-entropy."""
    logits_BC, _ = self.model.apply(
      {"params": params}, batch["image"], train=True, rngs=rngs
    )
    value, _ = classification.softmax(logits_BC, batch["label"])
    return value, Aux(mutable, {})


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Of the model and its input."""

  variant: str = "S/16"
  image: int = 224
  batch: int = 8
  classes: int = 1000

  def batches(self, n: int) -> list[dict[str, np.ndarray]]:
    """Draws n batches, images in [-1, 1]."""
    rng = np.random.default_rng(0)
    shape = (self.batch, self.image, self.image, 3)
    return [
      dict(
        image=rng.uniform(-1, 1, shape).astype(np.float32),
        label=rng.integers(0, self.classes, self.batch).astype(np.int32),
      )
      for _ in range(n)
    ]


class Ours:
  """The step of mmjax, as a training run compiles it."""

  name = "mmjax"

  def __init__(self, sizes: Sizes, scan: bool) -> None:
    model = build.build(
      "models",
      name="vit",
      variant=sizes.variant,
      num_classes=sizes.classes,
      scan=scan,
    )
    example = sizes.batches(1)[0]
    shapes = {
      k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in example.items()
    }
    one = mesh.make_mesh(dict(data=1), devices=jax.devices()[:1])
    self.run = setup.assemble(
      Classify(model), OPTIMIZER, shapes, rules.Layout(one), steps=10**6
    )
    self.state = self.run.init()
    # A head of zeros would make the first loss the same for all weights.
    head = self.state.params["head"]["kernel"]
    noise = 0.02 * jax.random.normal(jax.random.key(1), head.shape)
    self.state.params["head"]["kernel"] = jax.device_put(noise, head.sharding)

  def count(self) -> int:
    """Returns the number of parameters."""
    return tree.count(self.state.params)

  def weights(self) -> dict[str, np.ndarray]:
    """Returns the parameters by name."""
    return {k: np.array(v) for k, v in tree.items(self.state.params)}

  def step(self, batch: dict[str, np.ndarray]) -> float:
    """Trains on a batch; returns its loss, so that it is over."""
    self.state, metrics = self.run.step(self.state, batch)
    return float(metrics["loss"])


class Theirs:
  """The same model and optimizer, as a user of PyTorch writes them."""

  name = "torch"

  def __init__(self, sizes: Sizes, weights: dict[str, np.ndarray]) -> None:
    self.torch = torch_vit.torch()
    self.torch.set_num_threads(len(os.sched_getaffinity(0)))
    self.model = torch_vit.build(weights, sizes.image)
    self.optimizer = self.torch.optim.AdamW(
      self.model.parameters(),
      lr=OPTIMIZER["lr"],
      betas=(0.9, 0.999),
      eps=1e-8,
      weight_decay=OPTIMIZER["weight_decay"],
    )

  def count(self) -> int:
    """Returns the number of parameters."""
    return sum(p.numel() for p in self.model.parameters())

  def step(self, batch: dict[str, np.ndarray]) -> float:
    """Trains on a batch; returns its loss."""
    torch = self.torch
    image = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2)
    label = torch.from_numpy(batch["label"]).long()
    loss = torch.nn.functional.cross_entropy(self.model(image), label)
    self.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    self.optimizer.step()
    return float(loss.detach())


class Remote:
  """A contestant, made by make(*args) in a process with an environment."""

  def __init__(
    self, make: Any, args: tuple[Any, ...], environment: Mapping[str, str]
  ) -> None:
    self.name = make.name
    spawn = multiprocessing.get_context("spawn")
    self._pipe, theirs = spawn.Pipe()
    before = dict(os.environ)
    os.environ.update(environment)  # a process inherits it when it starts
    try:
      spawn.Process(
        target=_serve, args=(theirs, make, args), daemon=True
      ).start()
    finally:
      os.environ.clear()
      os.environ.update(before)

  def call(self, method: str, *args: Any) -> Any:
    """Calls a method of the contestant over there, and waits."""
    self._pipe.send((method, args))
    return self._pipe.recv()


def _serve(pipe: Any, make: Any, args: tuple[Any, ...]) -> None:
  contestant = make(*args)
  with contextlib.suppress(EOFError):  # the caller has ended
    while True:
      method, given = pipe.recv()
      pipe.send(getattr(contestant, method)(*given))


def seconds(step: Callable[[], Any], steps: int) -> float:
  """Returns the seconds of one of `steps` calls in a row."""
  start = time.perf_counter()
  for _ in range(steps):
    step()
  return (time.perf_counter() - start) / steps


def alternate(
  contestants: dict[str, Callable[[], Any]],
  rounds: int,
  steps: int,
  pause: float = PAUSE_S,
) -> dict[str, list[float]]:
  """Times contestants in turn: {name: seconds a step, of each round}.

  Every other round goes backwards, so that nobody always runs first.
  """
  times: dict[str, list[float]] = {name: [] for name in contestants}
  for i in range(rounds):
    for name in list(contestants)[:: 1 if i % 2 == 0 else -1]:
      time.sleep(pause)
      times[name].append(seconds(contestants[name], steps))
  return times


def compare(
  sizes: Sizes, *, rounds: int, steps: int, scan: bool
) -> dict[str, float]:
  """Checks that both compute the same, times them, prints and returns.

  Returns:
    {"mmjax": seconds, "torch": seconds, "ratio": of the two}; without PyTorch
    only the first.

  Raises:
    SystemExit: parameter counts or losses differ.
  """
  tuned = command.with_allocator(os.environ) or {}
  ours = Remote(Ours, (sizes, scan), tuned)
  count = ours.call("count")
  print(f"ViT-{sizes.variant}, {sizes.image} px, batch {sizes.batch}")
  print(f"parameters: {count:,}; CPUs: {len(os.sched_getaffinity(0))}")
  contestants = [ours]
  if importlib.util.find_spec("torch"):
    contestants.append(Remote(Theirs, (sizes, ours.call("weights")), {}))
  else:
    print("torch is missing (pip install torch==2.13.0): mmjax alone")
  batches = sizes.batches(3)
  losses = {c.name: [c.call("step", b) for b in batches] for c in contestants}
  for name, values in losses.items():
    print(f"first losses, {name}: {', '.join(f'{v:.5f}' for v in values)}")
  if len(contestants) == 2:
    if (other := contestants[1].call("count")) != count:
      raise SystemExit(f"torch has {other:,} parameters")
    if not np.allclose(losses["mmjax"], losses["torch"], rtol=1e-3):
      raise SystemExit("the losses differ: this is not the same computation")
  for contestant in contestants * (WARM - len(batches)):
    contestant.call("step", batches[0])
  times = alternate(
    {c.name: lambda c=c: c.call("step", batches[0]) for c in contestants},
    rounds,
    steps,
  )
  found = {name: statistics.median(values) for name, values in times.items()}
  for name, values in times.items():
    spread = f"(rounds {min(values):.3f} to {max(values):.3f})"
    print(f"{name}: {found[name]:.3f} s a step {spread}")
  if "torch" in times:
    # Of each round, then the median: what slows a round slows both.
    pairs = zip(times["mmjax"], times["torch"], strict=True)
    found["ratio"] = statistics.median(a / b for a, b in pairs)
    print(f"ratio mmjax / torch: {found['ratio']:.3f} (goal <= 1.0)")
  return found


def host_time(path: str, steps: int) -> None:
  """Measures the loop of an experiment against its bare compiled step.

  Prints seconds a step in `train.loop` and of the compiled step on one batch
  again and again, and what the loop spends outside it by both clocks.
  """
  import json
  import pathlib

  from mmjax.cli import config as configs
  from mmjax.train import loop

  config = configs.load(path, [])
  warm = 5
  config.steps = warm + steps
  config.optimizer.schedule.warmup = warm
  config.log_every = warm + steps
  config.evals = {}
  config.checkpoint.every = 10**9
  with tempfile.TemporaryDirectory() as folder:
    loop.fit(config, folder)
    rows = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
  logged = [json.loads(r) for r in rows]
  row = next(r for r in reversed(logged) if "time/step_s" in r)

  run = setup.setup(config)
  state, batch = run.init(), next(run.feed())
  values = []
  for _ in range(warm + steps):
    start = time.perf_counter()
    state, metrics = run.step(state, batch)
    jax.block_until_ready((state, metrics))
    values.append(time.perf_counter() - start)
  bare = statistics.mean(values[warm:])
  loop_s, host = row["time/step_s"], row["time/host_share"]
  print(
    f"{path}: loop {loop_s * 1e3:.1f} ms a step, compiled step alone "
    f"{bare * 1e3:.1f} ms; outside the compiled step by the loop's own clock: "
    f"{100 * host:.2f} % (goal <= 3 %), by the difference "
    f"{100 * (1 - bare / loop_s):.2f} %"
  )


def main() -> None:
  """Reads the arguments and runs."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--variant", default="S/16")
  parser.add_argument("--image", type=int, default=224)
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--steps", type=int, default=3, help="in each round")
  parser.add_argument(
    "--scan", action="store_true", help="loop over the blocks of the model"
  )
  parser.add_argument("--only-main-job", action="store_true")
  parser.add_argument("--config", default="experiments/emoji/siglip.py")
  parser.add_argument("--main-steps", type=int, default=40)
  args = parser.parse_args()
  sizes = Sizes(args.variant, args.image, args.batch)
  try:
    if args.only_main_job:
      host_time(args.config, args.main_steps)
      return
    build.build("models", name="vit", variant=sizes.variant)  # or says why not
  except errors.InputError as error:
    parser.error(str(error))
  compare(sizes, rounds=args.rounds, steps=args.steps, scan=args.scan)


if __name__ == "__main__":
  main()
