"""Estimates what attention costs on a TPU that is not there, in cycles a head.

  pip install --no-deps --target /tmp/libtpu libtpu==0.0.42.1  # of jax 0.10.2
  PYTHONPATH=/tmp/libtpu python tools/kernel_cycles.py --chips v5e --shapes vit
  PYTHONPATH=/tmp/libtpu python tools/kernel_cycles.py --backward --shapes vit,so400m

The TPU compiler simulates each operation of the program that it compiles; the
figure is the sum of all of them, layout changes included, over batch and heads.
Nothing is executed: good for ranking variants of one kind, and a gap below 30 %
is no finding ("How to scale your model"'s matrix products came out within 28 %
of their estimates on v5e). "ideal" is the matrix products alone at the chip's
peak. A contestant is one process, for the simulator may abort it; what it wrote
until then is of no use, and the table says so.

What is rejected, with the reason in place of a figure:
- more products a cycle than the chip has: the simulator skips work whose amount
  is read from a table (flash and splash over sparse masks);
- a kernel that reads its steps from a table, over a causal mask, for the same
  reason, even where the figure looks possible;
- no estimate of the kernel itself.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple


class Shape(NamedTuple):
  """B rows of T queries and S keys, N heads over K key heads of H.

  mask: "", or one of DALL-E's, "row", "column" or "conv", which are causal.
  """

  batch: int
  queries: int
  keys: int
  heads: int
  kv_heads: int
  head_dim: int
  causal: bool = False
  mask: str = ""


class Chip(NamedTuple):
  """A topology of compile-only devices, and its peak in bfloat16.

  peak: floating point operations a cycle of one core, from the published
  FLOP/s over the clock (v5e 197 T at 1.5 GHz, v5p 459 T at 1.75, v6e 918 T at
  1.75; tpu7x 2,307 T for two cores at 2.2, clocks assumed).
  """

  topology: str
  peak: float


SHAPES = {
  "vit": Shape(4, 197, 197, 12, 12, 64),
  "clip": Shape(4, 257, 257, 16, 16, 64),
  "so400m": Shape(1, 729, 729, 4, 4, 72),
  "whisper": Shape(1, 1500, 1500, 4, 4, 64),
  "paligemma": Shape(1, 384, 384, 8, 1, 256),
  "gpt3": Shape(1, 2048, 2048, 4, 4, 128, True),
  "dalle": Shape(1, 1280, 1280, 4, 4, 64, True),
  "dalle_row": Shape(1, 1280, 1280, 4, 4, 64, True, "row"),
  "dalle_column": Shape(1, 1280, 1280, 4, 4, 64, True, "column"),
  "dalle_conv": Shape(1, 1280, 1280, 4, 4, 64, True, "conv"),
}
CHIPS = {
  "v5e": Chip("v5e:2x2", 131_000),
  "v5p": Chip("v5p:2x2x1", 262_000),
  "v6e": Chip("v6e:2x2", 525_000),
  "tpu7x": Chip("tpu7x:2x2x1", 524_000),
}
CONTESTANTS = ("ours", "xla", "flash", "splash")
TABLES = ("attention_flash", "splash")  # parts of names of kernels
ENVIRONMENT = dict(
  ALLOW_MULTIPLE_LIBTPU_LOAD="1",
  TPU_SKIP_MDS_QUERY="1",
  TPU_ACCELERATOR_TYPE="v5litepod-16",
  TPU_WORKER_HOSTNAMES="localhost",
  JAX_PLATFORMS="cpu",
)


# Of the pairs that DALL-E's masks let see each other: part of all 1280 x 1280.
DENSITIES = {"row": 0.200, "column": 0.190, "conv": 0.215}


def flops(shape: Shape, backward: bool) -> float:
  """Returns the operations of the products: 2 forward, and 5 backward."""
  one = 2.0 * shape.batch * shape.heads * shape.queries * shape.keys
  one *= shape.head_dim
  one *= DENSITIES.get(shape.mask, 0.5 if shape.causal else 1.0)
  return one * (7 if backward else 2)


def _mask(shape: Shape) -> Any:
  from mmjax.ops import masks

  grid = (256, 32, 32)
  if shape.mask == "conv":
    return masks.Conv(*grid, 11)
  if shape.mask:
    return {"row": masks.Row, "column": masks.Column}[shape.mask](*grid)
  return masks.Causal() if shape.causal else None


def contestant(name: str, shape: Shape) -> Any:
  """Returns a function of q, k and v, each [B N S H]."""
  import jax
  import jax.numpy as jnp

  from mmjax.ops.kernels import reference, tpu

  if shape.mask and name not in ("ours", "xla"):
    raise SystemExit(f"{name} has no mask {shape.mask!r}")
  scale = shape.head_dim**-0.5
  pad = -shape.keys % (128 if shape.keys < 512 else 512)
  padded = [(0, 0), (0, 0), (0, pad), (0, 0)]

  if name in ("ours", "xla"):
    attend = {"ours": tpu.attend, "xla": reference.attend}[name]
    keywords: dict[str, Any] = dict(
      mask=_mask(shape),
      bias=None,
      scale=scale,
      softcap=None,
      dropout_rate=0.0,
      dropout_seeds=None,
    )

    def run(q, k, v):
      q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
      return attend(q, k, v, **keywords).swapaxes(1, 2)

    return run
  if name == "flash":
    from jax.experimental.pallas.ops.tpu import flash_attention as module

    block = min(512, shape.keys + pad)
    sizes = module.BlockSizes(
      block_b=1, **dict.fromkeys(_blocks(module), block)
    )

    def run_flash(q, k, v):
      q, k, v = (jnp.pad(x, padded) for x in (q, k, v))
      k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], 1) for x in (k, v))
      real = jnp.arange(q.shape[2])[None] < shape.keys
      ids = jnp.broadcast_to(real.astype(jnp.int32), (len(q), q.shape[2]))
      out = module.flash_attention(
        q,
        k,
        v,
        segment_ids=module.SegmentIds(ids, ids) if pad else None,
        causal=shape.causal,
        sm_scale=scale,
        block_sizes=sizes,
      )
      return out[:, :, : shape.queries]

    return run_flash
  if name == "splash":
    from jax.experimental.pallas.ops.tpu import splash_attention as module

    T, N = shape.queries + pad, shape.heads
    sizes: Any = dict.fromkeys(_blocks(module), min(512, T))
    kind = module.CausalMask if shape.causal else module.FullMask
    kernel = module.make_splash_mha(
      module.MultiHeadMask([kind((T, T))] * N),
      block_sizes=module.BlockSizes(**sizes),
      head_shards=1,
      q_seq_shards=1,
    )

    def run_splash(q, k, v):
      q, k, v = (jnp.pad(x, padded) for x in (q * scale, k, v))
      k, v = (jnp.repeat(x, N // x.shape[1], 1) for x in (k, v))
      real = (jnp.arange(T) < shape.keys).astype(jnp.int32)
      ids = module.SegmentIds(real, real) if pad else None
      out: Any = jax.vmap(lambda *a: kernel(*a, segment_ids=ids))(q, k, v)
      return out[:, :, : shape.queries]

    return run_splash
  raise SystemExit(f"no contestant {name}; known: {', '.join(CONTESTANTS)}")


def _blocks(module: Any) -> list[str]:
  fields = [f for f in module.BlockSizes.__dataclass_fields__ if f != "block_b"]
  return [f for f in fields if f.startswith("block_")]


def compile_one(chip: str, name: str, shape: Shape, backward: bool) -> None:
  """Compiles a contestant for the chip; the compiler writes its estimates."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from jax.experimental import topologies
  from jax.experimental.layout import Format, Layout
  from jax.sharding import Mesh, NamedSharding, PartitionSpec

  device = topologies.get_topology_desc(
    platform="tpu", topology_name=CHIPS[chip].topology
  ).devices[0]
  mesh = Mesh(np.array([device]), ("x",))
  # Else XLA would choose other layouts for the arguments, and copy.
  place = Format(Layout((0, 1, 2, 3)), NamedSharding(mesh, PartitionSpec()))
  sizes = (shape.queries, shape.heads), (shape.keys, shape.kv_heads)
  q, k = (
    jax.ShapeDtypeStruct(
      (shape.batch, heads, length, shape.head_dim), jnp.bfloat16
    )
    for length, heads in sizes
  )
  f = contestant(name, shape)
  program = f
  arguments = [q, k, k]
  if backward:
    arguments.append(q)

    def program(q, k, v, g):
      out, back = jax.vjp(f, q, k, v)
      return out, back(g)

  with jax.set_mesh(mesh):
    jax.jit(program, in_shardings=place, out_shardings=place).lower(
      *arguments
    ).compile()


