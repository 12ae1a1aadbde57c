"""Times attention on a GPU against its peers, forward and backward.

  pip install "jax[cuda13]" flax torch          # tokamax is used if it is there
  PYTHONPATH=$PWD python tools/bench_attention.py --out bench.json

From a bare checkout; nothing else is needed. bfloat16, shapes of real models.
Prints TFLOP/s (4 B N T S H operations forward, 2.5 times that backward, half
of both if causal) and our ratio to the best peer, and stores the figures with
chip, date and versions. A peer that refuses a shape is listed with its reason.

  --shape NAME   one shape (may be given again)
  --interpret    tiny shapes on the CPU: tries the code paths, times nothing
                 worth reading
Exit code 0; 3 if there is no GPU; 1 if our result is not that of XLA.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # beside torch

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.ops import masks
from mmjax.ops.kernels import gpu
from mmjax.ops.kernels.gpu_tiles import Tiles

NO_GPU, WRONG = 3, 1
# batch, tokens, heads, width, causal
SHAPES = {
  "vit196": (128, 196, 12, 64, False),
  "vit197": (128, 197, 12, 64, False),
  "clip257": (64, 257, 16, 64, False),
  "so400m729": (32, 729, 16, 72, False),
  "whisper1500": (16, 1500, 20, 64, False),
  "dalle1280": (4, 1280, 62, 64, True),
  "gpt3-2048": (8, 2048, 16, 128, True),
  "causal8k": (2, 8192, 16, 128, True),
}
PASSES = {"forward": 1.0, "backward": 2.5}


def _ours(causal, width, interpret):
  tiles = (Tiles(16, 16),) * 4 if interpret else None

  def attend(q, k, v):
    return gpu.attend(
      q,
      k,
      v,
      mask=masks.Causal() if causal else None,
      bias=None,
      scale=width**-0.5,
      softcap=None,
      dropout_rate=0.0,
      dropout_seeds=None,
      interpret=interpret,
      tiles=tiles,
    )

  return attend


def _of_jax(implementation):
  def make(causal, width, interpret):
    del width, interpret
    return lambda q, k, v: jax.nn.dot_product_attention(
      q, k, v, is_causal=causal, implementation=implementation
    )

  return make


def _in_tree(causal, width, interpret):
  from jax.experimental.pallas.ops.gpu import attention

  def attend(q, k, v):
    return attention.mha(
      q,
      k,
      v,
      segment_ids=None,
      sm_scale=width**-0.5,
      causal=causal,
      interpret=interpret,
    )

  return attend


def _tokamax(causal, width, interpret):
  tokamax = importlib.import_module("tokamax")

  if interpret:
    raise NotImplementedError("tokamax's kernels are not interpreted")
  del width
  return lambda q, k, v: tokamax.dot_product_attention(
    q, k, v, is_causal=causal
  )


JAX_PEERS = {
  "ours": _ours,
  "xla": _of_jax("xla"),
  "cudnn": _of_jax("cudnn"),
  "in-tree": _in_tree,
  "tokamax": _tokamax,
}


def _seconds(call, wait, interpret: bool) -> float:
  """Returns the median time of a call, of runs of at least 20 ms."""
  wait(call())
  if interpret:
    start = time.perf_counter()
    wait(call())
    return time.perf_counter() - start
  start = time.perf_counter()
  wait([call() for _ in range(3)][-1])
  count = max(3, int(0.02 / max((time.perf_counter() - start) / 3, 1e-6)))
  runs = []
  for _ in range(9):
    start = time.perf_counter()
    for _ in range(count):
      last = call()
    wait(last)
    runs.append((time.perf_counter() - start) / count)
  return statistics.median(runs)


def time_jax(make, arrays, causal, interpret):
  """Returns seconds forward and backward, and the results as NumPy."""
  q, k, v, d_out = (jnp.asarray(x, jnp.bfloat16) for x in arrays)
  attend = make(causal, q.shape[-1], interpret)
  forward = jax.jit(attend)

  def both(q, k, v, d_out):
    out, transpose = jax.vjp(attend, q, k, v)
    return out, *transpose(d_out)

  both = jax.jit(both)
  results = [np.asarray(x, np.float32) for x in both(q, k, v, d_out)]
  wait = jax.block_until_ready
  once = _seconds(lambda: forward(q, k, v), wait, interpret)
  twice = _seconds(lambda: both(q, k, v, d_out), wait, interpret)
  return {"forward": once, "backward": max(twice - once, 1e-9)}, results


def time_torch(arrays, causal, interpret):
  """As `time_jax`, of PyTorch's scaled_dot_product_attention."""
  torch = importlib.import_module("torch")

  device = "cpu" if interpret else "cuda"
  q, k, v, d_out = (
    torch.tensor(x, dtype=torch.bfloat16, device=device).transpose(1, 2)
    for x in arrays
  )
  for x in (q, k, v):
    x.requires_grad_(True)
  attend = torch.nn.functional.scaled_dot_product_attention

  def forward():
    with torch.no_grad():
      return attend(q, k, v, is_causal=causal)

  def both():
    out = attend(q, k, v, is_causal=causal)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), d_out)

  def wait(_):
    if not interpret:
      torch.cuda.synchronize()

  results = [x.transpose(1, 2).float().cpu().numpy() for x in both()]
  once = _seconds(forward, wait, interpret)
  twice = _seconds(both, wait, interpret)
  return {"forward": once, "backward": max(twice - once, 1e-9)}, results


