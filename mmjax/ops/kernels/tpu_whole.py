"""Attention of short sequences on TPU: all keys of a head at once.

Blocks are as long as the sequence, so that any length runs without padding in
HBM: 197 patches, 20 regions, 1500 frames. A program holds a few heads of a few
rows and computes a plain softmax. Queries are cut into chunks, and a chunk
computes those runs of keys that its mask does not rule out: which are known
when the kernel is compiled, so that nothing is looked up. Where keys move on
with the queries, as the window of a local mask does, a chunk has a run of them
for each 128 queries, all in one tile.

Backward is one kernel that computes the weights again: what is kept of the
forward pass is q, k and v alone.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mmjax.ops.kernels import tpu_scores as tile
from mmjax.ops.kernels.tiles import Whole
from mmjax.ops.kernels.tpu_chunks import Chunk, Run, chunks, pairs, pieces

VMEM = 48 * 2**20  # bytes a program may take; tpu7x and v5p have 64 MiB


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that is static of a call; hashable."""

  rule: tile.Rule
  tiles: Whole
  interpret: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
  plan: Plan,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  bias: jax.Array | None,
  leaves: tuple[jax.Array, ...],
  seeds: jax.Array | None,
) -> jax.Array:
  """Computes attention of short sequences.

  Args:
    plan: what is static.
    q: [B K G T H], G query heads of K key heads.
    k: [B K S H].
    v: [B K S H'].
    bias: [B|1 K|1 G|1 T|1 S|1] or None.
    leaves: of the mask, int32; [B], [B 1 T] or [B 1 S].
    seeds: of dropout, int32 [B N] or None.

  Returns:
    [B K G T H'].
  """
  return _forward(plan, (q, k, v, bias, leaves, seeds))


def _keep(plan, q, k, v, bias, leaves, seeds):
  args = (q, k, v, bias, leaves, seeds)
  return _forward(plan, args), args


def _pull(plan, kept, d_out):
  d_q, d_k, d_v, d_bias = _backward(plan, kept, d_out)
  return d_q, d_k, d_v, d_bias, tuple(None for _ in kept[4]), None


attend.defvjp(_keep, _pull)


class _Call:
  """Blocks of rows, key heads and their queries, and the order of programs."""

  def __init__(self, plan: Plan, args: Sequence[Any], backward: bool):
    q, k, v, bias, leaves, seeds = args
    B, K, G, T, _ = q.shape
    tiles = plan.tiles
    if backward and tiles.backward is not None:
      tiles = tiles.backward
    self.plan, self.backward, self.tiles = plan, backward, tiles
    self.groups = K * G
    self.chunks = chunks(plan.rule, T, k.shape[2], tiles.rows)
    self.block = (tiles.batch, tiles.kv_heads, tiles.groups)
    self.counts = tuple(
      n // m for n, m in zip((B, K, G), self.block, strict=True)
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
    self.specs = [self.spec(x.shape, n) for x, n in ((q, 3), (k, 2), (v, 2))]
    if bias is not None:
      self.specs.append(self.spec(bias.shape, 3))
    self.specs += [self.spec(x.shape, 1) for x in self.vectors]

  def spec(self, shape: Sequence[int], blocked: int) -> pl.BlockSpec:
    """Blocks the first axes of an array by (b, k, g); the rest is whole."""
    alike = [shape[axis] == 1 for axis in range(blocked)]
    rest = tuple(shape[blocked:])

    def index(*programs):
      place = dict(zip(self.order, programs[:3], strict=True))
      first = [0 if alike[axis] else place[axis] for axis in range(blocked)]
      return (*first, *(0 for _ in rest))

    lead = [1 if alike[axis] else self.block[axis] for axis in range(blocked)]
    return pl.BlockSpec((*lead, *rest), index)

  def program(self) -> tuple[Any, Any, Any]:
    """Returns which blocks (b, k, g) this program has; within a kernel."""
    at = {axis: pl.program_id(i) for i, axis in enumerate(self.order)}
    return at[0], at[1], at[2]

  def first(self, axes: Sequence[int]) -> Any:
    """Returns whether the program is the first along all of these axes."""
    at = self.program()
    found = [at[axis] == 0 for axis in axes if self.counts[axis] > 1]
    return functools.reduce(jnp.logical_and, found) if found else True

  def run(self, kernel, name, inputs, specs, outs, scratch):
    """Calls the kernel for all programs."""
    q, v = self.inputs[0], self.inputs[2]
    heads = q.shape[0] * self.groups
    scores = heads * pairs(self.chunks)
    widths = q.shape[-1] + v.shape[-1]
    products = (3 * q.shape[-1] + 2 * v.shape[-1]) if self.backward else widths
    moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in (*inputs, *outs))
    return pl.pallas_call(
      functools.partial(kernel, self),
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=len(self.scalars),
        grid=tuple(self.counts[axis] for axis in self.order),
        in_specs=[*self.specs, *specs],
        out_specs=[self.spec(x.shape, x.ndim - 2) for x in outs],
        scratch_shapes=scratch,
      ),
      out_shape=outs,
      name=name,
      interpret=self.plan.interpret,
      cost_estimate=pl.CostEstimate(
        flops=2 * scores * products,
        transcendentals=scores,
        bytes_accessed=moved,
      ),
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=tuple(
          "arbitrary" if self.summed[axis] else "parallel"
          for axis in self.order
        ),
        vmem_limit_bytes=VMEM,
      ),
    )(*self.scalars, *inputs)


