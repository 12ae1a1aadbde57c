"""Attention of short sequences on TPU: all keys of a head at once.

Blocks are as long as the sequence, so that any length runs without padding in
HBM: 197 patches, 20 regions, 1500 frames. A program holds a few heads of a few
rows and computes a plain softmax. Queries are cut into chunks, and a chunk
computes those runs of keys that its mask does not rule out: which are known
when the kernel is compiled, so that nothing is looked up. Where keys move on
with the queries, as the window of a local mask does, a chunk has a run of them
for each 128 queries, all in one tile.

Scores lie with their keys along the sublanes, and weights are what the MXU
holds while the few rows of a head's values, turned, go through it: a head of 64
is 64 rows to push where the queries would be hundreds.

Arrays come either with heads first, or as a model's projection leaves them,
[B T N*H]: heads narrower than a register then share its lanes, several to a
`tile`, and nothing is laid anew or padded. A head's scores are products of
whole registers in which the queries of the others are zero.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mmjax.ops.kernels import tpu_scores as tile
from mmjax.ops.kernels.tiles import LANES, Whole
from mmjax.ops.kernels.tpu_chunks import Chunk, Run, chunks, pairs, pieces

VMEM = 48 * 2**20  # bytes a program may take; tpu7x and v5p have 64 MiB


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that is static of a call; hashable.

  width: of a head where arrays are [B T N*H]; 0 where heads come first.
  """

  rule: tile.Rule
  tiles: Whole
  interpret: Any
  width: int = 0


