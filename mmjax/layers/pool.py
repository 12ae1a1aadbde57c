"""From the tokens of an input to one vector."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.layers.attention import Attention
from mmjax.layers.mlp import MLP
from mmjax.layers.norm import layer_norm
from mmjax.ops.masks import KeyPadding, Mask
from mmjax.parallel import rules


def mean(x: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
  """Averages tokens [B T D] to [B D], in float32.

  Args:
    x: tokens.
    lengths: int [B], average only the first lengths[b] tokens (none: 0).
  """
  if lengths is None:
    return x.mean(1, dtype=jnp.float32).astype(x.dtype)
  keep = jnp.arange(x.shape[1])[None, :] < lengths[:, None]
  total = jnp.where(keep[:, :, None], x.astype(jnp.float32), 0.0).sum(1)
  return (total / jnp.maximum(lengths, 1)[:, None]).astype(x.dtype)


def mean_where(x: jax.Array, keep: jax.Array) -> jax.Array:
  """Averages the tokens where keep is true: [B T D], [B T] -> [B D].

  In float32; a row without any gives 0. Integers are true unless they are 0.
  """
  keep = (keep != 0)[:, :, None]
  total = jnp.where(keep, x.astype(jnp.float32), 0.0).sum(1)
  return (total / jnp.maximum(keep.sum(1), 1)).astype(x.dtype)


def unit(x: jax.Array) -> jax.Array:
  """Scales rows of [B D] to length 1, in float32; a zero row stays zero."""
  x = x.astype(jnp.float32)
  squares = jnp.square(x).sum(-1, keepdims=True)
  # A floor under the square, not the root, whose gradient at 0 is infinite.
  return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def at(x: jax.Array, index: jax.Array) -> jax.Array:
  """Takes token index[b] of each row: [B T D], int [B] -> [B D]."""
  # A sum over one place instead of a gather: its gradient is no scatter, and
  # it is split by batch whatever the layout.
  keep = jnp.arange(x.shape[1])[None, :] == index[:, None]
  return jnp.where(keep[:, :, None], x, 0).sum(1)


def head(classes: int, dtype: Any, name: str) -> nn.Dense:
  """Returns a linear classifier of features [... D] that starts at zero."""
  zeros = nn.initializers.zeros
  return nn.Dense(
    classes,
    dtype=dtype,
    kernel_init=rules.with_axes(zeros, ("embed", "classes")),
    bias_init=rules.with_axes(zeros, ("classes",)),
    name=name,
  )


class MAPHead(nn.Module):
  """Attention pooling: a learned query, then an MLP with a residual.

  "Scaling vision transformers", Zhai et al. 2022.

  Attributes:
    heads: N.
    mlp: F.
    act: name of the activation.
    epsilon: of the norm.
    dtype: of the computation.
  """

  heads: int
  mlp: int
  act: str = "gelu"
  epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    lengths: jax.Array | None = None,
    mask: Mask | None = None,
  ) -> jax.Array:
    """Maps [B T D] to [B D].

    Args:
      x: tokens.
      lengths: int [B], only the first lengths[b] tokens of a row are read.
      mask: the tokens that are read, where they are not the first.
    """
    B, _, D = x.shape
    probe = self.param(
      "probe",
      rules.with_axes(nn.initializers.xavier_uniform(), ("positions", "embed")),
      (1, D),
    )
    probe = jnp.broadcast_to(probe.astype(self.dtype)[None], (B, 1, D))
    if lengths is not None:
      read = KeyPadding(lengths)
      mask = read if mask is None else mask & read
    x = Attention(self.heads, dtype=self.dtype, name="attention")(
      probe, x, mask
    )
    y = layer_norm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
    y = MLP(self.mlp, act=self.act, dtype=self.dtype, name="mlp")(y)
    return (x + y)[:, 0]
