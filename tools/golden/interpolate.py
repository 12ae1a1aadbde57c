"""Resized grids of PyTorch, in tests/golden/layers/interpolate.npz.

grid/<case>               [Y X D]
<method>/<case>/<Y>x<X>   PyTorch's, of that size
"""

import make_golden
import numpy as np

MODES = {
  "bicubic": dict(mode="bicubic", align_corners=False),
  "bicubic_antialias": dict(
    mode="bicubic", align_corners=False, antialias=True
  ),
  "bilinear_antialias": dict(
    mode="bilinear", align_corners=False, antialias=True
  ),
  "bicubic_offset": dict(mode="bicubic", align_corners=False),
  "bicubic_corners": dict(mode="bicubic", align_corners=True),
  "bilinear_corners": dict(mode="bilinear", align_corners=True),
}


def make() -> None:
  """Records the cases: larger, smaller, both at once, from and to a line."""
  import torch

  found = {}
  sizes = {
    "oblong": ((5, 3), ((7, 4), (2, 2), (3, 8), (5, 4), (1, 1), (11, 2))),
    "square": ((7, 7), ((7, 3), (16, 5), (4, 4), (2, 13))),
    "line": ((1, 9), ((1, 12), (1, 4), (3, 9))),
  }
  for i, (case, (size, others)) in enumerate(sizes.items()):
    grid = make_golden.images((*size, 2), seed=i)
    found[f"grid/{case}"] = grid
    x = torch.from_numpy(grid.transpose(2, 0, 1).copy())[None]
    for method, mode in MODES.items():
      for other in others:
        scale = dict(size=other)
        if method == "bicubic_offset":  # a tenth of a patch more, as DINOv2
          pairs = zip(other, size, strict=True)
          scale = dict(scale_factor=tuple((n + 0.1) / m for n, m in pairs))
        y = torch.nn.functional.interpolate(x, **scale, **mode)
        assert y.shape[2:] == other
        found[f"{method}/{case}/{other[0]}x{other[1]}"] = (
          y[0].numpy().transpose(1, 2, 0)
        )
  folder = make_golden.FOLDER / "layers"
  folder.mkdir(exist_ok=True)
  np.savez_compressed(folder / "interpolate.npz", allow_pickle=False, **found)
  size = (folder / "interpolate.npz").stat().st_size
  print(f"layers/interpolate: {size / 1024:.0f} KiB")
