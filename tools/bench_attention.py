"""Times attention on a GPU against its peers, forward and backward.

  pip install "jax[cuda13]" flax torch          # tokamax is used if it is there
  PYTHONPATH=$PWD python tools/bench_attention.py --out bench.json

From a bare checkout; nothing else is needed. bfloat16, shapes of real models.
Prints TFLOP/s (4 H operations a head and pair of tokens that the mask lets
see each other, forward, 2.5 times that backward) and our ratio to the best
peer, and stores the figures with chip, date and versions. A peer that refuses
a shape is listed with its reason. Peers are given DALL-E's masks as arrays of
booleans, PyTorch's flex attention also as blocks that it may skip.

  --shape NAME   one shape (may be given again)
  --peer NAME    one peer (may be given again); "xla" says whether ours is right
  --interpret    tiny shapes on the CPU: tries the code paths, times nothing
                 worth reading
Exit code 0; 3 if there is no GPU; 1 if our result is not that of XLA.
"""

import argparse
import concurrent.futures
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
from gpu_peers import FLEX, JAX_PEERS, SHAPES, TORCH_PEERS, of_torch, seen

NO_GPU, WRONG = 3, 1
PASSES = {"forward": 1.0, "backward": 2.5}
ROWS = 2  # of the batch, whose results are compared


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


def compile_jax(peer: str, row: dict, interpret: bool):
  """Returns a peer's forward pass, and forward with backward, compiled."""
  attend = JAX_PEERS[peer](row["mask"], row["shape"][-1], interpret)

  def both(q, k, v, d_out):
    out, transpose = jax.vjp(attend, q, k, v)
    return out, *transpose(d_out)

  x = jax.ShapeDtypeStruct(row["shape"], jnp.bfloat16)
  return (
    jax.jit(attend).lower(x, x, x).compile(),
    jax.jit(both).lower(x, x, x, x).compile(),
  )


def time_jax(compiled, arrays, interpret):
  """Returns seconds forward and backward, and the results of some rows."""
  forward, both = compiled
  q, k, v, d_out = (jnp.asarray(x, jnp.bfloat16) for x in arrays)
  results = [np.asarray(x[:ROWS], np.float32) for x in both(q, k, v, d_out)]
  wait = jax.block_until_ready
  once = _seconds(lambda: forward(q, k, v), wait, interpret)
  twice = _seconds(lambda: both(q, k, v, d_out), wait, interpret)
  return {"forward": once, "backward": max(twice - once, 1e-9)}, results


def time_torch(backend, arrays, mask, interpret):
  """As `time_jax`, of PyTorch's scaled_dot_product_attention and the like."""
  torch = importlib.import_module("torch")
  choices = importlib.import_module("torch.nn.attention")

  device = "cpu" if interpret else "cuda"
  q, k, v, d_out = (
    torch.tensor(x, dtype=torch.bfloat16, device=device).transpose(1, 2)
    for x in arrays
  )
  for x in (q, k, v):
    x.requires_grad_(True)
  attend = of_torch(backend, mask, q.shape[2], device)
  allowed = list(choices.SDPBackend.__members__.values())[1:]
  if backend not in (None, FLEX):
    allowed = [getattr(choices.SDPBackend, backend)]

  def forward():
    with torch.no_grad():
      return attend(q, k, v)

  def both():
    out = attend(q, k, v)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), d_out)

  def wait(_):
    if not interpret:
      torch.cuda.synchronize()

  with choices.sdpa_kernel(allowed):
    results = [x[:ROWS].transpose(1, 2).float().cpu().numpy() for x in both()]
    once = _seconds(forward, wait, interpret)
    twice = _seconds(both, wait, interpret)
  return {"forward": once, "backward": max(twice - once, 1e-9)}, results


