"""Reads the text of a compiled program: what moves, what is how large.

Shapes in a partitioned program are those of one device. An activation that
still has the whole batch on each device, or a collective larger than any
parameter, is the mark of a constraint that was lost.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  "collective-broadcast",
  "ragged-all-to-all",
)
_BITS = {"pred": 8, "token": 0, "c64": 64, "c128": 128}
# `%name = <result> opcode(`, where <result> is a shape or a tuple of shapes.
_OP = re.compile(
  r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<result>\(.*?\)|\S+) "
  r"(?P<opcode>[a-z][\w\-]*)\(",
)
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\]")
_SCOPE = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Value:
  """One array that an instruction makes.

  Attributes:
    opcode: of the instruction, "all-gather", "fusion", ...
    dtype: "f32", ...
    shape: on one device.
    bytes: on one device.
    name: of the instruction.
    scope: where in the model it comes from, "" if unknown.
  """

  opcode: str
  dtype: str
  shape: tuple[int, ...]
  bytes: int
  name: str
  scope: str


def values(text: str) -> Iterator[Value]:
  """Yields every array that an instruction makes, tuples taken apart.

  Args:
    text: `compiled.as_text()`.
  """
  for line in text.splitlines():
    found = _OP.match(line)
    if not found:
      continue
    scope = _SCOPE.search(line)
    for dtype, dims in _SHAPE.findall(found["result"]):
      shape = tuple(int(d.lstrip("<=")) for d in dims.split(",") if d)
      yield Value(
        found["opcode"],
        dtype,
        shape,
        math.ceil(math.prod(shape) * _bits(dtype) / 8),
        found["name"],
        scope[1] if scope else "",
      )


def _bits(dtype: str) -> int:
  number = re.search(r"\d+", dtype)
  return _BITS.get(dtype, int(number[0]) if number else 0)


def collectives(text: str) -> list[Value]:
  """Returns the results of all collectives, one `Value` per array.

  Collectives that were merged count one by one. Of an asynchronous pair the
  start counts, whose operand is listed beside its result.
  """
  found = []
  for value in values(text):
    opcode = value.opcode.removesuffix("-start")
    if opcode in COLLECTIVES:
      found.append(dataclasses.replace(value, opcode=opcode))
  return found


def whole_batch(text: str, batch: int, *, width: int) -> list[Value]:
  """Returns arrays whose leading axis is the whole batch, on one device.

  Args:
    text: `compiled.as_text()`.
    batch: global batch size; choose one that no other axis has.
    width: elements per row up to which an array is let pass: embeddings that
      a contrastive loss gathers are as wide as this.
  """
  return [
    value
    for value in values(text)
    if batch in value.shape
    and math.prod(value.shape) > batch * width
    and value.opcode not in ("parameter", "tuple", "get-tuple-element")
  ]
