"""Times training steps of a ViT on a GPU: mmjax beside a PyTorch twin.

  PYTHONPATH=$PWD python tools/bench_gpu_step.py         # ViT-B/16, batch 256

One step is forward, backward and the AdamW update of a classifier: products in
bfloat16, parameters and optimizer in float32, batches on the GPU already. Both
get the same weights and report their losses. mmjax is timed with each attention
that the door may take on a GPU; PyTorch eager and compiled, in autocast, with
its fused AdamW.

Exit code 0; 1 if losses differ by more than rounding; 3 if there is no GPU.
"""

import argparse
import os
import statistics
import sys
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # beside torch

import jax
import numpy as np
import torch_vit
from bench_train import OPTIMIZER, Classify, Sizes

from mmjax import build, tree
from mmjax.ops import choice
from mmjax.parallel import mesh, rules
from mmjax.train import setup

NO_GPU, WRONG = 3, 1


def milliseconds(step, wait, steps: int) -> float:
  """Returns the median time of a step, of rounds of some in a row."""
  rounds = []
  for _ in range(5):
    start = time.perf_counter()
    for _ in range(steps):
      last = step()
    wait(last)
    rounds.append(1e3 * (time.perf_counter() - start) / steps)
  return statistics.median(rounds)


def ours(sizes: Sizes, attention: str, steps: int, scan: bool | None):
  """Returns (ms a step, losses of the first steps, first weights)."""
  choice.ORDER["gpu"] = (attention,)
  model = build.build(
    "models",
    name="vit",
    variant=sizes.variant,
    num_classes=sizes.classes,
    dtype="bfloat16",
    scan=scan,
  )
  batches = sizes.batches(2)
  shapes = {
    k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in batches[0].items()
  }
  one = mesh.make_mesh(dict(data=1), devices=jax.devices()[:1])
  run = setup.assemble(
    Classify(model), OPTIMIZER, shapes, rules.Layout(one), steps=10**6
  )
  state = run.init()
  head = state.params["head"]["kernel"]
  noise = 0.02 * jax.random.normal(jax.random.key(1), head.shape)
  state.params["head"]["kernel"] = jax.device_put(noise, head.sharding)
  weights = {k: np.array(v) for k, v in tree.items(state.params)}
  with jax.set_mesh(one):
    batches = [jax.device_put(x) for x in batches]
  losses = []
  for batch in batches:
    state, metrics = run.step(state, batch)
    losses.append(float(metrics["loss"]))

  def step():
    nonlocal state
    state, metrics = run.step(state, batches[0])
    return metrics

  return milliseconds(step, jax.block_until_ready, steps), losses, weights


def theirs(sizes: Sizes, weights, compiled: bool, steps: int):
  """Returns (ms a step, losses of the first steps)."""
  torch = torch_vit.torch()
  model = torch_vit.build(weights, sizes.image).cuda()
  optimizer = torch.optim.AdamW(
    model.parameters(),
    lr=OPTIMIZER["lr"],
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=OPTIMIZER["weight_decay"],
    fused=True,
  )
  forward = torch.compile(model) if compiled else model
  batches = [
    (
      torch.from_numpy(x["image"]).permute(0, 3, 1, 2).cuda(),
      torch.from_numpy(x["label"]).long().cuda(),
    )
    for x in sizes.batches(2)
  ]

  def step(image=batches[0][0], label=batches[0][1]):
    with torch.autocast("cuda", torch.bfloat16):
      loss = torch.nn.functional.cross_entropy(forward(image), label)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()

  losses = [float(step(*x)) for x in batches]
  return milliseconds(step, lambda _: torch.cuda.synchronize(), steps), losses


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--variant", default="B/16")
  parser.add_argument("--batch", type=int, default=256)
  parser.add_argument("--steps", type=int, default=5)
  parser.add_argument(
    "--scan", action="store_true", help="loop over the blocks of the model"
  )
  args = parser.parse_args(argv)
  if jax.default_backend() != "gpu":
    print(f"No GPU: jax runs on {jax.default_backend()}.")
    return NO_GPU
  sizes = Sizes(variant=args.variant, batch=args.batch)
  print(
    f"{jax.devices()[0].device_kind}, ViT-{args.variant}, {args.batch} images"
  )
  first, *others = choice.ORDER["gpu"]
  ms, losses, weights = ours(sizes, first, args.steps, args.scan or None)
  _print(f"mmjax, attention {first}", ms, args.batch, losses)
  every = [losses]
  for compiled in (True, False):
    try:
      ms, losses = theirs(sizes, weights, compiled, args.steps)
    except ImportError as e:
      print(f"PyTorch is not timed: {e}")
      break
    name = f"PyTorch {'compiled' if compiled else 'eager'}"
    _print(name, ms, args.batch, losses)
    every.append(losses)
  for attention in others:
    ms, losses, _ = ours(sizes, attention, args.steps, args.scan or None)
    _print(f"mmjax, attention {attention}", ms, args.batch, losses)
    every.append(losses)
  return WRONG if np.ptp(every, 0).max() > 0.02 else 0


def _print(name: str, ms: float, batch: int, losses: list[float]) -> None:
  rate = 1e3 * batch / ms
  shown = ", ".join(f"{x:.4f}" for x in losses)
  print(
    f"{name:24}{ms:9.2f} ms a step{rate:9.0f} images/s  losses {shown}",
    flush=True,
  )


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
