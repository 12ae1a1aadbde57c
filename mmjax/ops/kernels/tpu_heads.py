"""What the whole-sequence kernels on TPU read, compute and write of a head.

A program goes through units, chunks of the queries of one head; heads that
share a tile of lanes take turns, and several tiles are laid side by side.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from mmjax.ops.kernels import tpu_scores as tile
from mmjax.ops.kernels.tiles import LANES
from mmjax.ops.kernels.tpu_call import Call, side_by_side
from mmjax.ops.kernels.tpu_chunks import Chunk, Run, pieces

_PACKED = 16  # rows of a register of 16 bits


class Unit(NamedTuple):
  """A chunk of the queries of one head, within a kernel.

  b, tile, g: row, tile of key heads and query head of each, of the program's.
  head: which of the tile's.
  chunk: of the queries.
  slot: of the tiles side by side.
  memo: what was computed of the tile for all of its heads.
  """

  b: Any
  tile: Any
  g: Any
  head: int
  chunk: Chunk
  slot: int
  memo: dict[Any, Any]

  @property
  def span(self) -> slice:
    """The chunk's queries."""
    return slice(*self.chunk[:2])


class Heads:
  """Reads what the heads of a program need, within a kernel."""

  def __init__(
    self,
    call: Call,
    scalars: Sequence[Any],
    refs: Sequence[Any],
    laid: Sequence[Any],
    kept: Sequence[Any],
  ):
    """Args: refs of scalars and inputs; what is laid line by line, and where."""
    self.call, self.rule = call, call.plan.rule
    self.q, self.k, self.v = refs[:3]
    biased = self.rule.biased
    self.bias: Any = refs[3] if biased else None
    self.scalars, self.vectors = scalars, refs[3 + biased :]
    self.program = call.program()
    self.laid: dict[int, Any] = {}
    if call.lines is not None:
      self.laid = dict(zip(map(id, laid), kept, strict=True))

  def key_head(self, unit: Unit) -> Any:
    """Returns which of the program's key heads a unit is of."""
    return unit.tile * self.call.share + unit.head

  def lay(self, refs: Sequence[Any], unit: Unit) -> None:
    """Lays tokens of a tile line by line, if lines are laid."""
    for ref in refs if self.laid else ():
      kept = self.laid[id(ref)]
      x = ref[self.place(unit, slice(None), False)]
      kept[unit.slot] = self._swapped(x, False).astype(kept.dtype)

  def lay_back(self, ref: Any, unit: Unit) -> None:
    """Writes what was kept of a tile in raster order, if lines are laid."""
    if self.laid:
      x = self._swapped(self.laid[id(ref)][unit.slot], True)
      ref[self.place(unit, slice(None), False)] = x.astype(ref.dtype)

  def _swapped(self, x: jax.Array, back: bool) -> jax.Array:
    """Returns tokens [T lanes] line by line, or back, in float32.

    In registers: before and after the kernel, in HBM, the way costs more than
    the mask saves. Only numbers of 32 bits can be laid so.
    """
    lines: Any = self.call.lines
    sides = (lines.rows, lines.columns) if back else (lines.columns, lines.rows)
    x = x.astype(jnp.float32)
    image = x[lines.text :].reshape(*sides, -1).swapaxes(0, 1)
    return jnp.concatenate([x[: lines.text], image.reshape(-1, x.shape[1])], 0)

  def view(self, ref, unit: Unit, span: slice, of_keys: bool) -> Any:
    """Returns the memory and the place of some tokens, line by line if laid."""
    if id(ref) in self.laid:
      return self.laid[id(ref)], (unit.slot, span, slice(None))
    return ref, self.place(unit, span, of_keys)

  def place(self, unit: Unit, span: slice, of_keys: bool) -> tuple[Any, ...]:
    """Returns where in a block some tokens of a unit's tile are, [n lanes]."""
    if not self.call.packed:
      at = (unit.b, unit.tile) if of_keys else (unit.b, unit.tile, unit.g)
      return (*at, span, slice(None))
    width = self.call.share * self.call.plan.width
    n = unit.tile
    if not of_keys:
      n = n * self.call.block[2] + unit.g
    if isinstance(n, int):
      return unit.b, span, slice(n * width, (n + 1) * width)
    return unit.b, span, pl.ds(pl.multiple_of(n * width, LANES), width)

  def _window(self, unit: Unit) -> tuple[int, int]:
    """Returns the lanes of the tile, in whole registers, that have the head."""
    if self.call.share == 1:
      return 0, self.call.widths[0]
    first = unit.head * self.call.plan.width
    stop = first + self.call.plan.width
    return first // LANES * LANES, -(-stop // LANES) * LANES

  def _moved(self, unit: Unit) -> bool:
    """Says whether a head's keys are moved, to fill one register and not two.

    Where the MXU is as wide as a register, a product of two takes twice as long.
    """
    first, stop = self._window(unit)
    wide = self.call.widths[0] > LANES
    return self.call.plan.narrow and not wide and stop - first > LANES

  def keys(self, ref, unit: Unit, span: slice) -> jax.Array:
    """Returns keys, or values, of a unit's head among others, [n lanes]."""
    if self._moved(unit):
      name = (id(ref), span.start, span.stop, unit.head, "moved")
      if name not in unit.memo:
        unit.memo[name] = self.turned(ref, unit, span, of_keys=True).T
      return unit.memo[name]
    return self._load(ref, unit, span, True)

  def _load(self, ref, unit: Unit, span: slice, of_keys: bool) -> jax.Array:
    """Loads some tokens, of the lanes of a unit's window alone."""
    kept, at = self.view(ref, unit, span, of_keys)
    if self.call.share == 1:
      return kept[at]
    first, stop = self._window(unit)
    *before, lanes = at
    if isinstance(lanes, slice):
      start = lanes.start or 0
      return kept[(*before, slice(start + first, start + stop))]
    start = pl.multiple_of(lanes.start + first, LANES)
    return kept[(*before, pl.ds(start, stop - first))]

  def turned(
    self, ref, unit: Unit, span: slice, of_keys: bool = False
  ) -> jax.Array:
    """Loads tokens of the unit's head, turned, [H n]."""
    window = self._window(unit)
    parts = []
    for some in self._blocks(span) if of_keys else [span]:
      name = (id(ref), some.start, some.stop, window)
      if name not in unit.memo:
        unit.memo[name] = self._load(ref, unit, some, of_keys).T
      parts.append(unit.memo[name])
    x = join(parts, 1)
    if self.call.share == 1:
      return x
    H = self.call.plan.width
    first = unit.head * H - window[0]
    if H % _PACKED == 0:
      return x[first : first + H]
    # Numbers of 16 bits lie in pairs of rows; those of 32 are cut anywhere.
    return x.astype(jnp.float32)[first : first + H].astype(x.dtype)

  def _blocks(self, span: slice) -> list[slice]:
    """Cuts keys where runs do, so that each is turned once."""
    if self.rule.mask is None:
      return [span]
    return [
      slice(i, min(i + LANES, span.stop))
      for i in range(span.start, span.stop, LANES)
    ]

  def alone(self, x: jax.Array, unit: Unit) -> jax.Array:
    """Puts a head's [H n] where it is in its window, beside zeros."""
    if self.call.share == 1 or self._moved(unit):
      return x
    H, dtype = self.call.plan.width, x.dtype
    if H % _PACKED:
      x = x.astype(jnp.float32)
    at = slice(unit.head * H, (unit.head + 1) * H)
    return spread(x, at, slice(*self._window(unit))).astype(dtype)

  def write(self, ref, unit: Unit, span: slice, x: jax.Array) -> None:
    """Writes queries of a unit's head, [H n], once all of its tile are there."""
    found = unit.memo.setdefault((id(ref), span.start, span.stop, "out"), [])
    found.append(x.astype(jnp.float32 if x.shape[0] % _PACKED else ref.dtype))
    if len(found) == self.call.share:
      kept, at = self.view(ref, unit, span, False)
      kept[at] = join(found, 0).astype(ref.dtype).T

  def write_keys(self, ref, unit: Unit, x: jax.Array) -> None:
    """Writes all keys of a tile, [lanes S]."""
    x = self._swapped(x.T, True) if self.laid else x.astype(ref.dtype).T
    ref[self.place(unit, slice(None), True)] = x.astype(ref.dtype)

  def tile_bias(self, unit: Unit, chunk: Chunk, run: Run):
    """Loads the bias of a tile of scores, or None."""
    if self.bias is None:
      return None
    return self.bias[self.bias_at(unit, chunk, run)]

  def bias_at(self, unit: Unit, chunk: Chunk, run: Run) -> tuple[Any, ...]:
    """Returns where in a bias, or its gradient, a tile of scores is."""
    shape = self.bias.shape
    at = [
      0 if n == 1 else i
      for n, i in zip(
        shape, (unit.b, self.key_head(unit), unit.g), strict=False
      )
    ]
    keys = slice(0, 1) if shape[3] == 1 else slice(*run[:2])
    queries = slice(0, 1) if shape[4] == 1 else slice(*chunk[:2])
    return (*at, keys, queries)

  def seen(self, unit: Unit, chunk: Chunk, run: Run) -> jax.Array:
    """Computes the mask's predicate of a tile of scores."""
    scalars, vectors = iter(self.scalars), iter(self.vectors)
    row = self.program[0] * self.call.block[0] + unit.b
    leaves = []
    for axis in self.rule.axes:
      if axis == "b":
        leaves.append(next(scalars)[row])
      elif axis == "q":
        part = next(vectors)[unit.b, :, slice(*chunk[:2])]
        leaves.append(tile.vector(part, 1))
      else:
        part = next(vectors)[unit.b, :, slice(*run[:2])]
        leaves.append(tile.vector(part, 0))
    return tile.seen(self.rule, leaves, *self.positions(chunk, run))

  def scores(self, unit: Unit) -> Iterator[tuple[jax.Array, jax.Array | None]]:
    """Computes a unit's masked scores, (scores, slope) [keys queries] a run."""
    chunk = unit.chunk
    q = self.alone(self.turned(self.q, unit, unit.span), unit)
    for run in chunk[2]:
      parts = []
      for queries, keys in pieces(chunk, run):
        first = chunk[0] + queries.start
        part = first, first + queries.stop - queries.start, ()
        some = Run(keys.start, keys.stop, run.ask)
        k = self.keys(self.k, unit, keys)
        s, slope = tile.scores(
          self.rule,
          tile.dot(k, cut(q, queries), 1, 0),
          self.tile_bias(unit, part, some),
        )
        if run.ask:
          s = tile.hide(s, self.seen(unit, part, some))
        parts.append((s, slope))
      s, slope = join([s for s, _ in parts], 1), None
      if self.rule.softcap is not None:
        slope = join([slope for _, slope in parts], 1)
      yield s, slope

  def positions(self, chunk: Chunk, run: Run) -> tuple[jax.Array, jax.Array]:
    """Returns the positions of the queries and keys of a tile of scores."""
    count_q, count_k = chunk[1] - chunk[0], run.stop - run.first
    q, k = tile.positions(chunk[0], count_q, run.first, count_k, 0)
    if run.step:
      k = k + ((q - chunk[0]) & -run.step)
    return q, k

  def thin(self, x: jax.Array, unit: Unit, run: Run) -> jax.Array:
    """Applies dropout to a tile of scores."""
    if self.rule.rate == 0.0:
      return x
    at = [
      first * size + inner
      for first, size, inner in zip(
        self.program,
        self.call.block,
        (unit.b, self.key_head(unit), unit.g),
        strict=True,
      )
    ]
    _, K, G = self.call.heads
    seed = self.scalars[-1][(at[0] * K + at[1]) * G + at[2]]
    return tile.thin(self.rule, x, seed, *self.positions(unit.chunk, run))


