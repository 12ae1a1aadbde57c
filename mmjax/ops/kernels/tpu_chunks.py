"""Which keys the queries of a short sequence look at, on TPU: chunks and runs.

Known when the kernel is compiled: what depends on the data of a mask counts as
unknown, and is looked at.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmjax.ops import blocks
from mmjax.ops.kernels import tpu_scores as tile


class Run(NamedTuple):
  """Keys that the queries of a chunk look at.

  first, stop: the keys.
  ask: whether to ask the mask about them.
  step: 0, or so many queries see these keys, the next `step` of them those that
    are `step` further, and so on.
  """

  first: int
  stop: int
  ask: bool
  step: int = 0


Chunk = tuple[int, int, tuple[Run, ...]]  # queries [first, stop) and their keys

_GRAIN = 128  # queries, and keys where lanes are, a block of the map of runs
_FINE = 32  # keys, where no array but k and v is cut by them
_RUNS = 4  # of a chunk, at most
# What a score costs in a chunk of at most so many queries, forward and backward:
# by the simulator, a causal mask of 1280 tokens on v6e, four heads side by side.
_COSTS = (
  ((128, 1.57), (256, 1.21), (384, 1.06), (math.inf, 1.0)),
  ((128, 1.17), (256, 1.0), (384, 1.04), (math.inf, 1.05)),
)
_ALONE = 1e9  # for a chunk of one query, which would not use the MXU


@functools.lru_cache(maxsize=256)
def chunks(
  rule: tile.Rule,
  T: int,
  S: int,
  rows: int,
  backward: bool = False,
  block_k: int = 0,
) -> tuple[Chunk, ...]:
  """Cuts T queries into chunks of least cost, with the keys each must look at.

  Args:
    rule: of the call; its mask decides.
    T, S: lengths.
    rows: queries a chunk, at most.
    backward: of which pass.
    block_k: keys a run, about; 0 leaves runs as long as they are.
  """
  fine = not rule.biased and "k" not in rule.axes
  grain = _FINE if fine else _GRAIN
  kinds = blocks.static_map(rule.spec(), T, S, _GRAIN, grain)
  count, most = len(kinds), max(1, rows // _GRAIN) if rows < T else len(kinds)
  # The least cost of the queries from each block on, and its first chunk.
  costs: list[tuple[float, Chunk]] = [(0.0, (T, T, ()))] * (count + 1)
  for i in reversed(range(count)):
    found = []
    for j in range(min(i + most, count), i, -1):
      start, stop = i * _GRAIN, min(j * _GRAIN, T)
      runs = None
      if fine and stop == j * _GRAIN:
        runs = _slide(kinds[i:j], S)
      chunk = (start, stop, runs or _runs(_all(kinds[i:j]), S, grain))
      each = 1.0  # where all is computed, `rows` alone says how to cut
      if rule.mask is not None:
        each = next(x for n, x in _COSTS[backward] if stop - start <= n)
      alone = _ALONE if stop - start == 1 else 0.0
      found.append((each * pairs([chunk]) + alone + costs[j][0], chunk))
    costs[i] = min(found, key=lambda x: x[0])
  cut, start = [], 0
  while start < T:
    chunk = costs[start // _GRAIN][1]
    runs = _sliced(chunk[2], block_k) if block_k else chunk[2]
    cut.append((*chunk[:2], runs))
    start = chunk[1]
  return tuple(cut)


def _sliced(runs: Sequence[Run], size: int) -> tuple[Run, ...]:
  """Cuts long runs of keys; the last of each may be longer than `size`."""
  found = []
  for run in runs:
    count = 1 if run.step else max(1, round((run.stop - run.first) / size))
    edges = [(run.first + i * size) // _GRAIN * _GRAIN for i in range(1, count)]
    found += [
      run._replace(first=a, stop=b)
      for a, b in itertools.pairwise([run.first, *edges, run.stop])
    ]
  return tuple(found)


def pairs(cut: Sequence[Chunk]) -> int:
  """Returns how many scores of a head are computed."""
  return sum(
    (stop - start) * (run.stop - run.first)
    for start, stop, runs in cut
    for run in runs
  )


def pieces(chunk: Chunk, run: Run) -> list[tuple[slice, slice]]:
  """Returns which queries, counted in their chunk, see which keys of a run."""
  count = chunk[1] - chunk[0]
  step = run.step or count
  return [
    (slice(i, i + step), slice(run.first + i, run.stop + i))
    for i in range(0, count, step)
  ]


def aligned(keys: slice, S: int) -> slice:
  """Returns the keys from and to the next multiples of 128, or to the end."""
  start = keys.start // _GRAIN * _GRAIN
  return slice(start, min(-(-keys.stop // _GRAIN) * _GRAIN, S))


def _all(kinds: np.ndarray) -> np.ndarray:
  """Returns of what kind the blocks of some rows are together."""
  alike = (kinds == kinds[:1]).all(0)
  return np.where(alike, kinds[0], blocks.PARTIAL)


def _slide(kinds: np.ndarray, S: int) -> tuple[Run, ...] | None:
  """Returns runs of rows whose keys move on as their queries do, or None.

  Beside what all rows see, each sees one interval of its own: that of the row
  before, further on by as many keys as a row has queries.
  """
  step = _GRAIN // _FINE
  some = kinds != blocks.EMPTY
  if len(kinds) < 2 or not some.any(1).all():
    return None
  # What all see is what no row lacks, or all before a row's last interval.
  apart = some.copy()
  for row in apart:
    gaps = np.flatnonzero(~row[: np.flatnonzero(row)[-1]])
    row[gaps[-1] if gaps.size else 0 :] = False
  for common in (np.broadcast_to(some.all(0), some.shape), apart):
    own = some & ~common
    if not own.any(1).all() or (common != common[0]).any():
      continue
    first, stop = own.argmax(1), own.shape[1] - own[:, ::-1].argmax(1)
    moved = first[0] + step * np.arange(len(own))
    whole = (own.sum(1) == stop - first).all() and stop[-1] * _FINE <= S
    width = stop[0] - first[0]
    if not whole or (first != moved).any() or (stop != moved + width).any():
      continue
    runs = _runs(np.where(common[0], _all(kinds), blocks.EMPTY), S, _FINE)
    if any(
      not common[0, a // _FINE : -(-b // _FINE)].all() for a, b, *_ in runs
    ):
      continue  # too many runs: some were joined
    ask = bool((kinds[own] == blocks.PARTIAL).any())
    a, b = int(first[0]) * _FINE, int(stop[0]) * _FINE
    return (*runs, Run(a, b, ask, _GRAIN))
  return None


def _runs(kinds: np.ndarray, S: int, grain: int) -> tuple[Run, ...]:
  """Joins blocks of keys that are alike; few runs, if some do work in vain."""
  runs: list[list[int]] = []  # [first block, stop block, kind]
  for j, kind in enumerate(kinds.tolist()):
    if kind == blocks.EMPTY:
      continue
    if runs and runs[-1][1] == j and runs[-1][2] == kind:
      runs[-1][1] = j + 1
    else:
      runs.append([j, j + 1, kind])
  while len(runs) > _RUNS:
    gaps = [b[0] - a[1] for a, b in itertools.pairwise(runs)]
    # The smallest gap; of those the one that spares the fewest predicates.
    i = min(
      range(len(gaps)),
      key=lambda i: (gaps[i], runs[i + 1][1] - runs[i][0]),
    )
    runs[i : i + 2] = [[runs[i][0], runs[i + 1][1], blocks.PARTIAL]]
  return tuple(
    Run(a * grain, min(b * grain, S), kind == blocks.PARTIAL)
    for a, b, kind in runs
  )
