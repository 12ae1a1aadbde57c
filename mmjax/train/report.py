"""The last evaluation beside its baselines: a table for people and files."""

import json
import pathlib
from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from mmjax.train import resilience
from mmjax.train import workdir as workdirs
from mmjax.train.metrics import Log

# Evaluators that look at no model: their results are columns, not rows.
BASELINES = ("pixel_neighbour",)


def line(found: Mapping[str, float], limit: int = 6) -> str:
  """Returns the main metrics of one evaluation in one line."""
  main = [k for k in found if _is_main(k, found)]
  more = "  ..." if len(main) > limit else ""
  return "  ".join(f"{k} {found[k]:.3f}" for k in main[:limit]) + more


def table(
  found: Mapping[str, float], baselines: Sequence[str] = ()
) -> tuple[list[str], list[list[str]]]:
  """Lays results out: a row per metric, a column per baseline.

  Args:
    found: {"evaluator/metric": value}. "evaluator/chance/R@5" is the chance
      level of every metric of that evaluator that ends in R@5; a name below
      another metric's ("R@5/noto") is a detail, and left out.
    baselines: evaluators that are columns, matched by the same ending.

  Returns:
    (header, rows) of text.
  """
  own = [
    k for k in found if _is_main(k, found) and k.split("/")[0] not in baselines
  ]
  columns = {"chance": [_beside(k, found, _chance(k)) for k in own]}
  for name in baselines:
    columns[name.replace("_", " ")] = [_beside(k, found, name) for k in own]
  columns = {k: v for k, v in columns.items() if any(x != "" for x in v)}
  header = ["metric", "this run", *columns]
  rows = [
    [
      key.replace("_", " "),
      f"{found[key]:.3f}",
      *(c[i] for c in columns.values()),
    ]
    for i, key in enumerate(own)
  ]
  return header, rows


def _is_main(key: str, found: Mapping[str, float]) -> bool:
  return "chance" not in key.split("/") and key.rpartition("/")[0] not in found


def _chance(key: str) -> str:
  return key.split("/")[0] + "/chance"


def _beside(key: str, found: Mapping[str, float], prefix: str) -> str:
  """Finds the value below `prefix` with the longest common ending."""
  parts = key.split("/")[1:]
  for i in range(len(parts)):
    end = "/".join(parts[i:])
    for name, value in found.items():
      if name.startswith(prefix + "/") and name.endswith("/" + end):
        return f"{value:.3f}"
  return ""


def write(
  folder: pathlib.Path,
  found: Mapping[str, float],
  evals: Mapping[str, Mapping],
  log: Log,
) -> None:
  """Writes results.json and results.md, and prints the table.

  Args:
    folder: the workdir.
    found: the last evaluation.
    evals: the config's evaluators.
    log: where to print.
  """
  baselines = [k for k, v in evals.items() if v.get("name") in BASELINES]
  header, rows = table(found, baselines)
  lines = [header, ["---"] * len(header), *rows]
  text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
  with resilience.storage(folder):
    workdirs.write_atomically(
      folder / "results.json", json.dumps(dict(found), indent=2) + "\n"
    )
    workdirs.write_atomically(folder / "results.md", text)
  if rows:
    shown = Table(box=box.SIMPLE_HEAD)
    for i, name in enumerate(header):
      shown.add_column(name, justify="right" if i else "left")
    for cells in rows:
      shown.add_row(*cells)
    log.console.print(shown)
  log.say(f"results, curves and pictures: {folder}")
