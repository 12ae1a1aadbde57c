"""Compares our flash kernel with in-tree splash, causal, on a TPU not there.

  PYTHONPATH=/tmp/libtpu python tools/kernel_steps.py --chips v6e
  PYTHONPATH=/tmp/libtpu python tools/kernel_steps.py --lengths 2048 \
    --ours 1024x1024 --splash 1024x1024x512,1024x1024x1024x1

The compiler's simulator does not know how much is done where a kernel reads its
steps from a table, as both do under a causal mask. So each is compiled over a
grid without a table, where every block is computed: the same code for a block,
and nothing to look up. Two sizes, of b x b and 2b x 2b tokens, tell what a
block costs (X) and what a row of blocks costs beside (A, its first and last
step and its pipeline); where blocks are b x b,

  c(b) = A + X,  c(2b) = 2 A + 4 X.

What a causal mask of a length costs is then A x rows + X x blocks, and how many
of these there are is exact. Ours has two X, of blocks that the mask cuts and of
those that it does not; splash, whose causal mask is a function of positions,
applies it to all. Where this is not even handed it is so in splash's favour: its
steps over empty blocks are free, and so is the sum over blocks of keys of its
fused backward pass (`use_fused_bwd_kernel`), but for what 2 blocks cost. Neither
is charged for reading its table.

Where the simulator aborts, both are counted in instruction bundles, marked "~":
a bundle a cycle and all the code of a kernel for each block, its first and last
step too. Sizes are block_q x block_kv of ours, and of splash with
x block_kv_compute, and x 1 for the fused backward pass. The rest is as of
tools/tpu_compiler.py.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tpu_compiler
from kernel_cycles import names
from tpu_compiler import CHIPS

OURS = "512x512,1024x512,1024x1024"
SPLASH = "512x512x512,1024x1024x512,1024x1024x1024,1024x1024x512x1"
HEADS = 4
ROWS_OF_KEYS = ("dkv", "backward")  # kernels whose rows are blocks of keys


class Case(NamedTuple):
  """What one process compiles.

  name, kind: "ours", all blocks of it "full" or "partial"; or "splash".
  sizes: of blocks.
  """

  chip: str
  name: str
  kind: str
  sizes: Sequence[int]
  head_dim: int


class Cost(NamedTuple):
  """Of a row of blocks and of a block, in a kernel."""

  row: float
  block: float


class Found(NamedTuple):
  """What was found of a case.

  kernels: the cost of each.
  rest: cycles a token and head of everything else.
  bundles: whether costs are bundles.
  """

  kernels: Mapping[str, Cost]
  rest: float
  bundles: bool


def kernel(operation: str) -> str | None:
  """Returns which kernel an operation of the program is, or None."""
  for word in ("dkv", "dq", "backward"):
    if f"attention_flash_{word}" in operation or f"mha_{word}" in operation:
      return word
  named = "attention_flash" in operation or "splash_mha_fwd" in operation
  return "forward" if named else None


def split(cycles: Mapping[str, float], sizes: Sequence[int]) -> Found:
  """Takes apart the cycles of all operations, over `HEADS` heads, of a case."""
  side = max(sizes[:2])
  both: dict[str, list[float]] = {}
  found, rest = {}, 0.0
  for operation, n in cycles.items():
    name = kernel(operation)
    if name is None:
      rest += n / HEADS / (3 * side)
    else:
      both.setdefault(name, []).append(n / HEADS)
  for name, pair in both.items():
    if len(pair) != 2:
      raise ValueError(f"{name}: {len(pair)} figures, not of 2 sizes")
    small, large = sorted(pair)
    rows = side // sizes[name in ROWS_OF_KEYS]
    count = side // sizes[0] * (side // sizes[1])
    block = (large - 2 * small) / (2 * count)
    found[name] = Cost((small - count * block) / rows, block)
  return Found(found, rest, bundles=False)


def counted(bundles: Mapping[str, int]) -> Found:
  """Returns costs by bundles: a block costs all the code of its kernel."""
  found: dict[str, Cost] = {}
  for operation, n in bundles.items():
    name = kernel(operation)
    if name is not None:
      old = found.get(name, Cost(0.0, 0.0))
      found[name] = Cost(0.0, max(old.block, float(n)))
  return Found(found, 0.0, bundles=True)


def blocks(length: int, block_q: int, block_k: int) -> dict[str, int]:
  """Counts what a causal mask leaves: rows, columns, full, partial blocks."""
  from mmjax.ops import blocks, masks

  kinds = blocks.static_map(masks.Causal(), length, length, block_q, block_k)
  return {
    "rows": kinds.shape[0],
    "columns": kinds.shape[1],
    "full": int((kinds == blocks.FULL).sum()),
    "partial": int((kinds == blocks.PARTIAL).sum()),
  }


def total(
  full: Found, partial: Found, length: int, sizes: Sequence[int]
) -> dict[str, float]:
  """Returns what each kernel, and the rest, costs a head of a length.

  Args:
    full, partial: costs where blocks are of either kind.
    length, sizes: tokens, and those of a block of queries and of keys.
  """
  count = blocks(length, *sizes[:2])
  found = {}
  for name, cost in partial.kernels.items():
    rows = count["columns" if name in ROWS_OF_KEYS else "rows"]
    whole = full.kernels[name].block
    found[name] = rows * cost.row + count["full"] * whole
    found[name] += count["partial"] * cost.block
  found["rest"] = partial.rest * length
  return found


def veiled() -> Any:
  """Returns a causal mask of which no block is known: all are PARTIAL."""
  from mmjax.ops import algebra, masks

  @masks.register
  @dataclasses.dataclass(frozen=True)
  class Veiled(masks.Causal):
    def bounds(self, q, k):
      known = (q.lo + k.lo) != (q.lo + k.lo)  # of no block
      return algebra.Bounds(~known, known)

  return Veiled()


def contestant(case: Case) -> Any:
  """Returns a function of q, k and v, each [1 N T H], over a whole grid."""
  import jax

  scale = case.head_dim**-0.5
  if case.name == "ours":
    from mmjax.ops.kernels import tiles, tpu

    def run(q, k, v):
      q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
      return tpu.attend(
        q,
        k,
        v,
        mask=veiled() if case.kind == "partial" else None,
        bias=None,
        scale=scale,
        softcap=None,
        dropout_rate=0.0,
        dropout_seeds=None,
        tiles=tiles.Flash(*case.sizes),
      ).swapaxes(1, 2)

    return run
  from jax.experimental.pallas.ops.tpu import splash_attention as module

  block_q, block_k, compute, *fused = case.sizes
  sizes: dict[str, Any] = dict(block_q=block_q, block_q_dkv=block_q)
  sizes |= dict(block_kv=block_k, block_kv_dkv=block_k)
  sizes |= dict(block_kv_compute=compute, block_kv_dkv_compute=compute)
  if fused and fused[0]:
    sizes["use_fused_bwd_kernel"] = True
  else:
    sizes |= dict(block_q_dq=block_q, block_kv_dq=block_k)

  def run_splash(q, k, v):
    shape = q.shape[2], k.shape[2]
    made = module.make_splash_mha(
      module.MultiHeadMask([module.CausalMask(shape)] * q.shape[1]),
      block_sizes=module.BlockSizes(**sizes),
      head_shards=1,
      q_seq_shards=1,
    )
    for name in ("fwd_mask_info", "dq_mask_info", "dkv_mask_info"):
      info = getattr(made, name)
      if info is not None:  # the mask stays, a function of positions
        tables = dict.fromkeys(("data_next", "mask_next", "block_mask"))
        setattr(made, name, info._replace(**tables))
    return jax.vmap(made)(q * scale, k, v)

  return run_splash


def compile_one(case: Case) -> None:
  """Compiles a contestant at both sizes, forward and backward."""
  import jax
  import jax.numpy as jnp

  run = contestant(case)
  side = max(case.sizes[:2])

  def step(*all_args):
    found = []
    for i in range(0, len(all_args), 4):
      *args, d_out = all_args[i : i + 4]
      out, pull = jax.vjp(run, *args)
      found.append((out, pull(d_out)))
    return found

  shapes = [(1, HEADS, n * side, case.head_dim) for n in (1, 2)]
  arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
  args = [x for x in arrays for _ in range(4)]
  tpu_compiler.compile_for(case.chip, step, args)


def estimate(case: Case) -> Found | str:
  """Returns the costs of a case, or why there are none."""
  found, done = tpu_compiler.compile_apart(
    case, tpu_compiler.SIMULATE, tpu_compiler.parse, __file__
  )
  if not done.returncode:
    found = split(found, case.sizes)
    products = 2.0 * case.sizes[0] * case.sizes[1] * case.head_dim
    for name, cost in found.kernels.items():
      least = {"forward": 2, "dq": 3, "dkv": 4, "backward": 5}[name] * products
      if least / CHIPS[case.chip].peak > cost.block:
        return f"{name}: impossible, above the peak of the chip"
    return found
  found, done = tpu_compiler.compile_apart(
    case,
    tpu_compiler.DUMP,
    lambda folder: tpu_compiler.bundles(folder, "a"),
    __file__,
  )
  return tpu_compiler.reason(done) if done.returncode else counted(found)


def figures(
  chip: str, name: str, sizes: Sequence[int], lengths: Sequence[int], width: int
) -> dict[int, dict[str, float]] | str:
  """Returns what a contestant costs at each length; "~" in a key: bundles."""
  cases = [Case(chip, name, "partial", sizes, width)]
  if name == "ours":
    cases.append(cases[0]._replace(kind="full"))
  found: list[Found] = []
  for case in cases:
    each = estimate(case)
    if isinstance(each, str):
      return each
    found.append(each)
  partial, full = found[0], found[-1]
  if partial.bundles != full.bundles:  # never one kind beside the other
    return "simulated for one kind of block alone"
  mark = "~" if partial.bundles else ""
  return {
    n: {f"{mark}{k}": x for k, x in total(full, partial, n, sizes).items()}
    for n in lengths
  }


def least(tries: Sequence[Mapping[str, float]]) -> float | None:
  """Returns the least sum, the forward pass and the backward one apart."""
  forward = [sum(x for k, x in t.items() if "forward" in k) for t in tries]
  both = [sum(t.values()) for t in tries]
  backward = [b - f for b, f in zip(both, forward, strict=True)]
  return min(forward) + min(backward) if tries else None


def sizes(text: str) -> list[list[int]]:
  """Reads an argument, "512x512,1024x512" or "2048,32768"."""
  return [[int(n) for n in one.split("x")] for one in text.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
  """Prints figures of each size, and the ratio of the best."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--chips", default=",".join(CHIPS))
  parser.add_argument("--lengths", type=sizes, default="2048,32768")
  parser.add_argument("--head-dim", type=int, default=128)
  parser.add_argument("--ours", type=sizes, default=OURS)
  parser.add_argument("--splash", type=sizes, default=SPLASH)
  parser.add_argument("--one", help=argparse.SUPPRESS)
  args = parser.parse_args(argv)
  if args.one:
    compile_one(Case(*json.loads(args.one)))
    return 0
  tpu_compiler.libtpu(parser)
  lengths = [n for (n,) in args.lengths]
  for chip in names(parser, "--chips", args.chips, CHIPS):
    tries: dict[tuple[str, int, bool], list[Mapping[str, float]]] = {}
    for name in ("ours", "splash"):
      for tried in getattr(args, name):
        found = figures(chip, name, tried, lengths, args.head_dim)
        label = f"{chip:6} {name:7} {'x'.join(map(str, tried))}"
        if isinstance(found, str):
          print(f"{label}: {found}", flush=True)
          continue
        for n, each in found.items():
          said = ", ".join(f"{k} {x:.0f}" for k, x in each.items())
          print(f"{label} at {n}: {said}", flush=True)
          counts = any(k.startswith("~") for k in each)
          tries.setdefault((name, n, counts), []).append(each)
    for n in lengths:
      for counts in (False, True):
        ours = least(tries.get(("ours", n, counts), []))
        other = least(tries.get(("splash", n, counts), []))
        if ours and other:
          kind = "~" if counts else ""
          print(
            f"{chip:6} causal {n}, forward and backward: ours {kind}{ours:.0f},"
            f" splash {kind}{other:.0f}, ratio {ours / other:.2f}",
            flush=True,
          )
  return 0


if __name__ == "__main__":
  sys.exit(main())