class _Head:
  """Reads what a query head of a program needs, within a kernel."""

  def __init__(self, call: _Call, scalars, refs, keys: int):
    self.call, self.rule, self.keys = call, call.plan.rule, keys
    self.q, self.k, self.v = refs[:3]
    biased = self.rule.biased
    self.bias: Any = refs[3] if biased else None
    self.scalars, self.vectors = scalars, refs[3 + biased :]
    self.program = call.program()

  def tile_bias(self, b, k, g, chunk: Chunk, run: Run):
    """Loads the bias of a tile, or None."""
    if self.bias is None:
      return None
    at, queries, keys = self.bias_at(b, k, g, chunk, run)
    return self.bias[
      (*at, *((queries, keys) if self.keys else (keys, queries)))
    ]

  def bias_at(self, b, k, g, chunk: Chunk, run: Run):
    """Returns where in a bias, or its gradient, a tile is."""
    shape = self.bias.shape
    at = [0 if n == 1 else i for n, i in zip(shape, (b, k, g), strict=False)]
    length_q, length_k = shape[3:] if self.keys else shape[:2:-1]
    queries = slice(0, 1) if length_q == 1 else slice(*chunk[:2])
    keys = slice(0, 1) if length_k == 1 else slice(*run[:2])
    return at, queries, keys

  def seen(self, b, chunk: Chunk, run: Run, q, k):
    """Computes the mask's predicate of a tile."""
    scalars, vectors = iter(self.scalars), iter(self.vectors)
    row = self.program[0] * self.call.block[0] + b
    leaves = []
    for axis in self.rule.axes:
      if axis == "b":
        leaves.append(next(scalars)[row])
      elif axis == "q":
        part = next(vectors)[b, :, slice(*chunk[:2])]
        leaves.append(tile.vector(part, 1 - self.keys))
      else:
        part = next(vectors)[b, :, slice(*run[:2])]
        leaves.append(tile.vector(part, self.keys))
    return tile.seen(self.rule, leaves, q, k)

  def scores(self, b, k, g, chunk: Chunk):
    """Computes the masked scores of a chunk, a list of (scores, slope)."""
    q = self.q[b, k, g, slice(*chunk[:2]), :]
    found = []
    for run in chunk[2]:
      parts = []
      for queries, keys in pieces(chunk, run):
        first = chunk[0] + queries.start
        part = first, first + queries.stop - queries.start, ()
        some = Run(keys.start, keys.stop, run.ask)
        s, slope = tile.scores(
          self.rule,
          _cut(q, queries, 0),
          self.k[b, k, keys, :],
          self.tile_bias(b, k, g, part, some),
          self.keys,
        )
        if run.ask:
          allowed = self.seen(b, part, some, *self.positions(part, some))
          s = tile.hide(s, allowed)
        parts.append((s, slope))
      s = _join([s for s, _ in parts], 1 - self.keys)
      slope = None
      if self.rule.softcap is not None:
        slope = _join([slope for _, slope in parts], 1 - self.keys)
      found.append((s, slope))
    return found

  def positions(self, chunk: Chunk, run: Run):
    """Returns the positions of a tile's queries and keys."""
    count_q, count_k = chunk[1] - chunk[0], run.stop - run.first
    q, k = tile.positions(chunk[0], count_q, run.first, count_k, self.keys)
    if run.step:
      k = k + ((q - chunk[0]) & -run.step)
    return q, k

  def weights(self, parts):
    """Computes (unscaled weights of each run, inverse of their sum)."""
    tops = [s.max(self.keys, keepdims=True) for s, _ in parts]
    top = functools.reduce(jnp.maximum, tops)
    if self.rule.mask is not None or self.rule.biased:
      top = jnp.maximum(top, tile.LOWEST)
    powers = [tile.power(self.rule, s - top) for s, _ in parts]
    sums = [p.sum(self.keys, keepdims=True) for p in powers]
    total = functools.reduce(jnp.add, sums)
    if self.rule.mask is None and not self.rule.biased:
      return powers, 1.0 / total
    return powers, tile.inverse(total)

  def seed(self, b, k, g):
    """Returns the seed of dropout of a head."""
    at = [
      first * size + inner
      for first, size, inner in zip(
        self.program, self.call.block, (b, k, g), strict=True
      )
    ]
    K, G = (
      n * m
      for n, m in zip(self.call.counts[1:], self.call.block[1:], strict=True)
    )
    return self.scalars[-1][(at[0] * K + at[1]) * G + at[2]]


