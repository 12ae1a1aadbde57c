"""What the attention kernels for GPUs have in common: tiles and their walks.

Kernels are Pallas by the Triton route. A program holds a tile of queries (or
of keys) and walks over tiles of the other side. Arrays are not padded: tiles
that reach past the end load zeros there, by masked loads. Widths that are no
power of two are two tiles, 72 = 64 + 16 of which 8 count.

Which tiles are walked over comes from the block map of the mask: empty ones
are left out, full ones go without the predicate.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from mmjax.ops import blocks, dropout, masks

LOG2E = math.log2(math.e)
LSE_ROWS = 128  # kernels for Hopper take sums of rows by so many


@dataclasses.dataclass(frozen=True)
class Tiles:
  """Queries and keys of a tile, and how its kernel is compiled."""

  q: int
  k: int
  warps: int = 4
  stages: int = 2

  def params(self) -> triton.CompilerParams:
    return triton.CompilerParams(num_warps=self.warps, num_stages=self.stages)


class KernelTiles(NamedTuple):
  """The tiles of each kernel: `Tiles`, or those of a kernel for Hopper."""

  forward: Any
  d_q: Any
  d_kv: Any
  d_bias: Tiles


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that is static of a call; letters as in `ops.attention.attention`.

  width: H' of the values. mask: structure of the mask's pytree, or None, with
  the axes of its leaves. bias: its shape. The tiles are those of the forward
  kernel, of dq, of dk and dv, and of the bias' gradient.
  """

  B: int
  T: int
  S: int
  N: int
  K: int
  H: int
  width: int
  scale: float
  softcap: float | None
  rate: float
  mask: Any
  axes: tuple[str, ...]
  bias: tuple[int, ...] | None
  tiles: KernelTiles
  interpret: bool

  @property
  def group(self) -> int:
    return self.N // self.K

  def kinds(self, leaves: tuple[Any, ...], tiles: Tiles) -> Any:
    """Returns the block map: NumPy [nq nk], or with data leaves [B nq nk]."""
    lengths = (self.T, self.S, tiles.q, tiles.k)
    if self.mask is None:
      return blocks.static_map(None, *lengths)
    mask = jax.tree.unflatten(self.mask, leaves)
    if leaves:
      return blocks.dynamic_map(mask, *lengths)
    return blocks.static_map(mask, *lengths)

  def cost(self, flops: int, kinds: Any, *arrays: Any) -> pl.CostEstimate:
    """Returns the cost of `flops` a query, key and head, and of the traffic."""
    share = 1.0
    if isinstance(kinds, np.ndarray):
      share = float((kinds != blocks.EMPTY).mean())
    pairs = int(self.B * self.N * self.T * self.S * share)
    moved = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))
    return pl.CostEstimate(
      flops=flops * pairs, transcendentals=pairs, bytes_accessed=moved
    )


class Extra(NamedTuple):
  """What a call may have beside q, k and v: arrays, their specs, or refs."""

  leaves: tuple[Any, ...]
  bias: Any
  seeds: Any


