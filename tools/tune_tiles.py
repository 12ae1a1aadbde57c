"""Chooses the tiles of the TPU attention kernels by the compiler's estimates.

  PYTHONPATH=/tmp/libtpu python tools/tune_tiles.py --chips v6e --shapes vit
  PYTHONPATH=/tmp/libtpu python tools/tune_tiles.py --dry --shapes whisper

Compiles candidates for a chip that is not there, each in a process of its own
(see tools/kernel_cycles.py, whose guards hold here too), and writes the best of
them into the table of `mmjax/ops/kernels/tiles.py`, forward and backward apart,
each entry with where it comes from: "static, ...". Entries that say "measured
on ..." are left as they are. Where the simulator aborts, candidates are ranked
by their instruction bundles; the two kinds of figure are never compared.

A chip and shape of a few hundred tokens take about two minutes of one core.
"""

import argparse
import itertools
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import kernel_cycles
import tpu_compiler
from attention_contestants import SHAPES, Shape
from kernel_cycles import Case
from tpu_compiler import CHIPS

from mmjax.ops.kernels import tiles
from mmjax.ops.kernels.tiles import Entry, Flash, Key, Whole

FILE = pathlib.Path(tiles.__file__)
FIRST = "# Written by tools/tune_tiles.py from here\n"
LAST = "# to here.\n"


class Try(NamedTuple):
  """A candidate's figures.

  tiles: of the candidate.
  cycles: a head, of each kernel by its name in a `Key`.
  kind: "cycles", or "bundles" where the simulator aborted.
  """

  tiles: Whole | Flash
  cycles: Mapping[str, float]
  kind: str


