"""Multi-head attention as a layer: projections around the one door."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.ops import attention as ops
from mmjax.ops.masks import Mask
from mmjax.parallel import rules


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
    x_kv = x_q if x_kv is None else x_kv

    # With one key head there is nothing to split, and every query head may
    # still live on its own device.
    kv_name = "kv_heads" if kv_heads > 1 else None
    q = self._project("query", x_q, self.heads, head_dim, "heads")
    k = self._project("key", x_kv, kv_heads, head_dim, kv_name)
    v = self._project("value", x_kv, kv_heads, head_dim, kv_name)
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

  def _project(
    self, name: str, x: jax.Array, heads: int, head_dim: int, axis: str | None
  ) -> jax.Array:
    x = nn.DenseGeneral(
      (heads, head_dim),
      dtype=self.dtype,
      use_bias=self.use_bias,
      kernel_init=rules.with_axes(
        nn.initializers.xavier_uniform(), ("embed", axis, "head_dim")
      ),
      bias_init=rules.with_axes(nn.initializers.zeros, (axis, "head_dim")),
      name=name,
    )(x)
    return rules.constrain(x, "batch", "length", axis, "head_dim")

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