class Call:
  """Blocks of rows, key heads and their queries, and the order of programs.

  q: [B K G T H], G query heads of K key heads, or [B T N*H]; k: [B K S H]; v:
  [B K S H']; bias: [B|1 K|1 G|1 S|1 T|1] or None; leaves of the mask: int32
  [B], [B 1 T] or [B 1 S]; seeds: of dropout, int32 [B N] or None.
  """

  def __init__(self, plan: Plan, args: Sequence[Any], backward: bool):
    q, k, v, bias, leaves, seeds = args
    self.packed = plan.width > 0
    if self.packed:
      (B, self.T, wide), self.S = q.shape, k.shape[1]
      K, G = wide // plan.width, 1
      self.widths = (plan.width, plan.width)
    else:
      B, K, G, self.T, H = q.shape
      self.S, self.widths = k.shape[2], (H, v.shape[-1])
    tiles = plan.tiles
    if backward and tiles.backward is not None:
      tiles = tiles.backward
    self.plan, self.backward, self.tiles = plan, backward, tiles
    self.lines: Any = plan.rule.spec() if plan.rule.laid else None
    self.heads = (B, K, G)
    # Heads that share a tile of lanes.
    self.share = max(1, LANES // plan.width) if self.packed else 1
    self.chunks = chunks(plan.rule, self.T, self.S, tiles.rows, backward)
    self.block = (tiles.batch, tiles.kv_heads, tiles.groups)
    self.counts = tuple(
      n // m for n, m in zip(self.heads, self.block, strict=True)
    )
    # What is summed over comes last, so that its block stays in place.
    self.order = [0, 1, 2]
    self.summed = [False, False, backward and self.counts[2] > 1]
    if backward and bias is not None:
      self.summed = [n == 1 for n in bias.shape[:3]]
      self.order.sort(key=lambda axis: self.summed[axis])
    axes = plan.rule.axes
    self.scalars = [x for x, a in zip(leaves, axes, strict=True) if a == "b"]
    self.vectors = [x for x, a in zip(leaves, axes, strict=True) if a != "b"]
    if seeds is not None:
      self.scalars.append(seeds.reshape(-1))
    self.inputs = [q, k, v, *([] if bias is None else [bias]), *self.vectors]
    self.specs = [self.of_heads(q, 3), self.of_heads(k, 2), self.of_heads(v, 2)]
    if bias is not None:
      self.specs.append(self.spec(bias.shape, 3))
    self.specs += [self.spec(x.shape, 1) for x in self.vectors]

  def of_heads(self, x: Any, blocked: int) -> pl.BlockSpec:
    """Blocks q, k, v or what has their shape; `blocked` of its first axes."""
    if not self.packed:
      return self.spec(x.shape, blocked)
    size = (self.block[0], x.shape[1], self.block[1] * self.plan.width)
    return pl.BlockSpec(
      size, lambda *programs: (self.at(programs)[0], 0, self.at(programs)[1])
    )

  def spec(self, shape: Sequence[int], blocked: int) -> pl.BlockSpec:
    """Blocks the first axes of an array by (b, k, g); the rest is whole."""
    alike = [shape[axis] == 1 for axis in range(blocked)]
    rest = tuple(shape[blocked:])

    def index(*programs):
      place = self.at(programs)
      first = [0 if alike[axis] else place[axis] for axis in range(blocked)]
      return (*first, *(0 for _ in rest))

    lead = [1 if alike[axis] else self.block[axis] for axis in range(blocked)]
    return pl.BlockSpec((*lead, *rest), index)

  def at(self, programs: Sequence[Any]) -> dict[int, Any]:
    """Returns which blocks (b, k, g) indices of the grid stand for."""
    return dict(zip(self.order, programs[:3], strict=True))

  def program(self) -> tuple[Any, Any, Any]:
    """Returns which blocks (b, k, g) this program has; within a kernel."""
    at = self.at([pl.program_id(i) for i in range(3)])
    return at[0], at[1], at[2]

  def first(self, axes: Sequence[int]) -> Any:
    """Returns whether the program is the first along all of these axes."""
    at = self.program()
    found = [at[axis] == 0 for axis in axes if self.counts[axis] > 1]
    return functools.reduce(jnp.logical_and, found) if found else True

  def run(self, kernel, name, extra, outs, scratch):
    """Calls the kernel for all programs.

    Args:
      kernel: called with this and lists of refs: scalars, inputs, extra, outs
        and scratch.
      name: of the kernel.
      extra: pairs of arrays and specs, after the inputs.
      outs: pairs of shapes and specs.
      scratch: shapes of scratch memory.
    """
    counts = [len(x) for x in (self.scalars, self.inputs, extra, outs, scratch)]
    ends = list(itertools.accumulate(counts))

    def body(*refs):
      parts = zip([0, *ends[:-1]], ends, strict=True)
      kernel(self, *([*refs[a:b]] for a, b in parts))

    scores = math.prod(self.heads) * pairs(self.chunks)
    H, other = self.widths
    products = 3 * H + 2 * other if self.backward else H + other
    inputs = [*self.inputs, *(x for x, _ in extra)]
    outs = list(outs)
    arrays = [*inputs, *(x for x, _ in outs)]
    if self.packed and self.counts[1] > 1 and not self.plan.interpret:
      # What XLA puts in vector memory by itself is cut into blocks by loads and
      # stores; from HBM the copy engine brings some of the lanes as they are.
      inputs = [_in_hbm(x) for x in inputs]
      outs = [(pltpu.HBM(x.shape, x.dtype), spec) for x, spec in outs]
    return pl.pallas_call(
      body,
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=len(self.scalars),
        grid=tuple(self.counts[axis] for axis in self.order),
        in_specs=[*self.specs, *(s for _, s in extra)],
        out_specs=[s for _, s in outs],
        scratch_shapes=scratch,
      ),
      out_shape=[x for x, _ in outs],
      name=name,
      interpret=self.plan.interpret,
      cost_estimate=pl.CostEstimate(
        flops=2 * scores * products,
        transcendentals=scores,
        bytes_accessed=sum(
          math.prod(x.shape) * x.dtype.itemsize for x in arrays
        ),
      ),
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=tuple(
          "arbitrary" if self.summed[axis] else "parallel"
          for axis in self.order
        ),
        vmem_limit_bytes=VMEM,
      ),
    )(*self.scalars, *inputs)


