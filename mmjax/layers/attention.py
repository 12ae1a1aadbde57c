"""Multi-head attention as a layer: projections around the one door."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.ops import attention as ops
from mmjax.ops.masks import Mask
from mmjax.parallel import rules


class Projection(nn.Module):
  """The kernel and the bias of a projection to heads.

  Attributes:
    heads: N.
    head_dim: H.
    axis: logical axis of the heads, or None where they are never split.
    dtype: of what is returned; the parameters are float32.
    use_bias: whether there is a bias.
  """

  heads: int
  head_dim: int
  axis: str | None
  dtype: Any = jnp.float32
  use_bias: bool = True

  @nn.compact
  def __call__(self, width: int) -> tuple[jax.Array, jax.Array | None]:
    """Returns the kernel [D N H], D = width, and the bias [N H] or None."""
    shape = (self.heads, self.head_dim)
    kernel = self.param(
      "kernel",
      rules.with_axes(_projection_init, ("embed", self.axis, "head_dim")),
      (width, *shape),
    ).astype(self.dtype)
    if not self.use_bias:
      return kernel, None
    bias = self.param(
      "bias",
      rules.with_axes(nn.initializers.zeros, (self.axis, "head_dim")),
      shape,
    )
    return kernel, bias.astype(self.dtype)


def _projection_init(key, shape, dtype=jnp.float32):
  # Fan-out is all heads: a projection is one matrix.
  flat = (shape[0], shape[1] * shape[2])
  return nn.initializers.xavier_uniform()(key, flat, dtype).reshape(shape)


def project(
  x: jax.Array,
  weights: Sequence[tuple[jax.Array, jax.Array | None]],
  axis: str | None,
) -> list[jax.Array]:
  """Projects x [B T D] by each kernel, in one matrix product for all.

  Args:
    x: tokens.
    weights: kernels [D N H] and biases [N H] of one shape.
    axis: logical axis of the heads.

  Returns:
    An array [B T N H] for each.
  """
  # Stacked on an axis of their own: the heads stay split as they are.
  kernel = jnp.stack([kernel for kernel, _ in weights], axis=1)
  y = jnp.einsum("btd,dpnh->btpnh", x.astype(kernel.dtype), kernel)
  found = []
  for i, (_, bias) in enumerate(weights):
    part = y[:, :, i] if bias is None else y[:, :, i] + bias[None, None]
    found.append(rules.constrain(part, "batch", "length", axis, "head_dim"))
  return found


class Attention(nn.Module):
  """Self- or cross-attention with its four projections.

  Each device computes its own rows of the batch and its own heads.

  Attributes:
    heads: N, query heads.
    head_dim: H; None is D / N.
    kv_heads: K, key heads, a divisor of N; None is N.
    dtype: of the computation; parameters and softmax are float32.
    dropout: rate on the attention weights.
    use_bias: of the projections.
    impl: implementation of `ops.attention`; None is the best that runs.
  """

  heads: int
  head_dim: int | None = None
  kv_heads: int | None = None
  dtype: Any = jnp.float32
  dropout: float = 0.0
  use_bias: bool = True
  impl: str | None = None

  @nn.compact
  def __call__(
    self,
    x_q: jax.Array,
    x_kv: jax.Array | None = None,
    mask: Mask | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """Attends from x_q [B T D] to x_kv [B S D'] (None: to x_q).

    Returns:
      [B T D].

    Raises:
      InputError: D is no multiple of the heads and head_dim is not given.
    """
    width = x_q.shape[-1]
    kv_heads = self.kv_heads or self.heads
    if self.head_dim is None and width % self.heads:
      raise errors.InputError(
        f"attention width {width} is no multiple of heads = {self.heads}; "
        "change one of them or give head_dim."
      )
    head_dim = self.head_dim or width // self.heads

    # With one key head there is nothing to split, and every query head may
    # still live on its own device.
    kv_name = "kv_heads" if kv_heads > 1 else None
    query, key, value = (
      Projection(n, head_dim, axis, self.dtype, self.use_bias, name=name)
      for name, n, axis in (
        ("query", self.heads, "heads"),
        ("key", kv_heads, kv_name),
        ("value", kv_heads, kv_name),
      )
    )
    if x_kv is None and kv_heads == self.heads:
      q, k, v = project(x_q, [query(width), key(width), value(width)], "heads")
    else:
      x_kv = x_q if x_kv is None else x_kv
      (q,) = project(x_q, [query(width)], "heads")
      given = x_kv.shape[-1]
      k, v = project(x_kv, [key(given), value(given)], kv_name)
    out = self._attend(q, k, v, mask, kv_name, deterministic)

    out = nn.DenseGeneral(
      width,
      axis=(-2, -1),
      dtype=self.dtype,
      use_bias=self.use_bias,
      kernel_init=rules.with_axes(
        nn.initializers.xavier_uniform(), ("heads", "head_dim", "embed")
      ),
      bias_init=rules.with_axes(nn.initializers.zeros, ("norm",)),
      name="out",
    )(out)
    return rules.constrain(out, "batch", "length", "embed")

  def _attend(
    self,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask | None,
    kv_name: str | None,
    deterministic: bool,
  ) -> jax.Array:
    rate = 0.0 if deterministic else self.dropout
    keys = None
    if rate > 0.0:
      keys = ops.dropout_keys(self.make_rng("dropout"), q.shape[0], self.heads)

    def attend(q, k, v, mask, keys):
      return ops.attention(
        q,
        k,
        v,
        mask=mask,
        dropout_rate=rate,
        dropout_rng=keys,
        impl=self.impl,
      )

    q_names = ("batch", None, "heads", None)
    kv_names = ("batch", None, kv_name, None)
    return rules.per_shard(
      attend,
      [q_names, kv_names, kv_names, ("batch",), ("batch", "heads")],
      q_names,
    )(q, k, v, mask, keys)
