"""Times the training loop against the compiled step that it runs.

  python tools/bench_loop.py                  # the main job
  python tools/bench_loop.py --config PATH --steps 40

What the loop spends outside the step is told by two clocks: the loop's own, and
the difference to the step alone, on one batch again and again.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time

import jax

from mmjax import errors
from mmjax.cli import config as configs
from mmjax.train import loop, setup


def host_time(path: str, steps: int) -> None:
  """Measures the loop of an experiment against its bare compiled step.

  Prints seconds a step in `train.loop` and of the compiled step on one batch
  again and again, and what the loop spends outside it by both clocks.
  """
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
  parser.add_argument("--config", default="experiments/emoji/siglip.py")
  parser.add_argument("--steps", type=int, default=40)
  args = parser.parse_args()
  if args.steps < 1:
    parser.error(f"--steps {args.steps}: give 1 or more")
  try:
    host_time(args.config, args.steps)
  except errors.InputError as error:
    parser.error(str(error))


if __name__ == "__main__":
  main()
