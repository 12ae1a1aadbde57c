"""Dropout of attention weights that no tiling can change.

Whether a weight is kept is a hash of a seed, one for each row and head, and of
the absolute positions of its query and key. Plain integer arithmetic: XLA and
kernels for TPU and GPU drop the same weights, forward and backward, whatever
tiles they compute and however the batch and the heads are split.
"""

from typing import Any

import jax
import jax.numpy as jnp

# Odd constants that spread neighbouring positions over all bits: 2**32 divided
# by the golden ratio, and a multiplier of MurmurHash3.
_Q_STEP, _K_STEP = 0x9E3779B1, 0x85EBCA6B
_BITS = 24  # of the hash that are compared with the rate


def seeds(rng: jax.Array, batch: int, heads: int) -> jax.Array:
  """Returns one seed per row and head, uint32 [B N].

  Made before the batch and the heads are split over devices, so that what is
  dropped does not depend on the layout.
  """
  return jax.random.bits(rng, (batch, heads), jnp.uint32)


def keep(seed: Any, q_index: Any, k_index: Any, rate: float) -> jax.Array:
  """Returns whether weights are kept, bool of the broadcast shape.

  Args:
    seed: uint32 from `seeds`.
    q_index, k_index: absolute positions, integers.
    rate: probability of dropping, static, in [0, 1); rounded to 2**-24.
  """
  q_index, k_index = _words(q_index), _words(k_index)
  # The first mix is one for each query, the second one for each weight.
  row = _mix(_words(seed) ^ (q_index * jnp.uint32(_Q_STEP)))
  mixed = _mix(row + k_index * jnp.uint32(_K_STEP))
  # As signed numbers: not every kernel compiler compares unsigned ones.
  drawn = (mixed >> jnp.uint32(32 - _BITS)).astype(jnp.int32)
  return drawn >= round(rate * 2**_BITS)


def _words(x: Any) -> jax.Array:
  return jnp.asarray(x).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
  """Spreads each bit over all: a bijection of 32-bit words ("lowbias32").

  Constants by Chris Wellons' search for low avalanche bias, "Prospecting for
  hash functions", 2018.
  """
  x = x ^ (x >> jnp.uint32(16))
  x = x * jnp.uint32(0x7FEB352D)
  x = x ^ (x >> jnp.uint32(15))
  x = x * jnp.uint32(0x846CA68B)
  return x ^ (x >> jnp.uint32(16))
