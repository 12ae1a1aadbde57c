"""How two texts share the room there is."""

import pytest

from mmjax.data import framing


@pytest.mark.parametrize(
  "sizes, room, want",
  [
    ((5,), 8, [5]),
    ((9,), 8, [8]),
    ((3, 4), 8, [3, 4]),
    ((2, 9), 8, [2, 6]),  # the shorter one is kept whole
    ((9, 2), 8, [6, 2]),
    ((7, 9), 8, [4, 4]),
    ((7, 9), 9, [4, 5]),
    ((9, 7), 9, [5, 4]),
    ((9, 9), 9, [4, 5]),
    ((9, 0), 8, [8, 0]),
    ((4, 4), -1, [0, 0]),
  ],
)
def test_the_longer_one_is_cut_first(sizes, room, want):
  assert framing.cut([range(n) for n in sizes], room) == want


def test_the_first_may_get_the_odd_token():
  parts = [range(7), range(9)]
  assert framing.cut(parts, 9, first=True) == [5, 4]
  assert framing.cut(parts, 8, first=True) == [4, 4]
