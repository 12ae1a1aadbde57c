"""DALL-E's sparse masks over text followed by an image in raster order.

"Zero-shot text-to-image generation", Ramesh et al. 2021, appendix B.1 and
figure 11. The sequence is `text` text tokens, then rows x columns image
tokens. Text is causal, an image token sees all text, and of the image, through
itself, a neighbourhood: in DALL-E (text 256, 32 x 32) the layers i with
(i - 2) % 4 == 0 take `Column`, the last one `Conv` with kernel 11, the others
`Row`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import errors
from mmjax.ops.algebra import Bounds, Index, Mask, register


@dataclasses.dataclass(frozen=True)
class _Grid(Mask):
  """Text before an image; which image tokens are near is the subclass's."""

  text: int
  rows: int
  columns: int

  def __post_init__(self):
    if self.text < 0 or self.rows < 1 or self.columns < 1:
      raise errors.InputError(
        f"{self}: give text >= 0, rows >= 1 and columns >= 1."
      )

  def misfit(self, length_q, length_k):
    total = self.text + self.rows * self.columns
    if max(length_q, length_k) <= total:
      return None
    return (
      f"{self.text} text and {self.rows} x {self.columns} image tokens are "
      f"{total}, but there are {length_q} queries and {length_k} keys; give "
      "the grid of the image."
    )

  def seen(self, q, k):
    # A text token sees no image: that would be the future.
    return (k <= q) & ((k < self.text) | self._near(q, k))

  def bounds(self, q, k):
    # The keys of a block are text, then image; of each part the rule is known.
    near = self._distances(q.lo - k.hi, q.hi - _clip(k.lo, self.text))
    some = (k.lo < self.text) & (k.lo <= q.hi)
    some = some | ((k.hi >= self.text) & near.some)
    # All text of the block is seen: there is none, or it ends by q.lo.
    text = (k.lo >= self.text) | (k.hi <= q.lo) | (self.text - 1 <= q.lo)
    return Bounds(some, text & ((k.hi < self.text) | near.every))

  def _near(self, q: Index, k: Index) -> Any:
    """Returns where image token q sees image token k, given k <= q."""
    raise NotImplementedError

  def _distances(self, lo: Any, hi: Any) -> Bounds:
    """Returns what is seen of all the distances lo <= q - k <= hi."""
    raise NotImplementedError


@register
@dataclasses.dataclass(frozen=True)
class Row(_Grid):
  """An image token sees itself and the `columns` image tokens before it.

  In raster order: the last one seen is in its own column, one row up. (The
  paper's figure has 4 columns and "the previous 5", the token itself among
  them.)
  """

  def _near(self, q, k):
    return q - k <= self.columns

  def _distances(self, lo, hi):
    return Bounds(
      (lo <= self.columns) & (hi >= 0), (lo >= 0) & (hi <= self.columns)
    )


@register
@dataclasses.dataclass(frozen=True)
class Column(_Grid):
  """An image token sees itself and the image tokens above, in its column."""

  def _near(self, q, k):
    # Each side apart: a kernel divides vectors, not a tile.
    return _modulo(q, self.columns) == _modulo(k, self.columns)

  def by_lines(self) -> "Lines":
    """Returns what this mask is once columns come one after the other."""
    return Lines(self.text, self.columns, self.rows)

  def _distances(self, lo, hi):
    last = hi - _modulo(hi, self.columns)
    some = (last >= lo) & (last >= 0)
    every = (lo >= 0) & (lo == hi) & (_modulo(lo, self.columns) == 0)
    return Bounds(some, ((lo >= 0) | every) if self.columns == 1 else every)


