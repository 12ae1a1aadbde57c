"""Grids of learned positions, stretched to images of another size.

Each axis is a product with a small fixed matrix, computed once in float64. The
methods differ in the kernel, in where the outer samples stand, and in whether
the kernel widens when the grid shrinks.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import errors


def _cubic(a: float) -> Callable[[np.ndarray], np.ndarray]:
  """Returns Keys' kernel ("Cubic convolution interpolation", 1981)."""

  def kernel(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

  return kernel


def _triangle(x: np.ndarray) -> np.ndarray:
  return np.maximum(1.0 - np.abs(x), 0.0)


def _centres(old: int, new: int) -> np.ndarray:
  """Returns where the centres of new pixels stand among the old."""
  return (np.arange(new) + 0.5) * old / new - 0.5


def _offset(old: int, new: int) -> np.ndarray:
  """Returns centres as if there were a tenth of a new pixel more."""
  return (np.arange(new) + 0.5) * old / (new + 0.1) - 0.5


def _ends(old: int, new: int) -> np.ndarray:
  """Returns places of which the outer two are those of the old samples."""
  return np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)


def _sampled(
  kernel: Callable[[np.ndarray], np.ndarray],
  radius: int,
  places: Callable[[int, int], np.ndarray] = _centres,
):
  """Returns weights of samples at places; edges are repeated."""

  def weights(old: int, new: int) -> np.ndarray:
    place = places(old, new)
    found = np.zeros((new, old))
    first = np.floor(place).astype(int)
    for tap in range(1 - radius, radius + 1):
      source = np.clip(first + tap, 0, old - 1)
      np.add.at(found, (np.arange(new), source), kernel(place - (first + tap)))
    return found

  return weights


def _antialiased(kernel: Callable[[np.ndarray], np.ndarray], radius: int):
  """Returns weights of a kernel that widens when the axis shrinks."""

  def weights(old: int, new: int) -> np.ndarray:
    scale = old / new
    wide = max(scale, 1.0)
    centre = (np.arange(new)[:, None] + 0.5) * scale
    source = np.arange(old)[None, :]
    # The window is cut where the reference cuts it, by truncation.
    low = np.trunc(centre - radius * wide + 0.5)
    high = np.trunc(centre + radius * wide + 0.5)
    found = kernel((source + 0.5 - centre) / wide)
    found = np.where((source >= low) & (source < high), found, 0.0)
    return found / found.sum(1, keepdims=True)

  return weights


def _corners(old: int, new: int) -> np.ndarray:
  """Returns linear weights where the outer samples stay in their places."""
  return _triangle(_ends(old, new)[:, None] - np.arange(old)[None, :])


# Weights [new old] of one axis:
#   bicubic             the hub's ViT, DeiT, DINOv2, CLIP and SigLIP
#   bicubic_antialias   DINOv2 with registers
#   bicubic_offset      DINOv2's own without registers
#   bicubic_corners     frames of CLAP's spectrograms
#   bilinear_antialias  SigLIP 2 of any aspect
#   bilinear_corners    big_vision (scipy's zoom of order 1) and ViLT
METHODS: dict[str, Callable[[int, int], np.ndarray]] = {
  "bicubic": _sampled(_cubic(-0.75), 2),
  "bicubic_antialias": _antialiased(_cubic(-0.5), 2),
  "bicubic_offset": _sampled(_cubic(-0.75), 2, _offset),
  "bicubic_corners": _sampled(_cubic(-0.75), 2, _ends),
  "bilinear_antialias": _antialiased(_triangle, 1),
  "bilinear_corners": _corners,
}


def weights(old: int, new: int, method: str) -> np.ndarray:
  """Returns what stretches an axis from `old` to `new` samples.

  Args:
    old: samples there are.
    new: samples wanted.
    method: of `METHODS`.

  Returns:
    float32 [new old], rows of sum 1.

  Raises:
    InputError: an unknown method.
  """
  if method not in METHODS:
    raise errors.unknown("interpolate", method, METHODS)
  return METHODS[method](old, new).astype(np.float32)


def resize(grid: jax.Array, rows: int, columns: int, method: str) -> jax.Array:
  """Stretches a grid [Y X D] to [rows columns D], in float32.

  A grid that has the size already is returned as it is.

  Raises:
    InputError: an unknown method.
  """
  Y, X, _ = grid.shape
  if (Y, X) == (rows, columns):
    return grid
  return jnp.einsum(
    "ry,cx,yxd->rcd",
    weights(Y, rows, method),
    weights(X, columns, method),
    grid.astype(jnp.float32),
    precision="highest",  # positions are added to all that follows
  )


def corner_weights(count: jax.Array, places: int, grid: int) -> jax.Array:
  """Returns weights that stretch a grid over the first places of a row.

  Linear interpolation in which the ends of both meet; places after the count
  get zeros.

  Args:
    count: int [B], how many places are filled.
    places: P.
    grid: G.

  Returns:
    float32 [B P G].
  """
  place = jnp.arange(places, dtype=jnp.float32)[None, :]
  last = jnp.maximum(count - 1, 1).astype(jnp.float32)[:, None]
  source = place * ((grid - 1) / last)
  distance = (
    source[:, :, None] - jnp.arange(grid, dtype=jnp.float32)[None, None]
  )
  weights = jnp.maximum(1.0 - jnp.abs(distance), 0.0)
  return jnp.where((place < count[:, None])[:, :, None], weights, 0.0)
