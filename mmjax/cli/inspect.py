"""`mmjax inspect`: where every leaf of the state lives, and its bytes."""

import argparse
import dataclasses
import math
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmjax.cli import config as configs

if TYPE_CHECKING:
  from mmjax.train.setup import Run

HEAD = ("leaf", "axes", "spec", "shape", "dtype", "bytes/device", "replicated")


@dataclasses.dataclass(frozen=True)
class Row:
  """One leaf of the state.

  Attributes:
    name: path, "params/image/embedding/kernel".
    axes: logical names of its axes; () if it has none.
    spec: mesh axes of each dimension, () where it is not split. Mesh axes of
      size 1 are left out.
    shape: of the whole leaf.
    dtype: name.
    per_device: bytes on one device.
    replicated: those of them that an even split over all devices would save.
  """

  name: str
  axes: tuple[str | None, ...]
  spec: tuple[tuple[str, ...], ...]
  shape: tuple[int, ...]
  dtype: str
  per_device: int
  replicated: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of the command."""
  configs.add_arguments(parser)
  parser.add_argument(
    "--devices",
    type=int,
    help="pretend to have so many devices (CPU), to see another mesh",
  )
  parser.add_argument(
    "--all",
    action="store_true",
    help="also the optimizer and the rest of the state, leaf by leaf",
  )


def run(args: argparse.Namespace) -> int:
  """Prints the table of `args.config`; nothing is allocated on a device.

  Raises:
    InputError: the config cannot be set up.
  """
  config = configs.load(args.config, args.overrides)
  # JAX is imported here, after the config stands.
  import jax

  if args.devices:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.devices)
  from mmjax.train import setup

  ready = setup.setup(config)
  rows = table(ready)
  width = shutil.get_terminal_size((160, 24)).columns
  shown = [r for r in rows if args.all or r.name.startswith("params/")]
  print("\n".join(lines(shown, None if not sys.stdout.isatty() else width)))
  print()
  print(f"mesh      {_mesh(ready)}")
  for part, members in _parts(rows).items():
    print(f"{part:<9} {_total(members)}")
  print(f"{'total':<9} {_total(rows)}")
  return 0


def table(ready: "Run") -> list[Row]:
  """Returns one row per leaf of the state of a run, in tree order."""
  from mmjax import tree
  from mmjax.train import state as states

  state, layout = ready.state_shapes, ready.layout
  shapes = {name: x.shape for name, x in tree.items(state.params)}
  axes = _axes(ready.axes)
  rows = []
  for name, leaf in tree.items(state):
    found = states.owner(name, leaf.shape, shapes)
    names = ()
    if found and name.split("/")[0] in ("params", "opt", "ema"):
      param, dims = found
      own = axes.get(param, ())
      names = tuple(own[i] for i in dims) if own else ()
    size = math.prod(leaf.shape) * leaf.dtype.itemsize
    local = leaf.sharding.shard_shape(leaf.shape)
    per_device = math.prod(local) * leaf.dtype.itemsize
    even = -(-size // layout.mesh.size)
    rows.append(
      Row(
        name=name,
        axes=names,
        spec=_spec(leaf.sharding.spec, len(leaf.shape), layout.mesh.shape),
        shape=tuple(leaf.shape),
        dtype=str(leaf.dtype),
        per_device=per_device,
        replicated=per_device - even,
      )
    )
  return rows


def lines(rows: Sequence[Row], width: int | None = None) -> list[str]:
  """Returns the table as text, columns aligned, cut to `width` if given."""
  cells = [HEAD, *(_cells(row) for row in rows)]
  widths = [max(len(c[i]) for c in cells) for i in range(len(HEAD))]
  numbers = len(HEAD) - 2
  out = []
  for cell in cells:
    parts = [
      text.rjust(w) if i >= numbers else text.ljust(w)
      for i, (text, w) in enumerate(zip(cell, widths, strict=True))
    ]
    out.append("  ".join(parts).rstrip()[:width])
  return out


def _cells(row: Row) -> tuple[str, ...]:
  return (
    row.name,
    " ".join(str(a or "-") for a in row.axes) or "-",
    " ".join("+".join(part) or "-" for part in row.spec) or "-",
    "x".join(map(str, row.shape)) or "1",
    row.dtype,
    f"{row.per_device:,}",
    f"{row.replicated:,}",
  )


def _axes(tree_of_names: Any, prefix: str = "") -> dict[str, tuple[Any, ...]]:
  if isinstance(tree_of_names, tuple):
    return {prefix.removesuffix("/"): tree_of_names}
  found = {}
  for key, value in tree_of_names.items():
    found |= _axes(value, f"{prefix}{key}/")
  return found


def _spec(spec: Any, ndim: int, sizes: Any) -> tuple[tuple[str, ...], ...]:
  parts = [*spec, *[None] * (ndim - len(spec))]
  tuples = [(p,) if isinstance(p, str) else tuple(p or ()) for p in parts]
  return tuple(tuple(a for a in p if sizes[a] > 1) for p in tuples)


def _parts(rows: Sequence[Row]) -> dict[str, list[Row]]:
  found: dict[str, list[Row]] = {}
  for row in rows:
    found.setdefault(row.name.split("/")[0], []).append(row)
  return found


def _total(rows: Sequence[Row]) -> str:
  elements = sum(math.prod(row.shape) for row in rows)
  return (
    f"{elements:>15,} elements  {sum(r.per_device for r in rows):>15,} bytes "
    f"a device, {sum(r.replicated for r in rows):,} of them replicated"
  )


def _mesh(ready: "Run") -> str:
  shape = ready.layout.mesh.shape
  text = " x ".join(f"{n}={size}" for n, size in shape.items() if size > 1)
  return f"{text or 'one device'} ({ready.layout.mesh.size} devices)"
