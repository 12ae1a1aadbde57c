import jax
import numpy as np
import pytest

from mmjax.ops import dropout


def drawn(rate, seeds=16, T=64, S=96, first=0):
  seed = dropout.seeds(jax.random.key(first), 1, seeds)[0]
  kept = dropout.keep(
    seed[:, None, None],
    np.arange(T)[None, :, None],
    np.arange(S)[None, None],
    rate,
  )
  return np.asarray(kept)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.5, 0.9])
def test_the_rate_is_kept_along_every_axis(rate):
  kept = drawn(rate)
  assert kept.shape == (16, 64, 96) and kept.dtype == bool
  deviation = max(rate * (1 - rate), 1e-9) ** 0.5
  for axes in ((0, 1, 2), (0, 1), (0, 2), (1, 2)):
    mean = kept.mean(axes)
    n = kept.size / max(np.size(mean), 1)
    # 4.5 standard deviations: about one in 10**5 draws, of a few hundred.
    assert np.abs(mean - (1 - rate)).max() <= 4.5 * deviation / n**0.5


def test_neighbours_are_independent():
  kept = drawn(0.5).astype(float) * 2 - 1
  n = kept.size
  for shift in (1, 2, 3, 8, 16, 32):
    for axis in (0, 1, 2):
      if shift >= kept.shape[axis]:
        continue
      product = kept * np.roll(kept, shift, axis)
      assert np.abs(product.mean()) < 4.5 / n**0.5, (shift, axis)
  # And no row repeats another: what 32 bits of state would make likely.
  rows = np.packbits(kept.reshape(-1, 96) > 0, axis=-1)
  assert len(np.unique(rows, axis=0)) == len(rows)
  # The query and the key do not change places.
  square = kept[:, :, :64]
  product = (square * square.transpose(0, 2, 1))[:, ~np.eye(64, dtype=bool)]
  assert np.abs(product.mean()) < 4.5 / (product.size / 2) ** 0.5


def test_consecutive_seeds_are_independent():
  kept = np.asarray(
    dropout.keep(
      np.arange(64, dtype=np.uint32)[:, None, None],
      np.arange(32)[None, :, None],
      np.arange(32)[None, None],
      0.5,
    )
  )
  signs = kept.reshape(64, -1) * 2.0 - 1
  correlation = signs @ signs.T / signs.shape[1]
  off = correlation[~np.eye(64, dtype=bool)]
  assert np.abs(off).max() < 5 / signs.shape[1] ** 0.5


def test_a_tile_draws_what_the_whole_draws():
  whole = drawn(0.3)
  seed = dropout.seeds(jax.random.key(0), 1, 16)[0]
  tile = jax.jit(
    lambda s, q, k: dropout.keep(s, q + np.arange(8)[:, None], k, 0.3)
  )(seed[5], 24, np.arange(40, 72)[None])
  np.testing.assert_array_equal(tile, whole[5, 24:32, 40:72])
  assert (tile != whole[6, 24:32, 40:72]).any()


def test_equals_the_arithmetic_in_plain_python():
  word = 2**32

  def mix(x):
    x ^= x >> 16
    x = x * 0x7FEB352D % word
    x ^= x >> 15
    x = x * 0x846CA68B % word
    return x ^ x >> 16

  for seed, q, k in [(0, 0, 0), (7, 3, 5), (word - 1, 40_000, 31_999)]:
    row = mix(seed ^ q * 0x9E3779B1 % word)
    x = mix((row + k * 0x85EBCA6B) % word) / word
    for rate in (x - 1e-6, x + 1e-6):
      got = dropout.keep(np.uint32(seed), q, k, min(max(rate, 0.0), 0.999))
      assert bool(got) == (x >= rate), (seed, q, k)