def estimate(
  chip: str, name: str, shape: Shape, backward: bool
) -> tuple[float | None, str]:
  """Returns cycles a head, or None, and a note."""
  with tempfile.TemporaryDirectory() as folder:
    case = json.dumps([chip, name, list(shape), backward])
    env = {
      **os.environ,
      **ENVIRONMENT,
      "LIBTPU_INIT_ARGS": f"--xla_jf_dump_static_llo_profile_to={folder}",
    }
    done = subprocess.run(
      [sys.executable, __file__, "--one", case],
      env=env,
      capture_output=True,
      text=True,
    )
    found = parse(pathlib.Path(folder))
  if done.returncode:
    said = re.findall(
      r"^.*(?:Error|CHECK|Unsupported|FIFO).*$", done.stderr, re.MULTILINE
    )
    return None, f"aborted: {said[-1][:100] if said else 'no reason given'}"
  return judge(found, CHIPS[chip], shape, backward)


def parse(folder: pathlib.Path) -> dict[str, int]:
  """Returns the cycles of each operation that the compiler wrote down."""
  found: dict[str, int] = {}
  for path in folder.glob("*_static_llo_profile.textproto"):
    text = path.read_text(errors="replace")
    name = path.name.removesuffix("_static_llo_profile.textproto")
    cycles = _field(text, "estimated_cycles")
    found[name] = cycles * _field(text, "num_equivalent_hlos")
  return found