def cut(x: jax.Array, queries: slice) -> jax.Array:
  """Returns some queries of [.. queries]."""
  if queries.stop - queries.start == x.shape[1]:
    return x
  return jax.lax.slice_in_dim(x, queries.start, queries.stop, axis=1)


def spread(x: jax.Array, rows: slice, among: slice) -> jax.Array:
  """Puts some rows, [rows n], among others, which are zero."""
  parts = [x]
  if rows.start > among.start:
    parts.insert(0, jnp.zeros((rows.start - among.start, x.shape[1]), x.dtype))
  if rows.stop < among.stop:
    parts.append(jnp.zeros((among.stop - rows.stop, x.shape[1]), x.dtype))
  return join(parts, 0)


def join(parts: Sequence[Any], axis: int) -> Any:
  """Lays tiles side by side."""
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def units(
  call: Call, tiles: Sequence[tuple[Any, Any]], groups: Sequence[Any]
) -> list[Unit]:
  """Returns the units of some tiles (b, tile), heads of a tile in turn."""
  return [
    Unit(b, at, g, head, chunk, slot, memo)
    for slot, (b, at) in enumerate(tiles)
    for g, memo in ((g, {}) for g in groups)
    for chunk in call.chunks
    for head in range(call.share)
  ]


def firsts(tiles: Sequence[tuple[Any, Any]]) -> list[Unit]:
  """Returns a unit of each tile, for what is done to the tile as a whole."""
  return [
    Unit(b, at, 0, 0, (0, 0, ()), slot, {})
    for slot, (b, at) in enumerate(tiles)
  ]