def _forward_kernel(call: _Call, *refs):
  scalars, refs = refs[: len(call.scalars)], refs[len(call.scalars) :]
  out_ref = refs[-1]
  keys = call.tiles.keys
  head = _Head(call, scalars, refs[:-1], keys)
  rule = call.plan.rule

  def weights(b, k, g, chunk):
    if not chunk[2]:
      return (), 0.0
    return head.weights(head.scores(b, k, g, chunk))

  def products(b, k, g, chunk, powers, inverse):
    out: Any = 0.0
    for run, p in zip(chunk[2], powers, strict=True):
      if rule.rate > 0.0:
        where = head.positions(chunk, run)
        p = tile.thin(rule, p, head.seed(b, k, g), *where)
      p = p.astype(head.v.dtype)
      parts = []
      for queries, seen in pieces(chunk, run):
        v = head.v[b, k, seen, :]
        if keys == 1:
          parts.append(tile.dot(_cut(p, queries, 0), v, 1, 0))
        else:
          parts.append(tile.dot(v, _cut(p, queries, 1), 0, 0))
      out += _join(parts, 1 - keys)
    start, stop, runs = chunk
    if not runs:
      out = jnp.zeros((stop - start, out_ref.shape[-1]), out_ref.dtype)
    elif keys == 1:
      out = out * inverse
    else:
      out = (out * inverse).T
    out_ref[b, k, g, start:stop, :] = out.astype(out_ref.dtype)

  _, kv_heads, groups = call.block

  def several(heads):
    units = []
    for i in heads:
      at = i // (kv_heads * groups), i // groups % kv_heads, i % groups
      units += [(*at, chunk) for chunk in call.chunks]
    _pipeline(units, weights, products)

  _each(math.prod(call.block), call.tiles.unroll, several)


