"""What the TPU compiler says of a program for a chip that is not there.

  pip install --no-deps --target /tmp/libtpu libtpu==0.0.42.1  # of jax 0.10.2

A program is compiled in a process of its own, for the simulator may abort it,
and flags of the compiler hold for a process. Nothing is executed.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple


class Chip(NamedTuple):
  """A topology of compile-only devices, and its peak in bfloat16.

  peak: floating point operations a cycle of one core, from the published
  FLOP/s over the clock (v5e 197 T at 1.5 GHz, v5p 459 T at 1.75, v6e 918 T at
  1.75; tpu7x 2,307 T for two cores at 2.2, clocks assumed).
  """

  topology: str
  peak: float


CHIPS = {
  "v5e": Chip("v5e:2x2", 131_000),
  "v5p": Chip("v5p:2x2x1", 262_000),
  "v6e": Chip("v6e:2x2", 525_000),
  "tpu7x": Chip("tpu7x:2x2x1", 524_000),
}
INSTALL = "pip install --no-deps --target /tmp/libtpu libtpu==0.0.42.1"
SIMULATE = "--xla_jf_dump_static_llo_profile_to={}"
DUMP = (
  "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true "
  "--xla_jf_dump_llo_pass_label_regex=.*final.*"
)
ENVIRONMENT = dict(
  ALLOW_MULTIPLE_LIBTPU_LOAD="1",
  TPU_SKIP_MDS_QUERY="1",
  TPU_ACCELERATOR_TYPE="v5litepod-16",
  TPU_WORKER_HOSTNAMES="localhost",
  JAX_PLATFORMS="cpu",
)


def compile_for(chip: str, program: Any, arguments: Sequence[Any]) -> None:
  """Compiles a function for a chip that is not there.

  Its arguments and results all have as many axes as the first argument.
  """
  import jax
  import numpy as np
  from jax.experimental import topologies
  from jax.experimental.layout import Format, Layout
  from jax.sharding import Mesh, NamedSharding, PartitionSpec

  device = topologies.get_topology_desc(
    platform="tpu", topology_name=CHIPS[chip].topology
  ).devices[0]
  mesh = Mesh(np.array([device]), ("x",))
  # Else XLA would choose other layouts for the arguments, and copy.
  order = tuple(range(arguments[0].ndim))
  place = Format(Layout(order), NamedSharding(mesh, PartitionSpec()))
  with jax.set_mesh(mesh):
    jax.jit(program, in_shardings=place, out_shardings=place).lower(
      *arguments
    ).compile()


def compile_apart(
  case: Any, flags: str, read: Any, program: str
) -> tuple[Any, Any]:
  """Compiles in a process with flags of a folder; returns what `read` reads."""
  with tempfile.TemporaryDirectory() as folder:
    done = subprocess.run(
      [sys.executable, program, "--one", json.dumps(case)],
      env={
        **os.environ,
        **ENVIRONMENT,
        "LIBTPU_INIT_ARGS": flags.format(folder),
      },
      capture_output=True,
      text=True,
    )
    return read(pathlib.Path(folder)), done


def reason(done: Any) -> str:
  """Returns why a process ended, of what it wrote."""
  said = re.findall(
    r"^.*(?:Error|CHECK|Unsupported|FIFO).*$", done.stderr, re.MULTILINE
  )
  return f"aborted: {said[-1][:100] if said else 'no reason given'}"


def parse(folder: pathlib.Path) -> dict[str, int]:
  """Returns the cycles of each operation that the compiler wrote down."""
  found: dict[str, int] = {}
  for path in folder.glob("*_static_llo_profile.textproto"):
    text = path.read_text(errors="replace")
    name = path.name.removesuffix("_static_llo_profile.textproto")
    cycles = _field(text, "estimated_cycles")
    found[name] = cycles * _field(text, "num_equivalent_hlos")
  return found


def bundles(
  folder: pathlib.Path, part: str = "attention_whole"
) -> dict[str, int]:
  """Returns how many bundles each kernel is; part: of the names to read."""
  found: dict[str, int] = {}
  for path in folder.glob(f"*{part}*per-bundle-utilization.txt"):
    rows = re.findall(r"^\d+(?: \d+)+$", path.read_text(), re.MULTILINE)
    kernel = re.sub(r"^\d+-|-\d+-final_hlo.*$", "", path.name)
    found[kernel] = len(rows)
  return found


def _field(text: str, name: str) -> int:
  match = re.search(rf"^\s*{name}: (-?\d+)", text, re.MULTILINE)
  return int(match[1]) if match else 0


def libtpu(parser: argparse.ArgumentParser) -> str:
  """Returns the compiler's version; ends with an error where there is none."""
  try:
    return importlib.metadata.version("libtpu")
  except importlib.metadata.PackageNotFoundError:
    parser.error(f"no TPU compiler: {INSTALL}, then PYTHONPATH=/tmp/libtpu")
