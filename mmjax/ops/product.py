"""Products of tokens with weights, in the form that a CPU does fastest."""

import math
from typing import Any

import jax

from mmjax.ops import choice


def dot_general(
  x: jax.Array,
  weights: jax.Array,
  dimension_numbers: Any,
  *,
  bias: jax.Array | None = None,
  **keywords: Any,
) -> jax.Array:
  """Computes what `jax.lax.dot_general` does, of the same arguments.

  On one CPU, the last axes of x by the first of weights are a product of two
  matrices, so that the gradient of weights is one too, of tokens by tokens.
  From more axes XLA makes one with copies of tokens laid out anew. The bias is
  added to rows, too: its gradient is their sum, which over several axes takes
  a CPU five times as long.

  Elsewhere they are multiplied as they stand: to merge axes would copy tokens
  on a TPU, unless their number is a multiple of 8, and undo how they are split
  over devices.

  Args:
    x: tokens [... *C].
    weights: [*C *F].
    bias: [*F], added to each token; None adds nothing.
    dimension_numbers, **keywords: see `jax.lax.dot_general`.
  """
  (given, taken), batch = dimension_numbers
  n = len(given)
  if (
    n == x.ndim
    or tuple(given) != tuple(range(x.ndim - n, x.ndim))
    or tuple(taken) != tuple(range(n))
    or any(batch)
    or jax.sharding.get_abstract_mesh().size > 1
    or choice.platform() != "cpu"
  ):
    out = jax.lax.dot_general(x, weights, dimension_numbers, **keywords)
    if bias is None:
      return out
    return out + jax.lax.expand_dims(bias, range(out.ndim - bias.ndim))
  rows, columns = x.shape[:-n], weights.shape[n:]
  depth = math.prod(weights.shape[:n])
  out = jax.lax.dot_general(
    x.reshape(math.prod(rows), depth),
    weights.reshape(depth, math.prod(columns)),
    (((1,), (0,)), ((), ())),
    **keywords,
  )
  if bias is not None:
    out = out + bias.reshape(1, -1)
  return out.reshape(*rows, *columns)