def _field(text: str, name: str) -> int:
  match = re.search(rf"^\s*{name}: (-?\d+)", text, re.MULTILINE)
  return int(match[1]) if match else 0


def judge(
  found: dict[str, int], chip: Chip, shape: Shape, backward: bool
) -> tuple[float | None, str]:
  """Returns cycles a head, or None and why the figure is none."""
  total = sum(found.values())
  if total <= 0 or min(found.values()) < 0:
    return None, "no estimate"
  tables = [n for n in found if any(t in n for t in TABLES)]
  if tables and shape.causal:
    return None, f"{tables[0]} reads its steps from a table: not simulated"
  if flops(shape, backward) / total > chip.peak:
    return None, "impossible: above the peak of the chip"
  return total / shape.batch / shape.heads, f"{len(found)} operations"


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--chips", default=",".join(CHIPS))
  parser.add_argument("--shapes", default=",".join(SHAPES))
  parser.add_argument("--contestants", default=",".join(CONTESTANTS))
  parser.add_argument("--backward", action="store_true", help="and forward")
  parser.add_argument("--one", help=argparse.SUPPRESS)
  args = parser.parse_args(argv)
  if args.one:
    chip, name, shape, backward = json.loads(args.one)
    compile_one(chip, name, Shape(*shape), backward)
    return 0
  for word, given, known in (
    ("--chips", args.chips, CHIPS),
    ("--shapes", args.shapes, SHAPES),
    ("--contestants", args.contestants, CONTESTANTS),
  ):
    for name in given.split(","):
      if name not in known:
        parser.error(
          f"{word} = {name!r}: no such name; known: {', '.join(known)}"
        )
  print(
    f"{'chip':6} {'shape':12} {'contestant':10} {'cycles a head':>13}  note"
  )
  for chip in args.chips.split(","):
    for key in args.shapes.split(","):
      shape = SHAPES[key]
      heads = shape.batch * shape.heads
      ideal = flops(shape, args.backward) / CHIPS[chip].peak / heads
      print(f"{chip:6} {key:12} {'ideal':10} {ideal:13.0f}", flush=True)
      for name in args.contestants.split(","):
        cycles, note = estimate(chip, name, shape, args.backward)
        figure = "-" if cycles is None else f"{cycles:.0f}"
        print(f"{chip:6} {key:12} {name:10} {figure:>13}  {note}", flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