@register
@dataclasses.dataclass(frozen=True)
class Lines(_Grid):
  """An image token sees itself and the image tokens before it, in its row.

  `Column` of the image on its side: what a kernel computes in its place, since
  keys that stand together make blocks, and keys that are spread make none.
  """

  def _near(self, q, k):
    return self._line(q) == self._line(k)

  def bounds(self, q, k):
    first = _clip(k.lo, self.text)
    q_lo, q_hi = self._line(q.lo), self._line(q.hi)
    k_lo, k_hi = self._line(first), self._line(k.hi)
    meet = (k_lo <= q_hi) & (q_lo <= k_hi) & (first <= q.hi)
    one = (q_lo == q_hi) & (k_lo == k_hi) & (q_lo == k_lo) & (k.hi <= q.lo)
    image = k.hi >= self.text
    some = ((k.lo < self.text) & (k.lo <= q.hi)) | (image & meet)
    # All text of the block is seen: there is none, or it ends by q.lo.
    text = (k.lo >= self.text) | (k.hi <= q.lo) | (self.text - 1 <= q.lo)
    return Bounds(some, text & (~image | one))

  def _line(self, i: Index) -> Any:
    return _divide(i - self.text, self.columns)[0]

  def raster(self, i: Index) -> Any:
    """Returns where token i stands while rows come one after the other.

    Rows of the image that `Column.by_lines` has laid on its side.
    """
    line, at = _divide(i - self.text, self.columns)
    moved = self.text + at * self.rows + line
    return jnp.where(i < self.text, i, moved)

  def lay(self, x: jax.Array, axis: int, back: bool = False) -> jax.Array:
    """Lays an array of tokens in raster order on its side, or back again."""
    sides = (self.columns, self.rows)
    if back:
      sides = self.rows, self.columns
    text, image = jnp.split(x, [self.text], axis)
    shape = image.shape
    image = image.reshape(*shape[:axis], *sides, *shape[axis + 1 :])
    image = image.swapaxes(axis, axis + 1).reshape(shape)
    return jnp.concatenate([text, image], axis)


@register
@dataclasses.dataclass(frozen=True)
class Conv(_Grid):
  """An image token sees a kernel x kernel window of tokens up to itself.

  Causal, "with wraparound behavior (similar to the row attention)": the window
  is one of distances in raster order, y * columns + x with y in [0, h], x in
  [-h, h] and h = kernel // 2, so that at the image's edge it goes on in the
  next row up or down. The paper says no more in words than what is quoted, and
  its code is not public. (ruDALL-E wraps within a row instead, and from the
  first rows to the last.)
  """

  kernel: int

  def __post_init__(self):
    super().__post_init__()
    if self.kernel < 1 or self.kernel % 2 == 0:
      raise errors.InputError(f"{self}: give an odd kernel >= 1.")

  def _near(self, q, k):
    h, width = self.kernel // 2, self.columns
    if width <= 2 * h:  # the rows of the window touch each other
      return q - k <= h * width + h
    if width & (width - 1) == 0:  # cheaper than what follows, on tiles
      far = q + h - k
      return (_modulo(far, width) <= 2 * h) & (far < (h + 1) * width)
    q_row, q_column = _divide(q - self.text, width)
    k_row, k_column = _divide(k - self.text, width)
    # q - k = y * columns + x has one solution with |x| <= h, if any: the
    # columns as they are, or seen over the edge of the row.
    y, x = q_row - k_row, q_column - k_column
    near = (x <= h) & (x >= -h) & (y <= h)
    near = near | ((x >= width - h) & (y + 1 <= h))
    return near | ((x <= h - width) & (y - 1 <= h))

  def _distances(self, lo, hi):
    h, width = self.kernel // 2, self.columns
    if width <= 2 * h + 1:
      spans = [(0, h * width + h)]
    else:
      spans = [(max(y * width - h, 0), y * width + h) for y in range(h + 1)]
    some = every = (lo <= hi) & False
    for first, last in spans:
      some = some | ((lo <= last) & (hi >= first))
      every = every | ((lo >= first) & (hi <= last))
    return Bounds(some, every)


def _modulo(i: Index, n: int) -> Any:
  return i & (n - 1) if n & (n - 1) == 0 else i % n


def _divide(i: Index, n: int) -> tuple[Any, Any]:
  """Returns i // n and i % n; shifts where they do, which are cheap."""
  if n & (n - 1) == 0:
    return i >> (n.bit_length() - 1), i & (n - 1)
  return i // n, i % n


def _clip(i: Any, lowest: int) -> Any:
  if isinstance(i, jax.Array):
    return jnp.maximum(i, lowest)
  return np.maximum(i, lowest)
