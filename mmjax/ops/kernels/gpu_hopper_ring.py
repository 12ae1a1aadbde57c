"""What the backward kernels for Hopper are made of: tiles, slots, products.

A CTA has a ring of slots in shared memory for the tiles of the other side. A
slot has two barriers: `full`, on which each load arrives and which completes
with its bytes, and `free`, on which each computing warpgroup arrives once no
product reads the slot any more.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mmjax.ops.kernels import gpu_hopper_memory as hm
from mmjax.ops.kernels import gpu_tiles as gt
from mmjax.ops.kernels.gpu_hopper_grid import Grid
from mmjax.ops.kernels.gpu_hopper_memory import ROWS
from mmjax.ops.kernels.gpu_tiles import Plan


@dataclasses.dataclass(frozen=True)
class BackwardTiles:
  """How a backward kernel is cut.

  wgs: computing warpgroups of a CTA, 64 rows each (queries in `d_q`, keys in
    `d_kv`). step: how many keys or queries of the other side are taken at once,
    64 or 128. stages: slots of the ring, at least 2; since a slot is read until
    the next step begins, 2 leave its load only that step's time, 3 one more.
    held: of how many arrays a warpgroup's own rows stay in registers, which
    spares shared memory half of the traffic of the products with them: 0, 1
    (q in `d_q`, k in `d_kv`) or 2 (also d_out, v). resident: whether a CTA takes
    one tile of rows after the other, see `gpu_hopper_grid`; costs memory for
    results.
  """

  wgs: int = 2
  step: int = 64
  stages: int = 3
  held: int = 0
  resident: bool = False

  @property
  def rows(self) -> int:
    return ROWS * self.wgs

  @property
  def registers(self) -> tuple[int, int]:
    """Registers a thread of those that compute, and of those that load.

    64k registers hold 168 for each of 3 warpgroups, or 128 for each of 4.
    """
    return {1: (240, 40), 2: (240, 24), 3: (152, 56)}[self.wgs]


def call(
  grid: Grid,
  tiles: BackwardTiles,
  kernel: Any,
  name: str,
  cost: Any,
  out: Any,
  scratch: Any,
) -> Any:
  """Returns a kernel of CTAs with one warpgroup more than compute."""
  return plgpu.kernel(
    kernel,
    out_type=out,
    scratch_types=scratch,
    **grid.launch(),
    num_threads=tiles.wgs + 1,
    thread_name=hm.WG,
    kernel_name=name,
    **hm.costs(cost),
    compiler_params=plgpu.CompilerParams(
      approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
    ),
  )


def share(grid: Grid, tiles: BackwardTiles, at: Any, own_free: Any) -> None:
  """Splits a CTA into its warpgroups.

  Args:
    grid, tiles: of the kernel.
    at: at(item) returns its ring, load_own(w), which begins to load the rows of
      a warpgroup, and compute(), which ends with a store.
    own_free: barriers on which each warpgroup arrives once it needs its rows no
      more, if the CTA takes several items.
  """
  wg = lax.axis_index(hm.WG)

  def steps(item):
    return at(item)[0].count()

  def load(item):
    ring, load_own, _ = at(item)

    def own():
      for w in range(tiles.wgs):
        if grid.resident:
          wait = functools.partial(plgpu.barrier_wait, own_free.at[w])
          pl.when(item.count > 0)(wait)
        load_own(w)

    ring.feed(own)

  def compute(item):
    ring, _, run = at(item)

    def leave():
      ring.end()
      if grid.resident:
        plgpu.barrier_arrive(own_free.at[wg])

    run(leave)

  @pl.when(wg == tiles.wgs)
  def _load():
    plgpu.set_max_registers(tiles.registers[1], action="decrease")
    grid.for_each(load, steps)

  @pl.when(wg < tiles.wgs)
  def _compute():
    plgpu.set_max_registers(tiles.registers[0], action="increase")
    grid.for_each(compute, steps)
    plgpu.wait_smem_to_gmem(0)


@dataclasses.dataclass(frozen=True)
class Ring:
  """The slots of shared memory that the steps of a CTA take in turn.

  load(slot, g, column, barrier): begins to load a tile, of head g of `group`
  that the CTA walks over one after the other. full, free: a barrier of each
  slot. late: whether a step releases the slot of the step before, not its own.
  done: steps of the CTA before, None if it has no other items.
  """

  tiles: BackwardTiles
  walk: gt.Walk
  tables: tuple[Any, ...]
  row: Any
  group: int
  load: Any
  full: Any
  free: Any
  late: bool = True
  done: Any = None

  def steps(self) -> tuple[Any, Any]:
    """Returns the first step in the walk's order, and how many there are."""
    ends = _limits(self.walk, self.tables, self.row)
    return ends[0], ends[-1] - ends[0]

  def count(self) -> Any:
    """Returns the steps of an item."""
    return self.steps()[1] * self.group

  def begin(self, count: Any) -> None:
    """Begins the loads of a step, into a slot that is free."""
    first, many = self.steps()
    g, t = 0, count
    if self.group > 1:
      g, t = (f(count, jnp.int32(many)) for f in (lax.div, lax.rem))
    column = _column(self.walk, self.tables, self.row, first + t)
    slot = self.slot(count)
    self.load(slot, g, column, self.full.at[slot])

  def slot(self, count: Any) -> Any:
    if self.done is not None:
      count = self.done + count
    return lax.rem(count, jnp.int32(self.tiles.stages))

  # Of a warpgroup that loads.

  def feed(self, own: Any) -> None:
    """Loads all steps, each once no product reads its slot any more.

    own: loads what else there is. Of a CTA with several items, after the first
    step: its slot is free long before the rows of the item before are.
    """
    several = self.done is not None
    if not several:
      own()

    def one(count, carry):
      before = count if self.done is None else self.done + count

      @pl.when(before >= self.tiles.stages)
      def _():
        plgpu.barrier_wait(self.free.at[self.slot(count)])

      self.begin(count)
      if several:
        pl.when(count == 0)(own)
      return carry

    if self.walk.partial:
      lax.fori_loop(0, self.count(), one, jnp.int32(0))
    if not several:
      return
    empty = jnp.asarray(self.count() == 0)
    pl.when(empty)(own)
    if self.late:
      # Or it would be completed twice with nobody to see it.
      extra = functools.partial(
        plgpu.barrier_wait, self.free.at[self.tiles.stages]
      )
      pl.when(~empty)(extra)

  # Of a warpgroup that computes.

  def take(self, count: Any) -> Any:
    """Returns the slot of a step once it is loaded."""
    slot = self.slot(count)
    plgpu.barrier_wait(self.full.at[slot])
    return slot

  def release(self, slot: Any) -> None:
    plgpu.barrier_arrive(self.free.at[slot])

  def release_before(self, count: Any) -> None:
    """Releases the slot of the step before; of the first step, one past all.

    That one stands for a branch while products run.
    """
    stages = self.tiles.stages
    self.release(
      jnp.where(count == 0, jnp.int32(stages), self.slot(count + (stages - 1)))
    )

  def end(self) -> None:
    """Releases what the last step of an item left, if there are more items."""
    if self.done is not None and self.late:

      @pl.when(jnp.asarray(self.count() > 0))
      def _():
        self.release(self.slot(self.count() + (self.tiles.stages - 1)))