def _backward_kernel(call: _Call, *refs):
  scalars, refs = refs[: len(call.scalars)], refs[len(call.scalars) :]
  rule, biased = call.plan.rule, call.plan.rule.biased
  inputs = len(call.inputs)
  d_out_ref, dq_ref, dk_ref, dv_ref = refs[inputs : inputs + 4]
  d_bias_ref: Any = refs[inputs + 4] if biased else None
  sums = refs[inputs + 4 + biased :]
  head = _Head(call, scalars, refs[:inputs], keys=0)
  if biased:

    @pl.when(call.first([axis for axis in range(3) if call.summed[axis]]))
    def _():
      d_bias_ref[...] = jnp.zeros(d_bias_ref.shape, d_bias_ref.dtype)

  def of_bias(b, k, g, chunk, run, ds):
    at, queries, keys = head.bias_at(b, k, g, chunk, run)
    for axis, n in enumerate(head.bias.shape[3:]):
      if n == 1:
        ds = ds.sum(axis, keepdims=True)
    d_bias_ref[(*at, keys, queries)] += ds

  def weights(b, k, g, chunk):
    if not chunk[2]:
      return (), 0.0
    q, d_out = _rows(head.q, b, k, g, chunk), _rows(d_out_ref, b, k, g, chunk)
    parts = head.scores(b, k, g, chunk)
    powers, inverse = head.weights(parts)
    found, shift = [], 0.0
    for run, power, (_, slope) in zip(chunk[2], powers, parts, strict=True):
      p = power * inverse
      dp = _join(
        [
          tile.dot(head.v[b, k, keys, :], _cut(d_out, queries, 0), 1, 1)
          for queries, keys in pieces(chunk, run)
        ],
        1,
      )
      kept = p
      if rule.rate > 0.0:
        where = head.positions(chunk, run)
        kept = tile.thin(rule, p, head.seed(b, k, g), *where)
        dp = tile.thin(rule, dp, head.seed(b, k, g), *where)
      shift += (p * dp).sum(0, keepdims=True)
      found.append((p, kept.astype(q.dtype), dp, slope))
    return found, shift

  def products(b, k, g, chunk, found, shift):
    q, d_out = _rows(head.q, b, k, g, chunk), _rows(d_out_ref, b, k, g, chunk)
    dq: Any = 0.0
    for run, (p, kept, dp, slope) in zip(chunk[2], found, strict=True):
      ds = p * (dp - shift)
      if biased:
        of_bias(b, k, g, chunk, run, ds)
      if slope is not None:
        ds = ds * slope
      ds = (ds * rule.scale).astype(q.dtype)
      parts = []
      for queries, keys in pieces(chunk, run):
        some = _cut(ds, queries, 1)
        d_v = tile.dot(_cut(kept, queries, 1), _cut(d_out, queries, 0), 1, 0)
        _add(dv_ref, sums, 1, b, k, keys, d_v)
        d_k = tile.dot(some, _cut(q, queries, 0), 1, 0)
        _add(dk_ref, sums, 0, b, k, keys, d_k)
        parts.append(tile.dot(some, head.k[b, k, keys, :], 0, 0))
      dq += _join(parts, 0)
    start, stop, runs = chunk
    if not runs:
      dq = jnp.zeros((stop - start, dq_ref.shape[-1]), dq_ref.dtype)
    dq_ref[b, k, g, start:stop, :] = dq.astype(dq_ref.dtype)

  def several(heads):
    units = [(*at, chunk) for at in heads for chunk in call.chunks]
    _pipeline(units, weights, products)

  rows, kv_heads, groups = call.block
  unroll = call.tiles.unroll

  if not sums:  # a query head is alone with its key head, in one tile
    _each(
      rows * kv_heads,
      unroll,
      lambda many: several([(i // kv_heads, i % kv_heads, 0) for i in many]),
    )
    return

  def of_key_head(i):
    b, k, last = i // kv_heads, i % kv_heads, head.program[2]

    @pl.when(last == 0)
    def _():
      for total in sums:
        total[...] = jnp.zeros(total.shape, total.dtype)

    _each(groups, unroll, lambda many: several([(b, k, g) for g in many]))

    @pl.when(last == call.counts[2] - 1)
    def _():
      for out, total in zip((dk_ref, dv_ref), sums, strict=True):
        out[b, k] = total[...].astype(out.dtype)

  _each(rows * kv_heads, 1, lambda many: of_key_head(many[0]))


def _rows(ref, b, k, g, chunk: Chunk):
  """Loads a chunk's rows of q, or of the gradient of the output."""
  return ref[b, k, g, slice(*chunk[:2]), :]


def _cut(x: jax.Array, queries: slice, axis: int) -> jax.Array:
  """Returns some queries of a tile."""
  if queries.stop - queries.start == x.shape[axis]:
    return x
  return jax.lax.slice_in_dim(x, queries.start, queries.stop, axis=axis)


def _join(parts: Sequence[Any], axis: int) -> Any:
  """Lays tiles of pieces side by side along the queries."""
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def _pipeline(units, first, second) -> None:
  """Computes first and second of every unit, first of the next one before.

  The products of one unit then run beside the softmax of another: the compiler
  keeps to the order of the program by and large.
  """
  found: Any = None
  for n, unit in enumerate(units):
    following = first(*unit)
    if n:
      second(*units[n - 1], *found)
    found = following
  second(*units[-1], *found)


def _add(out, sums, which, b, k, keys, value):
  """Adds to the sum over chunks and heads, or writes where there is one."""
  if sums:
    sums[which][keys, :] += value
  else:
    out[b, k] = value.astype(out.dtype)


def _each(
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


def _forward(plan: Plan, args: Sequence[Any]) -> jax.Array:
  q, k, v, bias, leaves, seeds = args
  if bias is not None and plan.tiles.keys == 0:
    bias = bias.swapaxes(3, 4)  # the keys come first, as in the tiles
  call = _Call(plan, (q, k, v, bias, leaves, seeds), backward=False)
  out = jax.ShapeDtypeStruct((*q.shape[:4], v.shape[-1]), q.dtype)
  return call.run(
    _forward_kernel, "attention_whole", call.inputs, [], [out], []
  )[0]


def _backward(plan: Plan, args: Sequence[Any], d_out: jax.Array) -> list[Any]:
  q, k, v, bias, leaves, seeds = args
  if bias is not None:
    bias = bias.swapaxes(3, 4)  # the keys come first, as in the tiles
  call = _Call(plan, (q, k, v, bias, leaves, seeds), backward=True)
  outs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)]
  if bias is not None:
    outs.append(jax.ShapeDtypeStruct(bias.shape, jnp.float32))
  one_tile = (
    q.shape[2] == 1
    and len(call.chunks) == 1
    and [run[:2] for run in call.chunks[0][2]] == [(0, k.shape[2])]
  )
  scratch = [pltpu.VMEM((k.shape[2], x.shape[-1]), jnp.float32) for x in (k, v)]
  found = call.run(
    _backward_kernel,
    "attention_whole_backward",
    [*call.inputs, d_out],
    [call.spec(d_out.shape, 3)],
    outs,
    [] if one_tile else scratch,
  )
  if bias is None:
    return [*found, None]
  *found, d_bias = found
  return [*found, d_bias.swapaxes(3, 4).astype(bias.dtype)]
