"""Draws the block maps of the attention masks for the README of ops.

  python tools/draw_masks.py [mmjax/ops/masks.png]

Of each mask, which pairs are seen (dark) and what a kernel does with each
block: skips it, applies the predicate, or leaves the predicate out.
"""

import pathlib
import sys

import matplotlib
import matplotlib.axes
import matplotlib.colors
import matplotlib.patches
import matplotlib.pyplot as plt
import numpy as np

from mmjax.ops import blocks, masks

LENGTH, BLOCK = 80, 8
KINDS = {
  blocks.EMPTY: ("empty: skipped", "#ffffff"),
  blocks.PARTIAL: ("partial: predicate", "#f7cf8f"),
  blocks.FULL: ("full: no predicate", "#8fd19e"),
}
SEEN = "#27446b"


def cases() -> dict[str, masks.Mask]:
  """Returns the masks to draw, by title, for one row of LENGTH tokens."""
  lengths = np.array([52], np.int32)
  ids = np.repeat(np.array([1, 2, 3, 0]), [26, 14, 30, 10])[None]
  grid = (16, 8, 8)  # 16 text tokens, then an image of 8 x 8
  return {
    "Causal()": masks.Causal(),
    "Prefix(20) | Causal()": masks.Prefix(20) | masks.Causal(),
    "Local(6, 6)": masks.Local(6, 6),
    "Banded(20)": masks.Banded(20),
    "Row(16, 8, 8)": masks.Row(*grid),
    "Column(16, 8, 8)": masks.Column(*grid),
    "Conv(16, 8, 8, kernel=3)": masks.Conv(*grid, kernel=3),
    "KeyPadding([52])": masks.KeyPadding(lengths),
    "PrefixLengths([52]) | Causal()": (
      masks.PrefixLengths(lengths) | masks.Causal()
    ),
    "Segments(ids, ids)": masks.Segments(ids, ids),
    "Segments(ids, ids) & Causal()": masks.Segments(ids, ids) & masks.Causal(),
    "Positions, 12 of padding left": masks.Positions(
      np.maximum(np.arange(LENGTH) - 12, -1)[None],
      np.maximum(np.arange(LENGTH) - 12, -1)[None],
    ),
  }


def draw(axes: matplotlib.axes.Axes, title: str, mask: masks.Mask) -> None:
  """Draws one mask: its pairs over the colours of its blocks."""
  found = np.asarray(blocks.dynamic_map(mask, LENGTH, LENGTH, BLOCK, BLOCK)[0])
  extent = (0, LENGTH, LENGTH, 0)
  colors = [color for _, color in KINDS.values()]
  axes.imshow(
    found,
    cmap=matplotlib.colors.ListedColormap(colors),
    vmin=0,
    vmax=2,
    extent=extent,
  )
  seen = np.asarray(masks.dense(mask, LENGTH, LENGTH))[0, 0]
  shade = np.zeros((*seen.shape, 4))
  shade[..., :3] = matplotlib.colors.to_rgb(SEEN)
  shade[..., 3] = seen * 0.4
  axes.imshow(shade, extent=extent, interpolation="nearest")
  axes.set_xticks(range(0, LENGTH + 1, BLOCK), [])
  axes.set_yticks(range(0, LENGTH + 1, BLOCK), [])
  axes.grid(color="#999999", linewidth=0.4)
  axes.tick_params(length=0)
  work = (found != blocks.EMPTY).mean()
  axes.set_title(
    f"{title}\nseen {seen.mean():.0%}, computed {work:.0%}", fontsize=9
  )


def main(path: pathlib.Path) -> None:
  """Draws all masks into a PNG file."""
  matplotlib.use("agg")
  found = cases()
  figure, axes = plt.subplots(3, 4, figsize=(10.5, 8.9))
  for one, (title, mask) in zip(axes.flat, found.items(), strict=True):
    draw(one, title, mask)
  for one in axes[:, 0]:
    one.set_ylabel("queries downwards, keys to the right", fontsize=7)
  handles = [
    matplotlib.patches.Patch(facecolor=color, edgecolor="#999999", label=label)
    for label, color in KINDS.values()
  ]
  handles.append(
    matplotlib.patches.Patch(facecolor=SEEN, alpha=0.4, label="pair is seen")
  )
  figure.legend(handles=handles, loc="lower center", ncols=4, fontsize=9)
  figure.tight_layout(rect=(0, 0.035, 1, 1))
  figure.savefig(path, dpi=80, metadata={"Software": None})


if __name__ == "__main__":
  here = pathlib.Path(__file__).resolve().parent.parent
  main(
    pathlib.Path(sys.argv[1]) if sys.argv[1:] else here / "mmjax/ops/masks.png"
  )