def measure(name: str, interpret: bool) -> dict:
  """Returns the row of a shape: for each peer its figures or its refusal."""
  B, T, N, H, causal = SHAPES[name]
  if interpret:
    B, T, N = 1, min(T, 17 + T % 2), 2  # as odd as the real one
  draw = np.random.default_rng(0)
  arrays = [draw.normal(size=(B, T, N, H)).astype("float32") for _ in range(4)]
  work = 4 * B * N * T * T * H * (0.5 if causal else 1.0) / 1e12
  row = {"shape": [B, T, N, H], "causal": causal, "peers": {}}
  results = {}
  for peer in (*JAX_PEERS, "torch"):
    try:
      if peer == "torch":
        seconds, got = time_torch(arrays, causal, interpret)
      else:
        seconds, got = time_jax(JAX_PEERS[peer], arrays, causal, interpret)
    except Exception as e:  # whatever a peer raises is its refusal
      if peer in ("ours", "xla"):
        raise
      row["peers"][peer] = {"refused": f"{type(e).__name__}: {e}"[:200]}
      continue
    row["peers"][peer] = {
      p: {"seconds": seconds[p], "tflops": work * PASSES[p] / seconds[p]}
      for p in PASSES
    }
    results[peer] = got
  # bfloat16 has 8 bits; sums of its products differ by a few of the last.
  row["off"] = max(
    float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-6))
    for a, b in zip(results["ours"], results["xla"], strict=True)
  )
  row["ratio"] = {}
  for p in PASSES:
    others = [
      x[p]["tflops"]
      for peer, x in row["peers"].items()
      if peer != "ours" and p in x
    ]
    row["ratio"][p] = row["peers"]["ours"][p]["tflops"] / max(others)
  return row


def _print(name: str, row: dict) -> None:
  for p in PASSES:
    cells = [
      f"{x[p]['tflops']:9.1f}" if p in x else f"{'-':>9}"
      for x in row["peers"].values()
    ]
    print(f"{name:12}{p:9}{''.join(cells)}{row['ratio'][p]:8.2f}", flush=True)


def _versions() -> dict[str, str]:
  found = {}
  for package in ("jax", "jaxlib", "torch", "tokamax"):
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--shape", action="append", choices=sorted(SHAPES))
  parser.add_argument("--out", type=pathlib.Path)
  parser.add_argument("--interpret", action="store_true")
  args = parser.parse_args(argv)
  if not args.interpret and jax.default_backend() != "gpu":
    print(
      f"No GPU: jax runs on {jax.default_backend()}. Run this command on a "
      "machine with one, or give --interpret to try the code paths."
    )
    return NO_GPU
  print(f"{'shape':12}{'pass':9}", end="")
  print("".join(f"{x:>9}" for x in (*JAX_PEERS, "torch")) + f"{'ratio':>8}")
  table = {
    "chip": "interpreted" if args.interpret else jax.devices()[0].device_kind,
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "versions": _versions(),
    "rows": {},
  }
  wrong = []
  for name in args.shape or SHAPES:
    row = table["rows"][name] = measure(name, args.interpret)
    _print(name, row)
    if row["off"] > 0.03:
      wrong.append(name)
    if args.out is not None:  # after each shape: a run may be cut off
      args.out.write_text(json.dumps(table, indent=1) + "\n")
  for name, row in table["rows"].items():
    for peer, x in row["peers"].items():
      if "refused" in x:
        print(f"{name}: {peer} refused: {x['refused']}")
  if wrong:
    print(f"Ours is not XLA's result for {', '.join(wrong)}.")
  return WRONG if wrong else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