@jax.custom_batching.custom_vmap
def _in_hbm(x: jax.Array) -> jax.Array:
  return pltpu.with_memory_space_constraint(x, pltpu.HBM)


@_in_hbm.def_vmap
def _(axis_size, in_batched, x):  # jax 0.10 has no rule for it
  del axis_size
  return _in_hbm(x), in_batched[0]


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
    if isinstance(unit.tile, int):
      return unit.b, span, slice(unit.tile * width, (unit.tile + 1) * width)
    return unit.b, span, pl.ds(pl.multiple_of(unit.tile * width, LANES), width)

  def keys(self, ref, unit: Unit, span: slice) -> jax.Array:
    """Loads keys, or values, of all heads of the tile, [n lanes]."""
    kept, at = self.view(ref, unit, span, True)
    return kept[at]

  def turned(
    self, ref, unit: Unit, span: slice, of_keys: bool = False
  ) -> jax.Array:
    """Loads tokens of the unit's head, turned, [H n]."""
    name = (id(ref), span.start, span.stop)
    if name not in unit.memo:
      kept, at = self.view(ref, unit, span, of_keys)
      unit.memo[name] = kept[at].T
    return self._own(unit.memo[name], unit)

  def _own(self, x: jax.Array, unit: Unit) -> jax.Array:
    if self.call.share == 1:
      return x
    H = self.call.plan.width
    return x[unit.head * H : (unit.head + 1) * H]

  def alone(self, x: jax.Array, unit: Unit) -> jax.Array:
    """Puts a head's [H n] where it is in its tile, beside zeros, [lanes n]."""
    share = self.call.share
    parts = [jnp.zeros_like(x)] * share
    parts[unit.head] = x
    return parts[0] if share == 1 else jnp.concatenate(parts, 0)

  def write(self, ref, unit: Unit, span: slice, x: jax.Array) -> None:
    """Writes queries of a unit's head, [H n], once all of its tile are there."""
    found = unit.memo.setdefault((id(ref), span.start, span.stop, "out"), [])
    found.append(x.astype(ref.dtype))
    if len(found) == self.call.share:
      kept, at = self.view(ref, unit, span, False)
      kept[at] = join(found, 0).T

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

  def scores(self, unit: Unit) -> list[tuple[jax.Array, jax.Array | None]]:
    """Computes a unit's masked scores, (scores, slope) [keys queries] a run."""
    chunk = unit.chunk
    q = self.alone(self.turned(self.q, unit, unit.span), unit)
    found = []
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
      found.append((s, slope))
    return found

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


def pipeline(many: Sequence[Unit], *stages: Callable[..., Any]) -> None:
  """Computes all stages of every unit, earlier stages of the next ones before.

  Each is called with a unit and what the stage before returned. The products of
  one unit then run beside the softmax of another: the compiler keeps to the
  order of the program by and large.
  """
  found: dict[int, Any] = {}
  last = len(stages) - 1
  for n in range(len(many) + last):
    for i, stage in enumerate(stages):
      m = n - i
      if 0 <= m < len(many):
        found[m] = stage(many[m], *found.get(m, ()))


def each_tile(
  call: Call, unroll: int, body: Callable[[Sequence[tuple[Any, Any]]], None]
) -> None:
  """Calls body on all tiles (b, tile) of a program, `unroll` at a time."""
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
  rest = range(0 if rounds == 1 else rounds * unroll, count)
  if rest:
    body(rest)