def pipeline(
  many: Sequence[Unit], *stages: Callable[..., Iterator[Any]], turns: bool
) -> None:
  """Computes all stages of every unit, earlier stages of the next ones before.

  Each is called with a unit and what the stage before returned, and yields run
  by run. The products of one unit then run beside the softmax of another: the
  compiler keeps to the order of the program by and large.

  Args:
    many: the units.
    stages: one after the other.
    turns: whether the stages of different units that meet take turns where
      they yield; else each is done as a whole.
  """
  found: dict[int, Any] = {}

  def go_on(some: dict[int, Iterator[Any]]) -> None:
    while some:
      for m, stage in tuple(some.items()):
        try:
          next(stage)
        except StopIteration as done:
          found[m] = done.value
          del some[m]

  for n in range(len(many) + len(stages) - 1):
    met = {
      n - i: stage(many[n - i], *found.pop(n - i, ()))
      for i, stage in enumerate(stages)
      if 0 <= n - i < len(many)
    }
    for some in [met] if turns else [{m: stage} for m, stage in met.items()]:
      go_on(some)


def each_tile(
  call: Call, body: Callable[[Sequence[tuple[Any, Any]]], None]
) -> None:
  """Calls body on all tiles (b, tile) of a program, some side by side."""
  unroll = side_by_side(call)
  rows, count = call.block[0], call.block[1] // call.share
  if unroll >= count:  # tiles are known when the kernel is compiled
    each(
      rows,
      unroll // count,
      lambda some: body([(b, at) for b in some for at in range(count)]),
    )
  else:
    each(
      rows * count,
      unroll,
      lambda some: body([(i // count, i % count) for i in some]),
    )


def each(
  count: int, unroll: int, body: Callable[[Sequence[Any]], None]
) -> None:
  """Calls body on all i < count; a loop over groups of `unroll` of them."""
  unroll = min(unroll, count)
  rounds = count // unroll
  if rounds > 1:
    jax.lax.fori_loop(
      0,
      rounds,
      lambda r, _: body([r * unroll + j for j in range(unroll)]),
      None,
    )
  else:
    body(range(unroll))
  rest = range(rounds * unroll, count)
  if rest:
    body(rest)
