"""A function of rows on a CPU, a few rows at a time: what its cache holds."""

import functools
from collections.abc import Callable
from typing import Any

import jax

# What has more than _LARGE bytes goes through memory, _CACHE bytes at a time do
# not: a cache that cores share has 16 MB or more, and must also hold what is
# read and returned.
_LARGE, _CACHE = 2**25, 10 * 2**20


def parts(rows: int, size: int) -> int:
  """Returns in how many equal parts rows go through the cache.

  Args:
    rows: B, how many.
    size: bytes that all of them need at once.

  Returns:
    The least divisor of B whose parts need at most 10 MB; B if none does. 1
    for what needs 32 MB or less, which is no slower at once, and under a mesh
    of several devices, to which the rows are dealt already.
  """
  if size <= _LARGE or jax.sharding.get_abstract_mesh().size > 1:
    return 1
  divisors = (n for n in range(1, rows + 1) if rows % n == 0)
  return next((n for n in divisors if size // n <= _CACHE), rows)


def in_turn(
  f: Callable[[jax.Array, Any], jax.Array],
  x: jax.Array,
  rest: Any,
  size: int,
) -> jax.Array:
  """Computes f(x, rest), whose rows do not depend on each other.

  A CPU does a few at a time, unless it is differentiated: a backward pass
  wants the intermediate results of all rows anyway, and the sum of their
  gradients at once. Other platforms do all of them.

  Args:
    f: maps [B ...] and a tree of arrays to [B ...]; closes over no arrays.
    x: [B ...].
    rest: a tree of arrays, the same for all rows.
    size: bytes of the largest intermediate result.

  Returns:
    f(x, rest).
  """
  n = parts(len(x), size)
  return f(x, rest) if n == 1 else _in_turn(f, n, x, rest)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _in_turn(f, n, x, rest):
  def by_parts(x, rest):
    split = x.reshape(n, -1, *x.shape[1:])
    out = jax.lax.map(lambda part: f(part, rest), split)
    return out.reshape(-1, *out.shape[2:])

  return jax.lax.platform_dependent(x, rest, cpu=by_parts, default=f)


@_in_turn.defjvp
def _in_turn_jvp(f, n, primals, tangents):
  return jax.jvp(f, primals, tangents)
