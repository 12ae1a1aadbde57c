"""Times the tiles of the GPU attention kernels on a GPU, kernel by kernel.

  PYTHONPATH=$PWD python tools/tune_gpu.py --out tiles.json

For each shape of `bench_attention.py` and each kernel: the candidates, the
fastest first, in milliseconds, and how far their results are from XLA's in
float32, by the size of the greatest. What `choose_tiles` holds was found with
it.

  --shape NAME    one shape (may be given again)
  --kernel NAME   one kernel (may be given again)
Exit code 0; 3 if there is no GPU.
"""

import argparse
import concurrent.futures
import json
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import gpu_peers as peers
from bench_attention import NO_GPU, row_of

from mmjax.ops import masks
from mmjax.ops.kernels import gpu, gpu_backward
from mmjax.ops.kernels import gpu_tiles as gt
from mmjax.ops.kernels.gpu_hopper import HopperTiles as Hopper
from mmjax.ops.kernels.gpu_hopper_backward import BackwardTiles as Backward
from mmjax.ops.kernels.gpu_hopper_whole import Whole
from mmjax.ops.kernels.gpu_tiles import Tiles

# Of heads up to 96 wide.
NARROW = {
  "forward": [
    Tiles(128, 64, 8, 3),
    Tiles(64, 64, 4, 3),
    Tiles(64, 64, 4, 4),
    Tiles(64, 128, 4, 2),
    Tiles(64, 32, 4, 4),
    Tiles(128, 32, 4, 3),
    Hopper(2, 128, 2, pingpong=False),
    Hopper(2, 128, 2),
    Hopper(2, 128, 2, overlap=True),
    Hopper(2, 64, 4),
    Hopper(3, 128, 2),
    Hopper(3, 128, 2, overlap=True),
    Hopper(3, 64, 3, overlap=True),
    Hopper(3, 96, 2, overlap=True),
    Hopper(1, 64, 4, pingpong=False),
    Hopper(1, 64, 2, pingpong=False),
    Hopper(1, 128, 2, pingpong=False),
    Hopper(1, 144, 2, pingpong=False),
    Hopper(1, 80, 1, pingpong=False),
    Hopper(2, 128, 2, resident=True),
    Hopper(3, 128, 2, resident=True),
    Hopper(3, 128, 2, overlap=True, resident=True),
    Hopper(2, 128, 2, resident=True, lazy=True),
  ],
  "d_q": [
    Tiles(64, 64, 4, 2),
    Tiles(64, 64, 4, 3),
    Tiles(64, 32, 4, 3),
    Tiles(128, 32, 4, 3),
    Backward(2, 64, 3),
    Backward(2, 64, 4),
    Backward(2, 64, 3, held=2),
    Backward(2, 64, 4, held=2),
    Backward(2, 128, 2),
    Backward(3, 64, 3),
    Backward(2, 64, 3, resident=True),
    Backward(2, 64, 4, held=1, resident=True),
  ],
  "d_kv": [
    Tiles(32, 64, 4, 3),
    Tiles(64, 64, 4, 3),
    Tiles(32, 128, 4, 3),
    Backward(2, 64, 3),
    Backward(2, 64, 4),
    Backward(2, 64, 3, held=2),
    Backward(2, 64, 4, held=2),
    Backward(2, 64, 4, held=2, resident=True),
  ],
  "whole": [Whole()],
}
WIDE = {
  "forward": [
    Tiles(128, 64, 4, 2),
    Tiles(128, 128, 8, 3),
    Tiles(64, 64, 4, 3),
    Hopper(2, 128, 2),
    Hopper(2, 128, 2, overlap=True),
    Hopper(3, 128, 2),
    Hopper(3, 128, 2, overlap=True),
    Hopper(2, 128, 2, overlap=True, resident=True),
    Hopper(2, 128, 2, lazy=True),
  ],
  "d_q": [
    Tiles(128, 32, 8, 3),
    Tiles(64, 64, 4, 2),
    Tiles(64, 32, 4, 3),
    Backward(2, 64, 2),
    Backward(2, 64, 3),
    Backward(2, 64, 4),
    Backward(2, 64, 3, held=2),
  ],
  "d_kv": [
    Tiles(64, 64, 4, 2),
    Tiles(32, 64, 4, 3),
    Backward(2, 64, 2),
    Backward(2, 64, 3),
    Backward(2, 64, 4),
    Backward(2, 64, 2, resident=True),
  ],
}
KERNELS = tuple(NARROW)


def build(kernel: str, row: dict, tiles: Any):
  """Returns a kernel compiled with these tiles."""
  B, T, N, H = row["shape"]
  mask = peers.MASKS[row["mask"]]
  every = gt.KernelTiles(*[Tiles(64, 64)] * 4)
  plan = gt.Plan(
    *(B, T, T, N, N, H, H),
    scale=H**-0.5,
    softcap=None,
    rate=0.0,
    mask=None if mask is None else jax.tree.structure(mask),
    axes=() if mask is None else masks.leaf_axes(mask),
    bias=None,
    tiles=every._replace(**{"d_q" if kernel == "whole" else kernel: tiles}),
    interpret=False,
  )
  extra = gt.Extra((), None, None)

  def run(q, k, v, d_out, out, lse, delta):
    if kernel == "forward":
      return gpu.forward(plan, q, k, v, extra)[0]
    if kernel == "whole":
      given = (q, k, v, extra, out, lse, d_out)
      return gpu_backward.gradients(plan, *given)[:3]
    if kernel == "d_q":
      return gpu_backward.d_q(plan, q, k, v, d_out, lse, out, extra)
    return gpu_backward.d_kv(plan, q, k, v, d_out, lse, delta, extra)

  x = jax.ShapeDtypeStruct(row["shape"], jnp.bfloat16)
  vector = jax.ShapeDtypeStruct((B, N, T), jnp.float32)
  given = (x, x, x, x, x, vector, vector)
  return jax.jit(run, keep_unused=True).lower(*given).compile()