def up(length: int, block: int) -> int:
  return -(-length // block) * block


def fit(vector: jax.Array, length: int, fill: float) -> jax.Array:
  """Returns [... L] cut to a length, or with `fill` up to it."""
  more = length - vector.shape[-1]
  if more <= 0:
    return vector[..., :length]
  pads = [(0, 0)] * (vector.ndim - 1) + [(0, more)]
  return jnp.pad(vector, pads, constant_values=fill)


def index(i: Any) -> Any:
  """Returns an index as interpret mode takes it: beside slices, no int."""
  return np.int32(i) if isinstance(i, int) else i


def parts(width: int) -> tuple[tuple[int, int], ...]:
  """Returns (offset, size) of the tiles of a width; sizes are powers of 2."""
  whole = max(16, pl.next_power_of_2(width))
  first = whole // 2
  rest = max(16, pl.next_power_of_2(max(width - first, 1)))
  if first >= 16 and first + rest < whole:
    return (0, first), (first, rest)
  return ((0, whole),)


def padded(width: int) -> int:
  return sum(size for _, size in parts(width))


def array_spec(
  length: int, block: int, width: int, at: Any, rows: int = 1, heads: int = 1
) -> pl.BlockSpec:
  """Returns the spec of a whole [B L N H]; at(*ids) gives row and head block."""

  def place(*ids):
    b, h = at(*ids)
    return b, 0, h, 0

  return pl.BlockSpec((rows, up(length, block), heads, padded(width)), place)


def vector_spec(
  length: int, block: int, at: Any, rows: int = 1, heads: int = 1
) -> pl.BlockSpec:
  """Returns the spec of a whole [B N L]."""
  return pl.BlockSpec((rows, heads, up(length, block)), lambda *i: (*at(*i), 0))


def extra_specs(
  plan: Plan, tiles: Tiles, extra: Extra, at: Any, rows: int = 1, heads: int = 1
) -> Extra:
  """Returns the specs of `extra`, whole but for rows and heads."""
  lengths = {"q": up(plan.T, tiles.q), "k": up(plan.S, tiles.k)}
  leaves = []
  for axis in plan.axes:
    if axis == "b":
      leaves.append(pl.BlockSpec((rows,), lambda *i: (at(*i)[0],)))
    else:
      leaves.append(
        pl.BlockSpec((rows, lengths[axis]), lambda *i: (at(*i)[0], 0))
      )
  bias = seeds = None
  if plan.bias is not None:
    many_b, many_n, many_q, many_k = (n > 1 for n in plan.bias)
    shape = (
      rows if many_b else 1,
      heads if many_n else 1,
      lengths["q"] if many_q else 1,
      lengths["k"] if many_k else 1,
    )

    def place(*ids):
      b, h = at(*ids)
      return b if many_b else 0, h if many_n else 0, 0, 0

    bias = pl.BlockSpec(shape, place)
  if extra.seeds is not None:
    seeds = pl.BlockSpec((rows, heads), lambda *i: at(*i))
  return Extra(tuple(leaves), bias, seeds)


def load(
  ref: Any,
  b: Any,
  start: Any,
  size: int,
  length: int,
  g: Any,
  width: int,
  tail: bool = True,
) -> tuple[jax.Array, ...]:
  """Loads rows [start, start + size) of a head, zero past length and width.

  Args:
    ref: of [B L N H]; b and g are row and head within it.
    tail: whether rows may lie past the length.
  """
  found = []
  for offset, wide in parts(width):
    mask = None
    if tail and length % size:
      mask = ((start + jnp.arange(size)) < length)[:, None]
    if offset + wide > width:
      inside = ((offset + jnp.arange(wide)) < width)[None]
      mask = inside if mask is None else mask & inside
    part = ref.at[index(b), pl.ds(start, size), index(g), pl.ds(offset, wide)]
    if mask is None:
      found.append(triton.load(part))
    else:
      mask = jnp.broadcast_to(mask, (size, wide))
      found.append(triton.load(part, mask=mask, other=0.0))
  return tuple(found)


def load_vector(
  ref: Any, at: tuple[Any, ...], start: Any, size: int, length: int, other: Any
) -> jax.Array:
  """Loads [start, start + size) of ref[at], `other` past the length."""
  part = ref.at[*map(index, at), pl.ds(start, size)]
  if length % size == 0:
    return triton.load(part)
  mask = (start + jnp.arange(size)) < length
  return triton.load(part, mask=mask, other=other)


def store_vector(ref: Any, vector: jax.Array, start: Any, length: int) -> None:
  """Stores rows that begin at `start` of L into their block [size]."""
  mask = None
  if length % vector.shape[0]:
    mask = (start + jnp.arange(vector.shape[0])) < length
  triton.store(ref, vector, mask=mask)


def store(
  ref: Any, values: tuple[jax.Array, ...], start: Any, length: int, width: int
) -> None:
  """Stores rows that begin at `start` of L into their block [size H]."""
  for value, (offset, wide) in zip(values, parts(width), strict=True):
    size = value.shape[0]
    mask = None
    if length % size:
      mask = ((start + jnp.arange(size)) < length)[:, None]
    if offset + wide > width:
      inside = ((offset + jnp.arange(wide)) < width)[None]
      mask = inside if mask is None else mask & inside
    if mask is not None:
      mask = jnp.broadcast_to(mask, (size, wide))
    part = ref.at[:, pl.ds(offset, wide)]
    triton.store(part, value.astype(ref.dtype), mask=mask)


def products(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> jax.Array:
  """Computes a b', float32, summed over the parts of the width."""
  found = [
    triton.dot(x, y, trans_b=True, **_exact(x))
    for x, y in zip(a, b, strict=True)
  ]
  return sum(found[1:], start=found[0])


def row_sums(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> jax.Array:
  """Computes the sums of a * b along the width, float32."""
  found = [
    (x.astype(jnp.float32) * y.astype(jnp.float32)).sum(1)
    for x, y in zip(a, b, strict=True)
  ]
  return sum(found[1:], start=found[0])


def add_mixed(
  acc: tuple[jax.Array, ...], weights: jax.Array, b: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
  """Computes acc + weights b, part by part, the weights in the dtype of b."""
  weights = weights.astype(b[0].dtype)
  return tuple(
    x + triton.dot(weights, y, **_exact(y)) for x, y in zip(acc, b, strict=True)
  )


def zeros(rows: int, width: int) -> tuple[jax.Array, ...]:
  return tuple(jnp.zeros((rows, wide), jnp.float32) for _, wide in parts(width))


def _exact(x: jax.Array) -> dict[str, Any]:
  # Triton's own choice for float32 would be tf32, of 10 bits.
  return {"allow_tf32": False} if x.dtype == jnp.float32 else {}


def stand(vector: jax.Array, axis: int) -> jax.Array:
  """Returns a vector as a tile that varies along `axis`."""
  return vector[:, None] if axis == 0 else vector[None, :]


@dataclasses.dataclass(frozen=True)
class Tile:
  """One tile of scores, of a row b and a head g within the refs of extra.

  q_axis: 0 where rows are queries, 1 where they are keys.
  """

  plan: Plan
  tiles: Tiles
  extra: Extra
  b: Any
  g: Any
  q0: Any
  k0: Any
  q_axis: int = 0

  def q_index(self) -> jax.Array:
    return stand(self.q0 + jnp.arange(self.tiles.q), self.q_axis)

  def k_index(self) -> jax.Array:
    return stand(self.k0 + jnp.arange(self.tiles.k), 1 - self.q_axis)

  def logits(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Returns logits in units of log 2, and the slope of the cap, or None."""
    plan = self.plan
    if plan.softcap is None and plan.bias is None:
      return x * (plan.scale * LOG2E), None
    x, slope = x * plan.scale, None
    if plan.softcap is not None:
      bent = jnp.tanh(x * (1.0 / plan.softcap))
      x, slope = plan.softcap * bent, 1.0 - bent * bent
    if plan.bias is not None:
      x = x + self._bias(plan.bias)
    return x * LOG2E, slope

  def _bias(self, shape: tuple[int, ...]) -> jax.Array:
    b = index(self.b if shape[0] > 1 else 0)
    g = index(self.g if shape[1] > 1 else 0)
    ds, mask = [], None
    for axis, (many, start, size, length) in enumerate(
      (
        (shape[2] > 1, self.q0, self.tiles.q, self.plan.T),
        (shape[3] > 1, self.k0, self.tiles.k, self.plan.S),
      )
    ):
      ds.append(pl.ds(start, size) if many else pl.ds(0, 1))
      if many and length % size:
        inside = stand((start + jnp.arange(size)) < length, axis)
        mask = inside if mask is None else mask & inside
    part = self.extra.bias.at[b, g, ds[0], ds[1]]
    if mask is None:
      bias = triton.load(part)
    else:
      mask = jnp.broadcast_to(mask, tuple(d.size for d in ds))
      bias = triton.load(part, mask=mask, other=0.0)
    bias = bias.astype(jnp.float32)
    return bias if self.q_axis == 0 else bias.T

  def seen(self, q_tail: bool = False, k_tail: bool = True) -> jax.Array | None:
    """Returns which pairs are seen, or None for all; tails are seen by none.

    q_tail, k_tail: whether to mind queries past T and keys past S.
    """
    plan, seen = self.plan, None
    q, k = self.q_index(), self.k_index()
    if plan.mask is not None:
      leaves = [
        self._leaf(ref, axis)
        for ref, axis in zip(self.extra.leaves, plan.axes, strict=True)
      ]
      seen = jax.tree.unflatten(plan.mask, leaves).seen(q, k)
    if k_tail and plan.S % self.tiles.k:
      seen = (k < plan.S) if seen is None else seen & (k < plan.S)
    if q_tail and plan.T % self.tiles.q:
      seen = (q < plan.T) if seen is None else seen & (q < plan.T)
    if seen is None:
      return None
    shape = (self.tiles.q, self.tiles.k)
    return jnp.broadcast_to(seen, shape if self.q_axis == 0 else shape[::-1])

  def _leaf(self, ref: Any, axis: str) -> jax.Array:
    if axis == "b":
      return ref[self.b]
    if axis == "q":
      start, size, length = self.q0, self.tiles.q, self.plan.T
      along = self.q_axis
    else:
      start, size, length = self.k0, self.tiles.k, self.plan.S
      along = 1 - self.q_axis
    vector = load_vector(ref, (self.b,), start, size, length, 0)
    return stand(vector, along)

  def kept(self, weights: jax.Array) -> jax.Array:
    """Drops weights, without the division by the share that is kept."""
    if self.plan.rate == 0.0:
      return weights
    kept = dropout.keep(
      self.extra.seeds[self.b, self.g],
      self.q_index(),
      self.k_index(),
      self.plan.rate,
    )
    return jnp.where(kept, weights, 0.0)


@dataclasses.dataclass(frozen=True)
class Walk:
  """The tiles that each program walks over, in one to three loops.

  partial: for each loop, whether its tiles need the predicate.
  fixed: where all programs walk alike, the limits of the loops.
  tables: else, arrays: limits [rows loops+1] of loops over neighbours, or a
    list of tiles [B rows columns] with the ends [B rows 2] of the loops in it.
  last_first: whether the last rows have most to do and should begin.
  """

  partial: tuple[bool, ...]
  fixed: tuple[int, ...] | None
  tables: tuple[Any, ...]
  last_first: bool = False

  def specs(self, at: Any) -> tuple[pl.BlockSpec, ...]:
    """Returns specs of the tables; at(*ids) gives the batch's row and row."""
    if len(self.tables) == 2:
      one = self.tables[0].shape[0] == 1

      def place(*ids):
        b, row = at(*ids)
        return 0 if one else b, row, 0

      return tuple(
        pl.BlockSpec((1, 1, table.shape[2]), place) for table in self.tables
      )
    return tuple(
      pl.BlockSpec((1, table.shape[1]), lambda *i: (at(*i)[1], 0))
      for table in self.tables
    )

  def run(self, refs: tuple[Any, ...], body: Any, carry: Any) -> Any:
    """Returns carry after body(column, carry, partial) of each tile."""
    for n, partial in enumerate(self.partial):
      if self.fixed is not None:
        lo, hi = self.fixed[n], self.fixed[n + 1]
        if hi - lo == 1:
          carry = body(lo, carry, partial)
          continue
      elif len(refs) == 2:
        lo, hi = refs[1][0, 0, n - 1] if n else 0, refs[1][0, 0, n]
      else:
        lo, hi = refs[0][0, n], refs[0][0, n + 1]

      def step(t, carry, partial=partial):
        column = refs[0][0, 0, t] if len(refs) == 2 else t
        return body(column, carry, partial)

      carry = jax.lax.fori_loop(lo, hi, step, carry)
    return carry


def walk(kinds: Any, tail: bool) -> Walk:
  """Returns how to walk along the rows of a block map.

  Args:
    kinds: [rows columns] of NumPy, or [B rows columns] of JAX.
    tail: whether the last column is partial whatever the map says, since its
      tile reaches past the end.
  """
  if not isinstance(kinds, np.ndarray):
    if tail:
      last = jnp.minimum(kinds[..., -1:], blocks.PARTIAL)
      kinds = jnp.concatenate([kinds[..., :-1], last], -1)
    return _listed(kinds, jnp)
  kinds = kinds.copy()
  if tail:
    kinds[:, -1] = np.minimum(kinds[:, -1], blocks.PARTIAL)
  work = (kinds != blocks.EMPTY).sum(1)
  last_first = bool(work[-1] > work[0])
  limits = _limits(kinds)
  if limits is None:
    return dataclasses.replace(_listed(kinds[None], np), last_first=last_first)
  used = [n for n in range(3) if (limits[:, n] < limits[:, n + 1]).any()]
  if not used:
    return Walk((), (0,), ())
  limits = limits[:, used[0] : used[-1] + 2]
  partial = tuple(n != 1 for n in range(used[0], used[-1] + 1))
  if (limits == limits[:1]).all():
    return Walk(partial, tuple(int(x) for x in limits[0]), ())
  return Walk(partial, None, (jnp.asarray(limits, jnp.int32),), last_first)


def _listed(kinds: Any, xp: Any) -> Walk:
  """Full tiles first, then partial ones; the empty ones are past the end."""
  order = xp.argsort(-kinds.astype(xp.int32), axis=-1, stable=True)
  full = (kinds == blocks.FULL).sum(-1)
  some = (kinds != blocks.EMPTY).sum(-1)
  tables = (order, xp.stack([full, some], -1))
  return Walk(
    (False, True), None, tuple(jnp.asarray(x, jnp.int32) for x in tables)
  )


def _limits(kinds: np.ndarray) -> np.ndarray | None:
  """Returns [rows 4]: partial, full and partial tiles, if that is all."""
  columns = kinds.shape[1]
  at = np.arange(columns)
  some, full = kinds != blocks.EMPTY, kinds == blocks.FULL

  def ends(which):
    lo = np.where(which, at, columns).min(1)
    hi = np.where(which, at + 1, 0).max(1)
    return lo, hi, (np.maximum(hi - lo, 0) == which.sum(1)).all()

  lo, hi, whole = ends(some)
  first, last, inner = ends(full)
  if not (whole and inner):
    return None
  lo = np.where(hi == 0, 0, lo)
  any_full = last > 0
  before = (any_full & (first > lo)).any()
  after = (any_full & (hi > last)).any()
  # Rows without full tiles are put where other rows have partial ones.
  alone = hi if before and not after else lo
  first, last = (
    np.where(any_full, first, alone),
    np.where(any_full, last, alone),
  )
  return np.stack([lo, first, last, hi], 1)


def as_leaves(mask: masks.Mask | None) -> tuple[jax.Array, ...]:
  """Returns the data of a mask as int32."""
  return tuple(jnp.asarray(x).astype(jnp.int32) for x in jax.tree.leaves(mask))