def signals(tiles: BackwardTiles, loads: int) -> tuple[Any, ...]:
  """Returns the barriers of a ring whose slots take so many loads."""
  full = plgpu.Barrier(num_arrivals=loads, num_barriers=tiles.stages)
  free = plgpu.Barrier(num_arrivals=tiles.wgs, num_barriers=tiles.stages + 1)
  return full, free


def own_free(tiles: BackwardTiles) -> Any:
  """Returns the barriers of `share`."""
  return plgpu.Barrier(num_arrivals=1, num_barriers=tiles.wgs)


def shared(count: int, rows: int, width: int, dtype: Any) -> tuple[Any, ...]:
  """Returns shared memory for `count` x [rows width], of each part its own."""
  return tuple(
    part.memory((count, rows), dtype, tiled=False) for part in hm.split(width)
  )


def tiled(shared: tuple[Any, ...], slot: Any) -> list[Any]:
  """Returns the parts of a slot as wgmma takes them."""
  return [tiled.at[slot] for _, tiled in shared]


def mine(shared: tuple[Any, ...], wg: Any, held: bool) -> list[Any]:
  """Returns the parts of a warpgroup's rows, in registers if they are held."""
  found = tiled(shared, wg)
  if held:
    wide = plgpu.Layout.WGMMA
    found = [plgpu.layout_cast(x[...], wide) for x in found]
  return found


def acc(columns: int) -> Any:
  return hm.MOSAIC.ACC((ROWS, columns), jnp.float32)


def accs(width: int) -> list[Any]:
  return [acc(size) for _, size in hm.split(width)]