@jax.jit
def _truth(q, k, v, d_out, seen):
  """Returns (out, lse, delta) and the three gradients by XLA, in float32.

  Head by head, or scores of long sequences would not fit.
  """

  def attend(q, k, v):
    logits = jnp.einsum("BTH,BSH->BTS", q, k) * q.shape[-1] ** -0.5
    logits = jnp.where(seen, logits, -jnp.inf)
    total = jax.nn.logsumexp(logits, -1)
    weights = jnp.exp(logits - total[..., None])
    return jnp.einsum("BTS,BSH->BTH", weights, v), total

  def head(arrays):
    q, k, v, d_out = arrays
    out, transpose, total = jax.vjp(attend, q, k, v, has_aux=True)
    delta = (out * d_out).sum(-1)
    return (out, *transpose(d_out)), (total * gt.LOG2E, delta)

  heads = [jnp.moveaxis(x.astype(jnp.float32), 2, 0) for x in (q, k, v, d_out)]
  wide, thin = jax.lax.map(head, heads)
  out, *gradients = (jnp.moveaxis(x, 0, 2) for x in wide)
  return (out, *(jnp.moveaxis(x, 0, 1) for x in thin)), gradients


def inputs(row: dict) -> tuple[list[jax.Array], dict[str, list[np.ndarray]]]:
  """Returns what kernels are given, and by kernel what they should return.

  Given are (q, k, v, d_out, out, lse, delta), of which two rows differ.
  """
  B, T, *rest = row["shape"]
  seen = peers.MASKS[row["mask"]]
  seen = True if seen is None else masks.dense(seen, T, T)[0, 0]
  keys = jax.random.split(jax.random.key(0), 4)
  few = [jax.random.normal(x, (2, T, *rest), jnp.bfloat16) for x in keys]
  (out, lse, delta), gradients = _truth(*few, seen)
  few += [out.astype(jnp.bfloat16), lse, delta]
  d_q, d_k, d_v = (np.asarray(x) for x in gradients)
  truths = {
    "forward": [np.asarray(out)],
    "d_q": [d_q, np.asarray(delta)],
    "d_kv": [d_k, d_v],
    "whole": [d_q, d_k, d_v],
  }
  return [jnp.tile(x, (B // 2, *(1,) * (x.ndim - 1))) for x in few], truths


def seconds(call) -> float:
  """Returns the median time of a call, of runs of at least 8 ms."""
  jax.block_until_ready(call())
  start = time.perf_counter()
  jax.block_until_ready([call() for _ in range(2)])
  count = max(2, int(0.008 / max((time.perf_counter() - start) / 2, 1e-6)))
  runs = []
  for _ in range(5):
    start = time.perf_counter()
    for _ in range(count):
      last = call()
    jax.block_until_ready(last)
    runs.append((time.perf_counter() - start) / count)
  return float(np.median(runs))


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--shape", action="append", choices=sorted(peers.SHAPES))
  parser.add_argument("--kernel", action="append", choices=KERNELS)
  parser.add_argument("--out", type=pathlib.Path)
  args = parser.parse_args(argv)
  if jax.default_backend() != "gpu":
    print(f"No GPU: jax runs on {jax.default_backend()}.")
    return NO_GPU
  rows = {x: row_of(x, False) for x in args.shape or peers.SHAPES}
  kernels = args.kernel or KERNELS
  with concurrent.futures.ThreadPoolExecutor() as pool:
    built = {
      (name, kernel): [
        (tiles, pool.submit(build, kernel, row, tiles))
        for tiles in (NARROW if row["shape"][-1] <= 96 else WIDE).get(
          kernel, ()
        )
      ]
      for name, row in rows.items()
      for kernel in kernels
    }
  table = {}
  for name, row in rows.items():
    given, truths = inputs(row)
    for kernel in kernels:
      found = [
        _try(tiles, compiled, given, truths[kernel])
        for tiles, compiled in built[name, kernel]
      ]
      found.sort()
      print(f"{name} {kernel}")
      for milliseconds, tiles, note in found:
        print(f"  {milliseconds:9.3f} ms  {note:12}{tiles}", flush=True)
      table[f"{name} {kernel}"] = found
    if args.out is not None:
      args.out.write_text(json.dumps(table, indent=1) + "\n")
  return 0


def _try(tiles, compiled, given, truth) -> tuple[float, str, str]:
  """Returns the milliseconds of a candidate, its tiles, and how right it is."""
  shown = str(tiles)
  try:
    run = compiled.result()
    got = [np.asarray(x[:2], np.float32) for x in jax.tree.leaves(run(*given))]
    # Kernels for Hopper return sums of rows past the end.
    got = [x[(*map(slice, y.shape),)] for x, y in zip(got, truth, strict=True)]
    milliseconds = 1e3 * seconds(lambda: run(*given))
  except Exception as e:  # too much shared memory, say
    return float("inf"), shown, f"{type(e).__name__}: {e}"[:150]
  off = max(
    float(np.abs(a - b).max() / np.abs(b).max())
    for a, b in zip(got, truth, strict=True)
  )
  return milliseconds, shown, f"off {off:.1e}"


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
