"""A walk over the steps visits each block that there is to do, in order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops import blocks, masks
from mmjax.ops.kernels import tpu_steps


def _walk(steps, b):
  table = None if steps.table is None else np.asarray(steps.table).reshape(-1)
  return [
    tuple(int(x) for x in steps.read(table, b, p))
    for p in range(int(steps.count))
  ]


@pytest.mark.parametrize("keys_major", [False, True])
@pytest.mark.parametrize("name", ["none", "causal", "late", "segments"])
def test_steps_are_the_blocks_of_the_map(name, keys_major):
  T, S, block_q, block_k = 70, 90, 16, 32
  ids = jnp.asarray(np.sort(np.arange(180).reshape(2, 90) * 7 % 5, axis=1))
  mask = {
    "none": None,
    "causal": masks.Causal(),
    "late": masks.Causal(-40),
    "segments": masks.Segments(ids[:, :T], ids),
  }[name]
  steps = tpu_steps.steps(mask, T, S, block_q, block_k, keys_major=keys_major)
  kinds = np.asarray(blocks.dynamic_map(mask, T, S, block_q, block_k))
  counts = []
  for b in range(2):
    kind = kinds[b % len(kinds)]
    walk = _walk(steps, b)
    busy = {(q, k): what for q, k, what, *_ in walk if what != blocks.EMPTY}
    assert set(busy) == set(zip(*np.nonzero(kind), strict=True))
    for (q, k), what in busy.items():
      tail = q == 4 or k == 2  # the last ones are not full length
      full = kind[q, k] == blocks.FULL and not tail
      assert what == (blocks.FULL if full else blocks.PARTIAL)
    # Each block of the major axis is begun and ended once, even if empty.
    major = 1 if keys_major else 0
    begun = [s[major] for s in walk if s[3]]
    assert begun == list(range(kind.shape[major]))
    assert begun == [s[major] for s in walk if s[4]]
    live = False
    for *_, what, first, last in walk:
      live = live or bool(first)
      assert live or what == blocks.EMPTY
      live = live and not last
    counts.append(len(walk))
  assert counts[0] == counts[1]  # one grid for all rows


def test_data_is_sorted_out_under_jit():
  ids = jnp.asarray(np.arange(128)[None] // 16)

  @jax.jit
  def count(ids):
    mask = masks.Segments(ids, ids, pad_id=-1)
    return tpu_steps.steps(mask, 128, 128, 16, 16, keys_major=False).count

  assert count(ids) == 8  # of 64
  assert count(ids * 0) == 64


def test_every_block_is_listed_if_asked():
  steps = tpu_steps.steps(
    masks.Causal(), 64, 64, 16, 16, keys_major=False, every=True
  )
  assert len(_walk(steps, 0)) == 16


def test_a_table_has_to_fit():
  assert not tpu_steps.too_many(32768, 32768, 512, 512)
  assert tpu_steps.too_many(2**20, 2**20, 1024, 1024)