def _columns(ref: Any) -> list[Any]:
  """Returns the slices of the parts of an array's width."""
  found = []
  for offset, size in hm.split(ref.shape[-1]):
    if offset + size > ref.shape[-1]:
      # Past the end no slice may be static.
      offset = offset + lax.axis_index(hm.WG) * 0
    found.append(pl.ds(offset, size))
  return found


def fetch(
  ref: Any, place: Any, shared: tuple[Any, ...], slot: Any, barrier: Any
) -> None:
  """Begins to load the rows of a head; past the array's end there are zeros.

  One arrival at the barrier for each part.
  """
  for columns, (plain, _) in zip(_columns(ref), shared, strict=True):
    plgpu.copy_gmem_to_smem(ref.at[(*place, columns)], plain.at[slot], barrier)


def store(
  values: Any, shared: tuple[Any, ...], slot: Any, ref: Any, place: Any
) -> None:
  """Begins to store parts of rows by way of shared memory, not past the end."""
  for (_, tiled), value in zip(shared, values, strict=True):
    tiled.at[slot][...] = value.astype(ref.dtype)
  plgpu.commit_smem()
  for columns, (plain, _) in zip(_columns(ref), shared, strict=True):
    plgpu.copy_smem_to_gmem(plain.at[slot], ref.at[(*place, columns)])


def multiply(acc: Any, a: list[Any], b: list[Any]) -> None:
  """Begins acc + a b', as many products as there are parts."""
  for x, y in zip(a, b, strict=True):
    plgpu.wgmma(acc, x, y.transpose((1, 0)))


def add(acc: Any, a: jax.Array, b: list[Any]) -> None:
  """Begins acc + a b, part by part."""
  for x, y in zip(acc, b, strict=True):
    plgpu.wgmma(x, a, y)


def row_sums(a: list[Any], b: list[Any]) -> jax.Array:
  """Computes the sums of a * b along the width, part by part, float32 [64]."""

  def read(ref):
    return plgpu.layout_cast(ref[...], plgpu.Layout.WGMMA).astype(jnp.float32)

  found = [(read(x) * read(y)).sum(axis=1) for x, y in zip(a, b, strict=True)]
  return sum(found[1:], start=found[0])


def vector(ref: Any, axis: int, step: int) -> Any:
  """Returns what makes a tile of scores of a vector along `axis` of them.

  ref: in shared memory, or an array.
  """
  layout = plgpu.Layout.WGMMA.reduce(1 - axis)
  vector = plgpu.layout_cast(ref[...], layout)
  return lambda: lax.broadcast_in_dim(vector, (ROWS, step), (axis,))


def seen(plan: Plan, q0: Any, k0: Any, step: int, q_axis: int = 0) -> Any:
  """Returns which pairs of a tile of scores are seen.

  Where rows are queries, keys past S are seen by none.
  """

  def index(start, axis):
    return start + plgpu.broadcasted_iota(
      jnp.int32, (ROWS, step), axis, layout=plgpu.Layout.WGMMA
    )

  q, k = index(q0, q_axis), index(k0, 1 - q_axis)
  seen = None
  if plan.mask is not None:
    seen = jax.tree.unflatten(plan.mask, ()).seen(q, k)
  if q_axis == 0 and plan.S % step:
    inside = k < plan.S
    seen = inside if seen is None else seen & inside
  return seen


def _limits(
  walk: gt.Walk, tables: tuple[Any, ...], row: Any
) -> tuple[Any, ...]:
  """Returns the first step of each loop of a row, and the end of the last."""
  loops = range(len(walk.partial))
  if walk.fixed is not None:
    return walk.fixed
  if len(tables) == 2:
    return jnp.int32(0), *(tables[1][0, row, n] for n in loops)
  return tuple(tables[0][row, n] for n in (*loops, len(loops)))


def _column(walk: gt.Walk, tables: tuple[Any, ...], row: Any, step: Any) -> Any:
  """Returns which tile a step is about."""
  return tables[0][0, row, step] if len(tables) == 2 else step


def run(
  walk: gt.Walk, tables: tuple[Any, ...], row: Any, body: Any, carry: Any
) -> Any:
  """Returns carry after body(column, carry, partial) of each tile of a row.

  Like `gt.Walk.run`, on tables that are whole in global memory.
  """
  limits = _limits(walk, tables, row)
  for n, partial in enumerate(walk.partial):
    lo, hi = limits[n], limits[n + 1]
    if walk.fixed is not None and hi - lo == 1:
      carry = body(lo, carry, partial)
      continue

    def step(t, carry, partial=partial):
      return body(_column(walk, tables, row, t), carry, partial)

    carry = lax.fori_loop(lo, hi, step, carry)
  return carry