def row_of(name: str, interpret: bool) -> dict:
  """Returns what is to be computed of a shape."""
  B, T, N, H, mask = SHAPES[name]
  if interpret:
    B, N = 1, 2
    if mask in (None, "causal"):
      T = min(T, 17 + T % 2)  # as odd as the real one
  pairs = T * T
  if mask == "causal":
    pairs = T * (T + 1) // 2
  elif (booleans := seen(mask, T)) is not None:
    pairs = int(booleans.sum())
  return {
    "shape": [B, T, N, H],
    "mask": mask,
    "tera": 4e-12 * B * N * H * pairs,
  }


def measure(row: dict, peers: dict, interpret: bool) -> dict:
  """Returns the row of a shape: for each peer its figures or its refusal.

  Args:
    row: of `row_of`.
    peers: for each its name and what was compiled of it: a future, or None.
  """
  row = row | {"peers": {}, "off": {}, "ratio": {}}
  draw = np.random.default_rng(0)
  B, *rest = row["shape"]
  few = min(B, 8)
  arrays = [
    np.tile(
      draw.normal(size=(few, *rest)).astype("float32"), (B // few, 1, 1, 1)
    )
    for _ in range(4)
  ]
  truth = None
  for peer, built in peers.items():
    try:
      if built is None:
        seconds, got = time_torch(
          TORCH_PEERS[peer], arrays, row["mask"], interpret
        )
      else:
        seconds, got = time_jax(built.result(), arrays, interpret)
    except Exception as e:  # whatever a peer raises is its refusal
      row["peers"][peer] = {"refused": f"{type(e).__name__}: {e}"[:200]}
      continue
    row["peers"][peer] = {
      p: {
        "seconds": seconds[p],
        "tflops": row["tera"] * PASSES[p] / seconds[p],
      }
      for p in PASSES
    }
    # bfloat16 has 8 bits; sums of its products differ by a few of the last.
    truth = got if truth is None else truth
    row["off"][peer] = max(
      float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-6))
      for a, b in zip(got, truth, strict=True)
    )
  for p in PASSES:
    others = [
      x[p]["tflops"]
      for peer, x in row["peers"].items()
      if peer != "ours" and p in x
    ]
    if "ours" in row["off"] and others:
      row["ratio"][p] = row["peers"]["ours"][p]["tflops"] / max(others)
  return row


def _print(name: str, row: dict) -> None:
  for p in PASSES:
    cells = [
      f"{x[p]['tflops']:9.1f}" if p in x else f"{'-':>9}"
      for x in row["peers"].values()
    ]
    ratio = row["ratio"].get(p, float("nan"))
    print(f"{name:13}{p:9}{''.join(cells)}{ratio:8.2f}", flush=True)


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
  parser.add_argument(
    "--peer", action="append", choices=[*JAX_PEERS, *TORCH_PEERS]
  )
  parser.add_argument("--out", type=pathlib.Path)
  parser.add_argument("--interpret", action="store_true")
  args = parser.parse_args(argv)
  if not args.interpret and jax.default_backend() != "gpu":
    print(
      f"No GPU: jax runs on {jax.default_backend()}. Run this command on a "
      "machine with one, or give --interpret to try the code paths."
    )
    return NO_GPU
  peers = args.peer or [*JAX_PEERS, *TORCH_PEERS]
  rows = {x: row_of(x, args.interpret) for x in args.shape or SHAPES}
  # All are compiled before any is timed: that needs the CPU's cores.
  with concurrent.futures.ThreadPoolExecutor() as pool:
    built = {
      name: {
        peer: pool.submit(compile_jax, peer, row, args.interpret)
        if peer in JAX_PEERS
        else None
        for peer in peers
      }
      for name, row in rows.items()
    }
  print(f"{'shape':13}{'pass':9}", end="")
  print("".join(f"{x:>9}" for x in peers) + f"{'ratio':>8}")
  table = {
    "chip": "interpreted" if args.interpret else jax.devices()[0].device_kind,
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "versions": _versions(),
    "rows": {},
  }
  wrong = []
  for name in rows:
    row = measure(rows[name], built[name], args.interpret)
    table["rows"][name] = row
    _print(name, row)
    if "ours" in peers and not row["off"].get("ours", 1.0) < 0.03:
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
