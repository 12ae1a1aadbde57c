"""Five-fold evaluation in one command: trains every fold, prints the table.

  python tools/five_folds.py --workdir runs/folds
  python tools/five_folds.py --config experiments/emoji/clip.py:locale=de \\
    --workdir runs/folds_clip --config.steps=2000

Each fold is `mmjax train` in `workdir/fold_k`, in a process of its own. Run the
same command again to go on after an interruption: finished folds are only
read, and a fold of another config is refused before anything is trained.
Writes `folds.json` and `folds.md` into the workdir.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence

from mmjax import errors
from mmjax.cli import config as configs
from mmjax.train import validate
from mmjax.train import workdir as workdirs

CONFIG = "config.json"  # written by `mmjax train` when a run begins
RESULTS = "results.json"  # and when it has ended


def with_fold(spec: str, fold: str) -> str:
  """Adds `fold=k` to the words after the colon of a config."""
  path, colon, words = spec.partition(".py:")
  path = path + ".py" if colon else path
  return f"{path}:{words + ',' if words else ''}fold={fold}"


def check(spec: str, workdir: pathlib.Path, overrides: Sequence[str]) -> None:
  """Checks, as `mmjax train` will, that a fold's folder is of this config.

  `mmjax train` itself is no cheap check of a fold that has ended: it restores
  the state, compiles the towers and draws the gallery anew.

  Raises:
    InputError: it is of another config or other overrides; or a bad config.
  """
  given = [word.removeprefix("--config.") for word in overrides]
  workdirs.check(workdir, validate.resolve(configs.load(spec, given)))


def train(spec: str, workdir: pathlib.Path, overrides: Sequence[str]) -> None:
  """Runs one fold to its end, unless it has ended before.

  Raises:
    SystemExit: with the exit code of `mmjax train`, if it is not 0.
  """
  # Without its config nobody knows whose results they are.
  if (workdir / RESULTS).is_file() and (workdir / CONFIG).is_file():
    print(f"{workdir}: done before")
    return
  command = [sys.executable, "-m", "mmjax", "train", "--config", spec]
  code = subprocess.run(
    [*command, "--workdir", str(workdir), *overrides]
  ).returncode
  if code:
    print(f"{workdir}: stopped with exit code {code}", file=sys.stderr)
    raise SystemExit(code)


def summary(runs: dict[str, dict[str, float]]) -> dict[str, dict]:
  """Returns metric -> {"folds": [...], "mean", "std"} of what all folds have.

  The deviation is that of a sample (n - 1); 0 for a single fold.
  """
  rows = list(runs.values())
  shared = [name for name in rows[0] if all(name in row for row in rows)]
  table = {}
  for name in shared:
    values = [float(row[name]) for row in rows]
    table[name] = {
      "folds": values,
      "mean": statistics.fmean(values),
      "std": statistics.stdev(values) if len(values) > 1 else 0.0,
    }
  return table


def markdown(folds: Sequence[str], table: dict[str, dict]) -> str:
  """Returns the table of `summary` as markdown."""
  head = ["metric", *(f"fold {f}" for f in folds), "mean", "std"]
  lines = ["| " + " | ".join(head) + " |"]
  lines.append("| --- |" + " ---: |" * (len(head) - 1))
  for name, row in table.items():
    cells = [*row["folds"], row["mean"], row["std"]]
    lines.append(f"| {name} | " + " | ".join(f"{c:.4f}" for c in cells) + " |")
  return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
  """Trains the folds, writes and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", default="experiments/emoji/siglip.py")
  parser.add_argument("--workdir", required=True, type=pathlib.Path)
  parser.add_argument("--folds", default="0,1,2,3,4", help="as 0,1,2")
  args, overrides = parser.parse_known_args(argv)
  for word in overrides:
    if not word.startswith("--config.") or "=" not in word:
      parser.error(f"unknown argument {word!r}; overrides are --config.x=y")
  folds = args.folds.split(",")
  runs = {}
  places = {
    fold: (with_fold(args.config, fold), args.workdir / f"fold_{fold}")
    for fold in folds
  }
  try:
    for spec, workdir in places.values():
      check(spec, workdir, overrides)
  except errors.MmjaxError as error:
    print(f"five_folds: {error}", file=sys.stderr)
    return error.exit_code
  for fold, (spec, workdir) in places.items():
    train(spec, workdir, overrides)
    runs[fold] = json.loads((workdir / RESULTS).read_text())
  table = summary(runs)
  text = markdown(folds, table)
  (args.workdir / "folds.json").write_text(json.dumps(table, indent=2) + "\n")
  (args.workdir / "folds.md").write_text(text)
  print(text, end="")
  return 0


if __name__ == "__main__":
  sys.exit(main())
