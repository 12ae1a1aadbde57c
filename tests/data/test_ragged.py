import numpy as np
import pytest

from mmjax.data import ragged


def test_marked_rows_are_padded_to_the_largest_as_they_say():
  rows = [ragged.mark([1, 2], 9, left=True), ragged.mark([3], 9, left=True)]
  np.testing.assert_array_equal(ragged.stack(rows), [[1, 2], [9, 3]])
  rows = [ragged.mark(np.ones((1, 3))), ragged.mark(np.ones((2, 1)))]
  want = [[[1, 1, 1], [0, 0, 0]], [[1, 0, 0], [1, 0, 0]]]
  found = ragged.stack(rows)
  np.testing.assert_array_equal(found, want)
  assert type(found) is np.ndarray


def test_others_must_be_alike():
  np.testing.assert_array_equal(ragged.stack([[1], [2]]), [[1], [2]])
  for rows in ([], [[1], [2, 3]], [ragged.mark([1]), np.array([2, 3])]):
    with pytest.raises(ValueError):
      ragged.stack(rows)
  with pytest.raises(ValueError, match="larger"):
    ragged.grow(ragged.mark([1, 2]), [1])


def test_a_mark_leaves_the_array_as_it_was():
  given = np.arange(3)
  marked = ragged.mark(given, 7)
  marked[0] = 5
  np.testing.assert_array_equal(given, [0, 1, 2])
