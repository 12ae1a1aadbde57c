"""`mmjax weights`: checkpoints of other libraries, checked and rewritten."""

import argparse
import pathlib
import resource
import shutil
import sys
from typing import TYPE_CHECKING

from mmjax import errors

if TYPE_CHECKING:
  import jax

  from mmjax.weights import Loaded

ACTIONS = ("import", "export")
FORMATS = ("hf", "npz")  # of mmjax.weights, whose import costs seconds
# What a checkpoint needs beside its weights; copied as it is.
BESIDE = (
  "tokenizer*.json",
  "vocab*",
  "merges.txt",
  "*.model",
  "special_tokens_map.json",
  "added_tokens.json",
  "preprocessor_config.json",
  "processor_config.json",
  "generation_config.json",
)

_ABOUT = """\
Reads a checkpoint of any library and format that is known, checks that each
tensor has its place in the model and each parameter its tensor, and writes it.

import and export are one operation: a checkpoint keeps its library's names, so
that it can go back there, and `mmjax.load` and `mmjax.weights.load` read every
format. Import makes of anything the hub's layout, unless --format says
otherwise; export makes of anything the format that is asked for.

formats
  hf   config.json and model.safetensors, float32; a checkpoint that came
       without a config (Google's .npz) has none, and is known by its names
  npz  model.npz, which holds the config too

Tokenizer and preprocessor files that lie beside the weights are copied.
"""
_EXAMPLES = """\
examples
  mmjax weights import ~/downloads/vit-base-patch16-224 --to models/vit
  mmjax weights import ~/downloads/ViT-B_16.npz --to models/vit
  mmjax weights export models/vit --to out --format npz
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of the command."""
  parser.description, parser.epilog = _ABOUT, _EXAMPLES
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument("action", choices=ACTIONS, help="what it is to you")
  parser.add_argument("path", help="directory or file of the checkpoint")
  parser.add_argument(
    "--to", required=True, metavar="DIR", help="directory to write, made anew"
  )
  parser.add_argument(
    "--format", choices=FORMATS, default="hf", help="default: hf"
  )


def run(args: argparse.Namespace) -> int:
  """Converts the checkpoint `args.path`; prints what it was.

  Raises:
    InputError: a checkpoint that is not known or does not fit its config, or
      a folder that holds other weights, which would be read instead.
    StorageError: the folder cannot be written.
  """
  if args.overrides:
    raise errors.InputError(
      f"--config.{args.overrides[0]}: `mmjax weights` takes no config; leave "
      "it out."
    )
  source, to = pathlib.Path(args.path), pathlib.Path(args.to)
  # JAX is imported here, after the words stand.
  import jax

  from mmjax import weights
  from mmjax.parallel import mesh, rules
  from mmjax.weights import files

  _free(to, files.SUFFIXES)
  # The way leads through the host's memory, whatever else there is.
  host = mesh.make_mesh({}, jax.local_devices(backend="cpu")[:1])
  loaded = weights.load(source, layout=rules.Layout(host))
  try:
    to.mkdir(parents=True, exist_ok=True)
    path = weights.export(loaded, to, format=args.format)
    copied = _copy(source if source.is_dir() else source.parent, to)
  except OSError as e:
    raise errors.StorageError(
      f"--to = {args.to!r}: it cannot be written ({e}); free space, or choose "
      "another directory."
    ) from e
  print("\n".join(_lines(loaded, len(files.open_checkpoint(path).tensors))))
  print(f"wrote       {', '.join(str(p) for p in [path, *copied])}")
  return 0


def _free(to: pathlib.Path, suffixes: tuple[str, ...]) -> None:
  """Raises InputError unless the folder is new, or holds no weights."""
  if not to.exists():
    return
  if not to.is_dir():
    raise errors.InputError(f"--to = {str(to)!r}: it is a file; name a folder.")
  found = sorted(p.name for p in to.iterdir() if p.suffix in suffixes)
  if found or (to / "config.json").exists():
    raise errors.InputError(
      f"--to = {str(to)!r}: it holds {found[0] if found else 'config.json'} "
      "already, and of two checkpoints in one folder the wrong one would be "
      "read; name an empty or a new folder."
    )


def _copy(folder: pathlib.Path, to: pathlib.Path) -> list[pathlib.Path]:
  """Copies what lies beside the weights; returns the new files."""
  found = {p for glob in BESIDE for p in folder.glob(glob) if p.is_file()}
  return [pathlib.Path(shutil.copy(p, to)) for p in sorted(found)]


def _lines(loaded: "Loaded", tensors: int) -> list[str]:
  import jax

  parameters = jax.tree.leaves(loaded.variables["params"])
  # Of BatchNorm, say: no gradient changes them.
  statistics = jax.tree.leaves(
    {k: v for k, v in loaded.variables.items() if k != "params"}
  )
  keywords = dict(loaded.recipe.model)
  model = keywords.pop("name")
  shown = ", ".join(f"{k}={v!r}" for k, v in keywords.items())
  # Kilobytes, but for macOS.
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  peak *= 1 if sys.platform == "darwin" else 1024
  return [
    f"table       {loaded.recipe.table}",
    f"model       {model}({shown})",
    f"tensors     {tensors:,}",
    f"parameters  {_size(parameters)}",
    *([f"statistics  {_size(statistics)}"] if statistics else ()),
    f"peak        {peak / 2**30:.3f} GiB of memory, JAX included",
  ]


def _size(leaves: list["jax.Array"]) -> str:
  size = sum(x.nbytes for x in leaves)
  return f"{sum(x.size for x in leaves):,} ({size / 2**30:.3f} GiB)"
