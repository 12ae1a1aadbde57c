"""Estimates what attention costs on a TPU that is not there, in cycles a head.

  pip install --no-deps --target /tmp/libtpu libtpu==0.0.42.1  # of jax 0.10.2
  PYTHONPATH=/tmp/libtpu python tools/kernel_cycles.py --chips v5e --shapes vit
  PYTHONPATH=/tmp/libtpu python tools/kernel_cycles.py --backward --shapes vit,so400m

The TPU compiler simulates each operation of the program that it compiles; the
figure is the sum of all of them over batch and heads. "heads first" is from
[B N T H] to [B N T H], "as a model" from and to the [B T N*H] of a projection:
with the changes of layout that either takes. In-tree kernels read the former,
ours the latter where heads fill tiles of lanes.
Nothing is executed: good for ranking variants of one kind, and a gap below 30 %
is no finding ("How to scale your model"'s matrix products came out within 28 %
of their estimates on v5e). "ideal" is the matrix products alone at the chip's
peak. A contestant is one process, for the simulator may abort it; what it wrote
until then is of no use, and the table says so.

Rejected, with the reason in place of a figure:
- more products a cycle than the chip has: the simulator skips work whose amount
  is read from a table (flash and splash over sparse masks);
- a kernel that reads its steps from a table, over a causal mask, likewise;
- no estimate of the kernel itself.

Where the simulator aborts on ours, as it does on v5e, the figure is marked "~"
and counts the instruction bundles of our kernels, a bundle a cycle: code that
is laid out once, over the heads in it. It knows no waiting for memory. With
--bundles that of in-tree flash is counted too, all its code for each block, so
that both figures are of one kind: "~" goes beside "~" and nothing else.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import tpu_compiler
from attention_contestants import (
  CONTESTANTS,
  SHAPES,
  Shape,
  contestant,
  flops,
  mask_of,
  steps_of_flash,
)
from tpu_compiler import CHIPS


class Case(NamedTuple):
  """What one process compiles.

  name: of the contestant.
  model: whether arrays are [B T N*H], not [B N T H].
  tiles: of ours, (forward, backward) as fields of `tiles.Whole` or `Flash`, or
    None for what it would take.
  """

  chip: str
  name: str
  shape: Shape
  backward: bool
  model: bool = False
  tiles: Any = None


TABLES = ("attention_flash", "splash")  # parts of names of kernels


def chosen(case: Case) -> Any:
  """Returns the tiles of ours: those of the case, or what the chip would take.

  A process that compiles for a chip says its name, so that the table is asked.
  """
  from mmjax.ops.kernels import tiles, tpu

  if case.tiles is not None:
    first, *rest = case.tiles
    if len(first) == 2:
      return tiles.Flash(*first)
    back = tiles.Whole(*rest[0]) if rest else None
    return tiles.Whole(*first, backward=back)
  shape = case.shape
  keys = (shape.batch, shape.keys, shape.kv_heads, shape.head_dim)
  return tpu.choose(
    (shape.batch, shape.queries, shape.heads, shape.head_dim),
    keys,
    keys,
    "bfloat16",
    mask=mask_of(shape),
    chip=case.chip,
  )


def compile_one(case: Case) -> None:
  """Compiles a contestant for the chip; the compiler writes its estimates."""
  import jax
  import jax.numpy as jnp

  shape = case.shape
  sizes = (shape.queries, shape.heads), (shape.keys, shape.kv_heads)
  q, k = (
    jax.ShapeDtypeStruct(
      (shape.batch, length, heads * shape.head_dim)
      if case.model
      else (shape.batch, heads, length, shape.head_dim),
      jnp.bfloat16,
    )
    for length, heads in sizes
  )
  tiles = None
  if case.name == "ours":
    tiles = chosen(case)
    print("straight", json.dumps(straight(tiles, shape)), flush=True)
  inner = contestant(case.name, shape, tiles)

  def f(q, k, v):
    if not case.model:
      return inner(q, k, v)
    split = (
      x.reshape(*x.shape[:2], -1, shape.head_dim).swapaxes(1, 2)
      for x in (q, k, v)
    )
    return inner(*split).swapaxes(1, 2).reshape(q.shape)

  def both(q, k, v, g):
    out, back = jax.vjp(f, q, k, v)
    return out, back(g)

  program, arguments = (both, [q, k, k, q]) if case.backward else (f, [q, k, k])
  tpu_compiler.compile_for(case.chip, program, arguments)


def straight(tiles: Any, shape: Shape) -> list[int]:
  """Returns how many heads the bundles of (forward, backward) are for."""
  from mmjax.ops.kernels.tiles import Whole

  if not isinstance(tiles, Whole):
    return [0, 0]
  many = shape.heads // shape.kv_heads
  share = sharing(shape)
  return [laid(tiles, share), laid(tiles.backward or tiles, share, many > 1)]


def sharing(shape: Shape) -> int:
  """Returns how many heads of ours share a tile of lanes."""
  from mmjax.ops.kernels import tiles, tpu

  q = (shape.batch, shape.queries, shape.heads, shape.head_dim)
  k = (shape.batch, shape.keys, shape.kv_heads, shape.head_dim)
  return tiles.sharing(shape.head_dim) if tpu.packs(q, k, k) else 1


def laid(tiles: Any, share: int = 1, in_turn: bool = False) -> int:
  """Returns the heads whose code is laid out: loops hold the others.

  Args:
    tiles: of a pass.
    share: heads that share a tile of lanes.
    in_turn: whether it goes through the query heads of one key head at a time.
  """
  if in_turn:
    return _straight(tiles.groups, tiles.unroll)
  if tiles.kv_heads % share:
    share = 1  # these are laid with heads first
  count = tiles.kv_heads // share
  side = max(1, tiles.unroll // share // tiles.groups)
  if side >= count:
    found = _straight(tiles.batch, side // count) * count
  else:
    found = _straight(tiles.batch * count, side)
  return found * share * tiles.groups


def _straight(count: int, unroll: int) -> int:
  unroll = min(unroll, count)
  return count if count // unroll == 1 else unroll + count % unroll


def simulate(case: Case) -> tuple[dict[str, int], str]:
  """Returns the cycles of each operation, and why there are none, or ""."""
  found, done = tpu_compiler.compile_apart(
    case, tpu_compiler.SIMULATE, tpu_compiler.parse, __file__
  )
  if done.returncode:
    return {}, tpu_compiler.reason(done)
  return found, ""


def count(case: Case) -> dict[str, float]:
  """Returns bundles a head of the kernels of ours, or of flash."""
  ours = case.name == "ours"
  found, done = tpu_compiler.compile_apart(
    case,
    tpu_compiler.DUMP,
    lambda folder: tpu_compiler.bundles(
      folder, "attention_whole" if ours else "flash_"
    ),
    __file__,
  )
  if done.returncode:
    return {}
  if not ours:
    return {name: n * steps_of_flash(case.shape) for name, n in found.items()}
  said = re.search(r"^straight (.*)$", done.stdout, re.MULTILINE)
  heads = json.loads(said[1]) if said else [0]
  if not all(heads):
    return {}
  return {name: n / heads["backward" in name] for name, n in found.items()}


def estimate(case: Case, only: bool = False) -> tuple[float | None, str]:
  """Returns cycles a head, or None, and a note.

  Args:
    case: what to compile.
    only: count bundles, of ours and flash.
  """
  if only and case.name not in ("ours", "flash"):
    return None, "not counted"
  found, why = ({}, "not counted") if only else simulate(case)
  if why and (only or case.name == "ours"):
    per_head = count(case)
    if per_head:
      total = sum(per_head.values()) * case.shape.batch * case.shape.heads
      figure, note = judge({"bundles": round(total)}, case)
      return figure, f"~ bundles, no waiting; {note}"
  return (None, why) if why else judge(found, case)


def judge(found: dict[str, int], case: Case) -> tuple[float | None, str]:
  """Returns cycles a head, or None and why the figure is none."""
  shape = case.shape
  total = sum(found.values())
  if total <= 0 or min(found.values()) < 0:
    return None, "no estimate"
  tables = [n for n in found if any(t in n for t in TABLES)]
  if tables and shape.causal:
    return None, f"{tables[0]} reads its steps from a table: not simulated"
  if flops(shape, case.backward) / total > CHIPS[case.chip].peak:
    return None, "impossible: above the peak of the chip"
  return total / shape.batch / shape.heads, f"{len(found)} operations"


def _row(chip: str, shape: str, name: str, *both: Any) -> str:
  """Returns a line of the table, of two (figure, note)."""
  figures = ["-" if cycles is None else f"{cycles:.0f}" for cycles, _ in both]
  notes = " | ".join(dict.fromkeys(note for _, note in both))
  return (
    f"{chip:6} {shape:12} {name:10} {figures[0]:>11} {figures[1]:>10}  {notes}"
  )


def names(
  parser: argparse.ArgumentParser, word: str, given: str, known: Iterable[str]
) -> list[str]:
  """Returns the names of an argument; ends with an error at an unknown one."""
  found = given.split(",")
  for name in found:
    if name not in known:
      parser.error(f"{word} = {name!r}: known are {', '.join(known)}")
  return found


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--chips", default=",".join(CHIPS))
  parser.add_argument("--shapes", default=",".join(SHAPES))
  parser.add_argument("--contestants", default=",".join(CONTESTANTS))
  parser.add_argument("--backward", action="store_true", help="and forward")
  parser.add_argument("--bundles", action="store_true", help="and no cycles")
  parser.add_argument("--one", help=argparse.SUPPRESS)
  args = parser.parse_args(argv)
  if args.one:
    chip, name, shape, *rest = json.loads(args.one)
    compile_one(Case(chip, name, Shape(*shape), *rest))
    return 0
  tpu_compiler.libtpu(parser)
  chips = names(parser, "--chips", args.chips, CHIPS)
  shapes = names(parser, "--shapes", args.shapes, SHAPES)
  contestants = names(parser, "--contestants", args.contestants, CONTESTANTS)
  print(
    f"{'chip':6} {'shape':12} {'contestant':10} {'heads first':>11} "
    f"{'as a model':>10}  note"
  )
  for chip in chips:
    for key in shapes:
      shape = SHAPES[key]
      heads = shape.batch * shape.heads
      ideal = flops(shape, args.backward) / CHIPS[chip].peak / heads
      print(_row(chip, key, "ideal", (ideal, ""), (ideal, "")), flush=True)
      for name in contestants:
        first = Case(chip, name, shape, args.backward)
        both = [
          estimate(case, args.bundles)
          for case in (first, first._replace(model=True))
        ]
        print(_row(chip, key, name, *both), flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