def _kernel(call: Call, scalars, inputs, extra, outs, scratch):
  del extra
  out_ref, lse_ref = (*outs, None)[:2]
  heads = Heads(call, scalars, inputs, [*inputs[:3], out_ref], scratch)
  rule = call.plan.rule
  # The MXU sums the weights as they are multiplied, where it has rows left.
  H = call.widths[1]
  ones = 16 - H % 16 if H < LANES and rule.rate == 0.0 else 0

  def scores(unit):
    return ([s for s, _ in heads.scores(unit)],)

  def weights(unit, parts):
    """Computes (unscaled weights of each run, their maximum, their sum)."""
    if not unit.chunk[2]:
      return (), None, None
    tops = [s.max(0, keepdims=True) for s in parts]
    top = functools.reduce(jnp.maximum, tops)
    if rule.mask is not None or rule.biased:
      top = jnp.maximum(top, tile.LOWEST)
    powers = [tile.power(rule, s - top) for s in parts]
    if ones:
      return powers, top, None
    sums = [p.sum(0, keepdims=True) for p in powers]
    return powers, top, functools.reduce(jnp.add, sums)

  def products(unit, powers, top, total):
    out: Any = 0.0
    for run, p in zip(unit.chunk[2], powers, strict=True):
      p = heads.thin(p, unit, run).astype(heads.v.dtype)
      parts = []
      for queries, keys in pieces(unit.chunk, run):
        v = heads.turned(heads.v, unit, keys, of_keys=True)
        if ones:
          some = jnp.ones((ones, v.shape[1]), v.dtype)
          v = jnp.concatenate([v, some], 0)
        parts.append(tile.dot(v, cut(p, queries), 1, 0))
      out += join(parts, 1)
    start, stop, runs = unit.chunk
    # Of a row that sees nothing: infinite, so that its weights come out 0.
    lse = jnp.full((1, stop - start), jnp.inf, jnp.float32)
    if runs:
      if ones:
        out, total = out[:-ones], out[-1:]
      out = out * tile.inverse(total)
      lse = jnp.where(total == 0.0, lse, top + tile.logarithm(rule, total))
    else:
      out = jnp.zeros((call.widths[1], stop - start), out_ref.dtype)
    heads.write(out_ref, unit, unit.span, out)
    if lse_ref is not None:
      at = unit.b, heads.key_head(unit), unit.g
      lse_ref[(*at, slice(None), unit.span)] = lse

  def several(tiles):
    for unit in firsts(tiles):
      heads.lay(inputs[:3], unit)
    pipeline(units(call, tiles, range(call.block[2])), scores, weights, products)
    for unit in firsts(tiles):
      heads.lay_back(out_ref, unit)

  each_tile(call, side_by_side(call), several)


def forward(
  plan: Plan, args: Sequence[Any], keep: bool = False
) -> list[jax.Array]:
  """Computes attention.

  Args:
    plan: what is static.
    args: (q, k, v, bias, leaves, seeds) as of `Call`, but a bias as of the
      caller, [B|1 K|1 G|1 T|1 S|1].
    keep: whether to return the log of sums, too.

  Returns:
    The output, shaped as q (but H' wide), and the log of sums [B K G 1 T].
  """
  call = Call(plan, keys_first(args), backward=False)
  q, v = args[0], args[2]
  out = jax.ShapeDtypeStruct((*q.shape[:-1], v.shape[-1]), q.dtype)
  outs = [(out, call.of_heads(out, 3))]
  if keep:
    lse = jax.ShapeDtypeStruct((*call.heads, 1, call.T), jnp.float32)
    outs.append((lse, call.spec(lse.shape, 3)))
  return call.run(_kernel, "attention_whole", [], outs, of_lines(call, q, 4))


def side_by_side(call: Call) -> int:
  """Returns how many tiles are laid side by side."""
  if call.backward and call.heads[2] > 1:
    return 1  # the query heads of one are
  most = call.block[0] * call.block[1] // call.share
  return min(most, max(1, call.tiles.unroll // call.share // call.block[2]))


def of_lines(call: Call, x: jax.Array, count: int) -> list[Any]:
  """Returns the memory for `count` arrays laid line by line: of each tile."""
  if call.lines is None:
    return []
  size = (side_by_side(call), call.T, call.share * call.widths[0])
  return [pltpu.VMEM(size, x.dtype)] * count


def keys_first(args: Sequence[Any]) -> Sequence[Any]:
  """Turns the bias of arguments, so that its keys come first as in scores."""
  q, k, v, bias, *rest = args
  return q, k, v, None if bias is None else bias.swapaxes(3, 4), *rest
