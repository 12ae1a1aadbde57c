import numpy as np
import pytest

from mmjax import errors
from mmjax.ops import masks


def image_part(mask):
  """What image tokens see of the image, after checking the text's part."""
  length = mask.text + mask.rows * mask.columns
  seen = np.asarray(masks.dense(mask, length, length))[0, 0]
  text = mask.text
  np.testing.assert_array_equal(
    seen[:text], np.tril(np.ones((text, length), bool))
  )
  assert seen[text:, :text].all()
  return seen[text:, text:]


def windows(mask):
  """Where the places of a window fall in raster order, token by token."""
  h, width = mask.kernel // 2, mask.columns
  found = np.zeros((mask.rows * width,) * 2, bool)
  for q in range(len(found)):
    for up in range(h + 1):
      for left in range(-h, h + 1):
        k = q - up * width - left
        if 0 <= k <= q:
          found[q, k] = True
  return found


def test_row_of_the_figure():
  """Figure 11 (a): 6 text tokens, a 4 x 4 image, "the previous 5"."""
  seen = image_part(masks.Row(6, 4, 4))
  np.testing.assert_array_equal(np.flatnonzero(seen[2]), [0, 1, 2])
  np.testing.assert_array_equal(np.flatnonzero(seen[9]), [5, 6, 7, 8, 9])
  assert (seen.sum(1) == np.minimum(np.arange(16) + 1, 5)).all()


@pytest.mark.parametrize("columns", [1, 4, 6])
def test_column_sees_what_is_above(columns):
  seen = image_part(masks.Column(3, 5, columns)).reshape(5, columns, 5, columns)
  for y, x in np.ndindex(5, columns):
    want = np.zeros((5, columns), bool)
    want[: y + 1, x] = True
    np.testing.assert_array_equal(seen[y, x], want)


@pytest.mark.parametrize(
  "columns, kernel", [(4, 3), (7, 3), (8, 5), (5, 5), (3, 7), (6, 1), (12, 11)]
)
def test_conv_is_a_window_that_wraps(columns, kernel):
  mask = masks.Conv(2, 6, columns, kernel)
  seen = image_part(mask)
  np.testing.assert_array_equal(seen, windows(mask))
  other = image_part(masks.Conv(2, 6, columns, kernel + 2))
  assert (other != seen).any()


def test_conv_at_the_edges_of_the_image():
  seen = image_part(masks.Conv(6, 4, 4, 3))
  # Token 4 is at the left edge: of the row above it sees 3's neighbours.
  np.testing.assert_array_equal(np.flatnonzero(seen[4]), [0, 1, 3, 4])
  np.testing.assert_array_equal(np.flatnonzero(seen[10]), [5, 6, 7, 9, 10])


def test_wrong_grids_are_named():
  with pytest.raises(errors.InputError, match="rows >= 1"):
    masks.Row(6, 0, 4)
  with pytest.raises(errors.InputError, match="odd kernel"):
    masks.Conv(6, 4, 4, 4)
  masks.check(masks.Row(6, 4, 4), 2, 22, 22)
  with pytest.raises(errors.InputError, match="22, but there are 23"):
    masks.check(masks.Row(6, 4, 4) & masks.Full(), 2, 23, 22)


@pytest.mark.parametrize(
  "text, rows, columns", [(3, 4, 6), (0, 5, 3), (2, 8, 8)]
)
def test_lines_are_columns_of_the_image_on_its_side(text, rows, columns):
  mask = masks.Column(text, rows, columns)
  lines = mask.by_lines()
  length = text + rows * columns
  # Line by line, in plain Python.
  order = list(range(text))
  order += [text + y * columns + x for x in range(columns) for y in range(rows)]
  np.testing.assert_array_equal(lines.raster(np.arange(length)), order)
  laid = lines.lay(np.arange(2 * length).reshape(2, length, 1), 1)
  np.testing.assert_array_equal(laid[1, :, 0], length + np.array(order))
  back = lines.lay(laid, 1, back=True)
  np.testing.assert_array_equal(back[..., 0].ravel(), np.arange(2 * length))
  seen = np.asarray(masks.dense(mask, length, length))[0, 0]
  np.testing.assert_array_equal(
    masks.dense(lines, length, length)[0, 0], seen[order][:, order]
  )
  image = image_part(lines)
  for q, k in np.ndindex(image.shape):
    assert image[q, k] == (k <= q and k // rows == q // rows)
