"""Two-way rules between our parameters and a foreign checkpoint, as data.

A rule says that a tensor of theirs, or a piece of it, is a leaf of ours after
a change of layout. The same table of rules reads and writes, so that a model
that was written and read again is bitwise the same.

A pattern of theirs may hold "{n}", the number of a layer: the leaf of ours
then stacks the layers on its first axis.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Op:
  """A change of layout that can be undone.

  Attributes:
    ours: theirs -> ours.
    theirs: ours -> theirs.
  """

  ours: Callable[[Array], Array]
  theirs: Callable[[Array], Array]


SAME = Op(lambda x: x, lambda x: x)


def transpose(*axes: int) -> Op:
  """Permutes axes: axis i of ours is axis axes[i] of theirs."""
  back = tuple(int(i) for i in np.argsort(axes))
  return Op(lambda x: x.transpose(axes), lambda x: x.transpose(back))


LINEAR = transpose(1, 0)  # [out in] of PyTorch -> [in out]
CONV2D = transpose(2, 3, 1, 0)  # OIHW -> HWIO
CONV1D = transpose(2, 1, 0)  # OIW -> WIO


def reshape(ours: Sequence[int], theirs: Sequence[int]) -> Op:
  """Reshapes; both shapes may hold one -1."""
  return Op(lambda x: x.reshape(ours), lambda x: x.reshape(theirs))


def chain(*ops: Op) -> Op:
  """Applies ops one after the other, from theirs to ours."""

  def ours(x: Array) -> Array:
    for op in ops:
      x = op.ours(x)
    return x

  def theirs(x: Array) -> Array:
    for op in reversed(ops):
      x = op.theirs(x)
    return x

  return Op(ours, theirs)


def to_heads(heads: int) -> Op:
  """A projection to heads: kernel [N*H D] -> [D N H], bias [N*H] -> [N H]."""

  def ours(x: Array) -> Array:
    if x.ndim == 1:
      return x.reshape(heads, -1)
    return x.T.reshape(x.shape[1], heads, -1)

  def theirs(x: Array) -> Array:
    if x.ndim == 2:
      return x.reshape(-1)
    return x.reshape(x.shape[0], -1).T

  return Op(ours, theirs)


def from_heads(heads: int) -> Op:
  """The projection back from heads: kernel [D N*H] -> [N H D]."""
  return Op(
    lambda x: x.T.reshape(heads, -1, x.shape[0]),
    lambda x: x.reshape(-1, x.shape[-1]).T,
  )


@dataclasses.dataclass(frozen=True)
class Rule:
  """A leaf of ours is (a piece of) a tensor of theirs, laid out anew.

  Attributes:
    ours: name of the leaf, "encoder/blocks/mlp/up/kernel".
    theirs: name of the tensor; with "{n}" one for each layer.
    op: the change of layout, of one layer.
    piece: (start, stop, axis) of theirs, where several of ours are packed in
      one of theirs; None is all of it. The pieces cover the tensor.
    layers: the numbers of the layers that are stacked, as text where they are
      written otherwise ("02"); None is 0, 1, ...
    collection: of the variables, "params" but for statistics.
  """

  ours: str
  theirs: str
  op: Op = SAME
  piece: tuple[int, int, int] | None = None
  layers: tuple[int | str, ...] | None = None
  collection: str = "params"

  @property
  def name(self) -> str:
    """Returns the leaf's name in the variables."""
    return f"{self.collection}/{self.ours}"

  @property
  def stacked(self) -> bool:
    """Does the leaf stack layers?"""
    return "{n}" in self.theirs

  def sources(self, depth: int) -> list[str]:
    """Returns the names of theirs, one a layer of a stack of `depth`."""
    if not self.stacked:
      return [self.theirs]
    layers = range(depth) if self.layers is None else self.layers
    return [self.theirs.replace("{n}", str(n)) for n in layers]

  def read(self, tensor: Array) -> Array:
    """Returns one layer of ours from a tensor of theirs."""
    if self.piece is not None:
      start, stop, axis = self.piece
      index = [slice(None)] * tensor.ndim
      index[axis] = slice(start, stop)
      tensor = tensor[tuple(index)]
    return self.op.ours(tensor)


def packed(
  rules: Sequence[tuple[str, Op]],
  theirs: str,
  sizes: Sequence[int],
  axis: int = 0,
) -> list[Rule]:
  """Returns the rules of leaves that are packed along an axis of one tensor.

  Args:
    rules: (ours, op) in the order in which they are packed.
    theirs: name of the tensor.
    sizes: of the pieces along the axis.
    axis: of theirs.
  """
  ends = np.cumsum(sizes).tolist()
  return [
    Rule(ours, theirs, op, (end - size, end, axis))
    for (ours, op), size, end in zip(rules, sizes, ends, strict=True)
  ]


def under(ours: str, theirs: str, rules: Sequence[Rule]) -> list[Rule]:
  """Puts prefixes before the names of rules: a model within a model."""
  return [
    dataclasses.replace(r, ours=f"{ours}{r.ours}", theirs=f"{theirs}{r.theirs}")
    for r in rules
  ]


def write(rules: Sequence[Rule], leaves: dict[str, Array]) -> dict[str, Array]:
  """Returns all tensors of theirs from all leaves of ours.

  What no rule reads between two pieces of a tensor is written as zeros.
  """
  pieces: dict[str, list[tuple[int, Array, int]]] = {}
  for rule in rules:
    leaf = leaves[rule.name]
    layers = leaf if rule.stacked else leaf[None]
    for layer, name in zip(layers, rule.sources(len(layers)), strict=True):
      start, _, axis = rule.piece or (0, 0, 0)
      made = rule.op.theirs(np.asarray(layer))
      pieces.setdefault(name, []).append((start, made, axis))
  out = {}
  for name, parts in pieces.items():
    parts.sort(key=lambda part: part[0])
    arrays, end = [], 0
    for start, array, axis in parts:
      if start > end:
        shape = list(array.shape)
        shape[axis] = start - end
        arrays.append(np.zeros(shape, array.dtype))
      arrays.append(array)
      end = start + (array.shape[axis] if array.ndim else 0)
    whole = (
      np.concatenate(arrays, parts[0][2]) if len(arrays) > 1 else arrays[0]
    )
    # Not ascontiguousarray, which makes a vector of a scalar.
    out[name] = np.asarray(whole, order="C")
  return out