def candidates(shape: Shape) -> list[Whole | Flash]:
  """Returns the tiles that are worth a try for a shape."""
  longest = max(shape.queries, shape.keys)
  if longest > tiles.LONGEST:
    sizes = (512, 1024, 2048)
    return [Flash(*pair) for pair in itertools.product(sizes, sizes)]
  rows = [max(tiles.LANES, tiles.bucket(shape.queries))]  # all
  rows += [n for n in (256, 384, 512) if n < shape.queries and longest > 384]
  groups = shape.heads // shape.kv_heads
  found = []
  share = kernel_cycles.sharing(shape)
  # More would take minutes to compile where there are many tokens.
  side_by_side = {share, 1, 2, 4, 8, *((12, 16) if longest <= 384 else ())}
  for unroll, n in itertools.product(sorted(side_by_side), rows):
    if unroll % share or shape.heads % unroll:
      continue
    if unroll == share or unroll * n * longest <= 2**22:
      many = max(1, unroll // groups)
      found += [
        Whole(1, many, min(unroll, groups), n, unroll, block_k)
        for block_k in ((0, 256) if longest > 384 else (0,))
      ]
  return found


def measure(chip: str, shape: Shape, tried: Whole | Flash) -> Try | str:
  """Estimates a candidate, forward and backward; or says why it cannot."""
  if isinstance(tried, Whole):
    fields = [tried.batch, tried.kv_heads, tried.groups]
    fields += [tried.rows, tried.unroll, tried.block_k]
  else:
    fields = [tried.block_q, tried.block_k]
  case = Case(chip, "ours", shape, True, model=True, tiles=[fields])
  found, why = kernel_cycles.simulate(case)
  if not why:
    figure, note = kernel_cycles.judge(found, case)
    heads = shape.batch * shape.heads
    each = {name: cycles / heads for name, cycles in found.items()}
    return note if figure is None else Try(tried, by_kernel(each), "cycles")
  bundles = kernel_cycles.count(case)
  return Try(tried, by_kernel(bundles), "bundles") if bundles else why


def by_kernel(found: Mapping[str, float]) -> dict[str, float]:
  """Sums operations by the kernel of a `Key`; leaves out what is none."""
  sums: dict[str, float] = {}
  for name, figure in found.items():
    if "attention_whole" in name:
      kernel = "whole_backward" if "backward" in name else "whole"
    elif "attention_flash" in name:
      kernel = "flash"
    else:
      continue
    sums[kernel] = sums.get(kernel, 0.0) + figure
  return sums


def best(
  chip: str, name: str, shape: Shape, tries: Sequence[Try], version: str
) -> dict[Key, Entry]:
  """Returns the entries of a chip and shape: the least of each kernel.

  Args:
    chip, name, shape: what was tuned.
    tries: of the candidates.
    version: of the compiler.
  """
  # Cycles know of waiting and bundles do not: one kind, the better one.
  kind = min((t.kind for t in tries), key=("cycles", "bundles").index)
  found = {}
  for kernel in sorted({x for t in tries for x in t.cycles}):
    of_kind = [t for t in tries if t.kind == kind and kernel in t.cycles]
    if not of_kind:
      continue
    won = min(of_kind, key=lambda t: t.cycles[kernel])
    key = Key(
      chip,
      kernel,
      tiles.bucket(shape.keys),
      shape.head_dim,
      "static" if shape.causal else "none",
      "bfloat16",
    )
    figure = f"{won.cycles[kernel]:.0f} {kind} a head of {name}"
    found[key] = Entry(won.tiles, f"static, libtpu {version}: {figure}")
  return found


def merge(
  table: Mapping[Key, Entry], found: Mapping[Key, Entry]
) -> dict[Key, Entry]:
  """Returns the table with what was found; what was measured stays."""
  merged = dict(table)
  for key, entry in found.items():
    old = merged.get(key)
    if old is None or not old.provenance.startswith("measured"):
      merged[key] = entry
  return merged


def written(text: str, table: Mapping[Key, Entry]) -> str:
  """Returns the source of tiles.py with another table.

  Raises:
    ValueError: the marks around the table are not there.
  """
  if text.count(FIRST) != 1 or text.count(LAST) != 1:
    raise ValueError(f"no {FIRST!r} ... {LAST!r} to write between")
  lines = ["TABLE: dict[Key, Entry] = {\n"]
  for key, (tried, provenance) in sorted(table.items()):
    names = ", ".join(f'"{x}"' if isinstance(x, str) else f"{x}" for x in key)
    values = ", ".join(str(x) for x in vars(tried).values() if x is not None)
    lines.append(f"  Key({names}): Entry(\n")
    lines.append(f"    {type(tried).__name__}({values}),\n")
    lines.append(f'    "{provenance}",\n  ),\n')
  lines.append("}\n")
  before, rest = text.split(FIRST)
  return before + FIRST + "".join(lines) + LAST + rest.split(LAST)[1]


def main(argv: Sequence[str] | None = None) -> int:
  """Tunes, prints what was tried, writes the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--chips", default=",".join(CHIPS))
  parser.add_argument("--shapes", default="vit,clip,so400m,whisper")
  parser.add_argument("--dry", action="store_true", help="write nothing")
  args = parser.parse_args(argv)
  chips = kernel_cycles.names(parser, "--chips", args.chips, CHIPS)
  shapes = kernel_cycles.names(parser, "--shapes", args.shapes, SHAPES)
  version = tpu_compiler.libtpu(parser)
  table = dict(tiles.TABLE)
  for name, chip in itertools.product(shapes, chips):
    tries = []
    for tried in candidates(SHAPES[name]):
      found = measure(chip, SHAPES[name], tried)
      figures: str | Try = found
      if isinstance(found, Try):
        tries.append(found)
        figures = ", ".join(f"{k} {n:.0f}" for k, n in found.cycles.items())
        figures += f" {found.kind} a head"
      print(f"{chip:6} {name:8} {_short(tried)}: {figures}", flush=True)
    if not tries:
      print(f"{chip:6} {name:8} nothing to choose from: the rule stays")
      continue
    table = merge(table, best(chip, name, SHAPES[name], tries, version))
    if not args.dry:
      FILE.write_text(written(FILE.read_text(), table))
  return 0


def _short(tried: Whole | Flash) -> str:
  """Names tiles without their default of a backward pass."""
  return re.sub(r", backward=None", "", str(tried))


if __name__ == "__main__":
  sys.exit(main())
