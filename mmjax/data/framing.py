"""Texts with the special tokens that a model wants around them."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Framed(NamedTuple):
  """A text, or a pair, as a model takes it.

  Attributes:
    ids: of its tokens, special ones included.
    types: 0 for tokens of the first text, 1 for those of the second.
  """

  ids: list[int]
  types: list[int]


def cut(
  parts: Sequence[Sequence[Any]], room: int, *, first: bool = False
) -> list[int]:
  """Returns how long each of one or two parts may be to fit into `room`.

  The longer one is cut until they are of a length, then both.

  Args:
    parts: tokens.
    room: for how many there is room.
    first: of an odd room the first part gets one more than the second, whatever
      their lengths; else the longer one does, the second of equals.
  """
  sizes = [len(part) for part in parts]
  room = max(room, 0)
  if sum(sizes) <= room:
    return sizes
  if len(sizes) == 1:
    return [room]
  short = min(sizes)
  if 2 * short > room:
    halves = [room // 2, room - room // 2]
    return halves[::-1] if first or sizes[0] > sizes[1] else halves
  return [n if n == short else room - short for n in sizes]
