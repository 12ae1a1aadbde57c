"""Pictures of a run: its curves, and what it retrieves."""

import contextlib
import pathlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.train import resilience
from mmjax.train.metrics import Log, Row

INK, QUIET, RULE = "#22262b", "#7b828a", "#e3e6e9"
HIT, MISS = "#1a9850", "#c9ced3"
COLORS = ("#2b6cb0", "#d9772b", "#1a9850", "#8e5bb5", "#c23b5a", "#5f6b76")
_DPI = 150
_PANELS = 5
_TOP = 5


@contextlib.contextmanager
def _style() -> Iterator[Any]:
  import matplotlib  # here, for it takes a second, and most runs end later

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  settings: Any = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
  }
  with plt.rc_context(settings):
    yield plt
    plt.close("all")


def curves(rows: Sequence[Row], path: pathlib.Path) -> None:
  """Draws the loss, and each evaluator's metrics, over the steps.

  Args:
    rows: of metrics.jsonl; rows of kind "train" have a loss, rows of kind
      "eval" have "evaluator/..." metrics.
    path: PNG to write.
  """
  panels = list(_panels(rows).items())[:_PANELS]
  count = 1 + len(panels)
  across = min(count, 3)
  down = -(-count // across)
  with _style() as plt:
    from matplotlib.ticker import MaxNLocator

    figure, grid = plt.subplots(
      down,
      across,
      figsize=(4.4 * across, 3.2 * down),
      squeeze=False,
      layout="constrained",
    )
    axes = list(grid.flat)
    for unused in axes[count:]:
      unused.remove()
    _draw_loss(axes[0], rows)
    for axis, (title, lines) in zip(axes[1:], panels, strict=False):
      axis.set_title(title)
      axis.set_xlabel("step")
      for i, (name, (points, chance)) in enumerate(lines.items()):
        color = COLORS[i % len(COLORS)]
        axis.plot(*zip(*points, strict=True), "o-", color=color, lw=1.6, ms=4)
        _label(axis, points[-1], f"{name}  {points[-1][1]:.3f}", color)
        if chance is not None:
          axis.axhline(chance, color=color, lw=0.9, ls=(0, (2, 3)))
          axis.set_xlabel("step   (dotted: chance)")
      axis.set_ylim(bottom=0)
    for axis in axes[:count]:
      axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.savefig(path, dpi=_DPI)


def _draw_loss(axis: Any, rows: Sequence[Row]) -> None:
  points = [
    (row["step"], row["loss"])
    for row in rows
    if row.get("kind") == "train"
    and row.get("loss") is not None
    # nan = "skip" leaves bad steps in the rows; one would blank the mean of
    # all that follow.
    and np.isfinite(row["loss"])
  ]
  axis.set_title("training loss")
  axis.set_xlabel("step")
  if not points:
    return
  steps, losses = (np.asarray(x) for x in zip(*points, strict=True))
  smooth = _smooth(losses, len(losses) // 12)
  axis.plot(steps, losses, color=COLORS[0], lw=0.8, alpha=0.35)
  axis.plot(steps, smooth, color=COLORS[0], lw=1.8)
  _label(axis, (steps[-1], smooth[-1]), f"{smooth[-1]:.3g}", COLORS[0])


def _label(axis: Any, point: Any, text: str, color: str) -> None:
  axis.annotate(
    text,
    point,
    xytext=(6, 0),
    textcoords="offset points",
    va="center",
    color=color,
    annotation_clip=False,
  )


def _smooth(values: np.ndarray, reach: int) -> np.ndarray:
  """Returns the mean over `reach` neighbours on each side, fewer at ends."""
  total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
  index = np.arange(len(values))
  low, high = np.maximum(index - reach, 0), index + reach + 1
  # As far to the left as to the right, so that a slope keeps its place.
  over = np.maximum(high - len(values), 0)
  short = np.maximum(reach - index, 0)
  low, high = low + over, np.minimum(high, len(values)) - short
  return (total[high] - total[low]) / (high - low)


def _panels(rows: Sequence[Row]) -> dict[str, dict[str, tuple[list, Any]]]:
  """Returns {title: {line: ([(step, value)], chance level or None)}}."""
  found: dict[str, list[tuple[int, float]]] = {}
  for row in rows:
    if row.get("kind") == "eval":
      for key, value in row.items():
        if "/" in key and not key.startswith("time/") and value is not None:
          found.setdefault(key, []).append((row["step"], value))
  panels: dict[str, dict[str, tuple[list, Any]]] = {}
  for key, points in found.items():
    above, _, line = key.rpartition("/")
    if "chance" in key.split("/") or above in found:
      continue  # a group's detail ("R@5/noto") would drown the curves
    chance = found.get(f"{key.split('/')[0]}/chance/{line}")
    title = above.replace("_", " ").replace("/", ": ", 1)
    level = chance[-1][1] if chance else None
    panels.setdefault(title, {})[line] = (points, level)
  # What was looked at once, such as a baseline, has no curve.
  return {
    title: lines
    for title, lines in panels.items()
    if any(len(points) > 1 for points, _ in lines.values())
  }


def gallery(rows: Sequence[Any], path: pathlib.Path) -> np.ndarray:
  """Draws queries and the images found, hits framed in green.

  Args:
    rows: each with `query` (str), `images` (uint8 [Y X C], best first) and
      `hits` (a bool per image).
    path: PNG to write.

  Returns:
    The picture, uint8 [Y X C].
  """
  with _style() as plt:
    from matplotlib.patches import FancyBboxPatch

    cell, text_width, gap, head = 0.78, 2.5, 0.16, 0.42
    across = text_width + _TOP * (cell + gap) + gap
    down = head + len(rows) * (cell + gap) + gap
    figure = plt.figure(figsize=(across, down))
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set(xlim=(0, across), ylim=(down, 0))  # inches, from the top left
    canvas.axis("off")
    middle = head / 2 + gap / 2
    canvas.text(gap, middle, "query", va="center", weight="bold")
    canvas.text(
      text_width + gap,
      middle,
      "nearest images, best first",
      va="center",
      weight="bold",
    )
    for r, row in enumerate(rows):
      top = head + gap + r * (cell + gap)
      canvas.plot((gap, across - gap), (top - gap / 2,) * 2, color=RULE, lw=0.8)
      lines = textwrap.wrap(row.query, 31)
      shown = "\n".join(lines[:4]) + (" …" if len(lines) > 4 else "")
      canvas.text(gap, top + cell / 2, shown, va="center", linespacing=1.25)
      found = list(zip(row.images, row.hits, strict=True))[:_TOP]
      for i, (image, hit) in enumerate(found):
        left = text_width + gap + i * (cell + gap)
        canvas.add_patch(
          FancyBboxPatch(
            (left, top),
            cell,
            cell,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor="white",
            edgecolor=HIT if hit else MISS,
            linewidth=2.6 if hit else 0.9,
          )
        )
        inset = 0.06
        canvas.imshow(
          np.asarray(image).squeeze(),
          extent=(
            left + inset,
            left + cell - inset,
            top + cell - inset,
            top + inset,
          ),
          cmap="gray",
          aspect="auto",
          interpolation="lanczos",
          zorder=3,
        )
    canvas.set(xlim=(0, across), ylim=(down, 0))  # imshow moves them
    figure.savefig(path, dpi=_DPI)
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def collect(
  evaluators: Mapping[str, Any], variables: Any, count: int = 8
) -> list[Any]:
  """Returns the gallery of the first evaluator that has one; all processes."""
  for evaluator in evaluators.values():
    if hasattr(evaluator, "gallery"):
      return list(evaluator.gallery(variables, count))
  return []


def write(folder: pathlib.Path, log: Log, rows: Sequence[Any]) -> None:
  """Writes curves.png, and gallery.png if there are rows, into the workdir."""
  with resilience.storage(folder):
    curves(log.rows, folder / "curves.png")
    if rows:
      picture = gallery(rows, folder / "gallery.png")
      log.image("gallery", picture, log.rows[-1]["step"] if log.rows else 0)
