"""Times training steps on the CPU: mmjax beside a PyTorch twin.

  python tools/bench_train.py  # ViT-S/16, 224 px, batch 8

One step is forward, backward and the AdamW update of a classifier, in
float32. Both programs get the same weights and the same batches, and must
report the same losses, so that it is the same computation that is timed.
Each has processes of its own, as its users start it: mmjax with what the
command `mmjax` sets for the allocator, PyTorch with nothing. They take turns,
in rounds, the others asleep; the figures are means over processes of medians
over rounds: where memory comes to lie makes two processes of one program differ
by a twentieth. PyTorch is optional (`pip install torch==2.13.0`): without it only
mmjax is timed.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import multiprocessing
import os
import statistics
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
BATCHES = 3  # whose losses are compared; the first is timed


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
    self.batches = sizes.batches(BATCHES)
    shapes = {
      k: jax.ShapeDtypeStruct(x.shape, x.dtype)
      for k, x in self.batches[0].items()
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

  def step(self, i: int) -> float:
    """Trains on a batch; returns its loss, so that it is over."""
    self.state, metrics = self.run.step(self.state, self.batches[i])
    return float(metrics["loss"])


class Theirs:
  """The same model and optimizer, as a user of PyTorch writes them."""

  name = "torch"

  def __init__(self, sizes: Sizes, weights: dict[str, np.ndarray]) -> None:
    self.torch = torch_vit.torch()
    self.torch.set_num_threads(len(os.sched_getaffinity(0)))
    self.batches = sizes.batches(BATCHES)
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

  def step(self, i: int) -> float:
    """Trains on a batch; returns its loss."""
    torch, batch = self.torch, self.batches[i]
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
  contestants: dict[Any, Callable[[], Any]],
  rounds: int,
  steps: int,
  pause: float = PAUSE_S,
) -> dict[Any, list[float]]:
  """Times contestants in turn: {name: seconds a step, of each round}.

  Every other round goes backwards, so that nobody always runs first.
  """
  times: dict[Any, list[float]] = {name: [] for name in contestants}
  for i in range(rounds):
    for name in list(contestants)[:: 1 if i % 2 == 0 else -1]:
      time.sleep(pause)
      times[name].append(seconds(contestants[name], steps))
  return times


def compare(
  sizes: Sizes, *, rounds: int, steps: int, processes: int, scan: bool
) -> dict[str, float]:
  """Checks that both compute the same, times them, prints and returns.

  Returns:
    {"mmjax": seconds, "torch": seconds, "ratio": of the two}; without PyTorch
    only the first.

  Raises:
    SystemExit: parameter counts or losses differ.
  """
  tuned = command.with_allocator(os.environ) or {}
  contestants = [Remote(Ours, (sizes, scan), tuned) for _ in range(processes)]
  count = contestants[0].call("count")
  print(f"ViT-{sizes.variant}, {sizes.image} px, batch {sizes.batch}")
  print(f"parameters: {count:,}; CPUs: {len(os.sched_getaffinity(0))}")
  if importlib.util.find_spec("torch"):
    weights = contestants[0].call("weights")
    contestants += [
      Remote(Theirs, (sizes, weights), {}) for _ in range(processes)
    ]
  else:
    print("torch is missing (pip install torch==2.13.0): mmjax alone")
  for c in contestants:
    losses = [c.call("step", i) for i in range(BATCHES)]
    print(f"first losses, {c.name}: {', '.join(f'{v:.5f}' for v in losses)}")
    if (other := c.call("count")) != count:
      raise SystemExit(f"{c.name} has {other:,} parameters")
    if c is contestants[0]:
      first = losses
    if not np.allclose(first, losses, rtol=1e-3):
      raise SystemExit("the losses differ: this is not the same computation")
    for _ in range(WARM - BATCHES):
      c.call("step", 0)
  times = alternate(
    {
      (c.name, i): lambda c=c: c.call("step", 0)
      for i, c in enumerate(contestants)
    },
    rounds,
    steps,
  )
  found: dict[str, float] = {}
  for name in dict.fromkeys(name for name, _ in times):
    each = {k: v for k, v in times.items() if k[0] == name}.values()
    medians = [statistics.median(v) for v in each]
    found[name] = statistics.mean(medians)
    alone = ", ".join(f"{v:.3f}" for v in medians)
    spread = f"{min(map(min, each)):.3f} to {max(map(max, each)):.3f}"
    print(f"{name}: {found[name]:.3f} s a step ({alone}; rounds {spread})")
  if "torch" in found:
    found["ratio"] = found["mmjax"] / found["torch"]
    print(f"ratio mmjax / torch: {found['ratio']:.3f} (goal <= 1.0)")
  return found


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
  parser.add_argument("--processes", type=int, default=2, help="of each")
  parser.add_argument(
    "--scan", action="store_true", help="loop over the blocks of the model"
  )
  args = parser.parse_args()
  for name in ("rounds", "steps", "processes"):
    if getattr(args, name) < 1:
      parser.error(f"--{name} {getattr(args, name)}: give 1 or more")
  sizes = Sizes(args.variant, args.image, args.batch)
  try:
    build.build("models", name="vit", variant=sizes.variant)  # or says why not
  except errors.InputError as error:
    parser.error(str(error))
  compare(
    sizes,
    rounds=args.rounds,
    steps=args.steps,
    processes=args.processes,
    scan=args.scan,
  )


if __name__ == "__main__":
  main()
