"""Multi-head attention as a layer: projections around the one door."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers.position import rotate
from mmjax.ops import attention as ops
from mmjax.ops import choice, dropout, product
from mmjax.ops.bias import Bias
from mmjax.ops.masks import Mask
from mmjax.parallel import rules


class Projection(nn.Module):
  """The weights of a dense layer, D -> N x H: of query, key or value.

  One product for all three would be no faster: to join the kernels, to take
  the result apart and to join its gradient is 5 % of the training step of a ViT
  on a CPU.

  Attributes:
    heads: N.
    head_dim: H.
    axis: logical axis of the heads, or None where they are never split.
    dtype: of the computation; the parameters are float32.
    use_bias: whether there is a bias.
    std: standard deviation of the kernel at the start; None is Xavier's.
  """

  heads: int
  head_dim: int
  axis: str | None
  dtype: Any = jnp.float32
  use_bias: bool = True
  std: float | None = None

  @nn.compact
  def __call__(self, width: int) -> "Weights":
    """Returns the weights for tokens of D = `width`."""
    shape = (self.heads, self.head_dim)
    init = _projection_init
    if self.std is not None:
      init = nn.initializers.normal(self.std)
    kernel = self.param(
      "kernel",
      rules.with_axes(init, ("embed", self.axis, "head_dim")),
      (width, *shape),
    ).astype(self.dtype)
    bias = None
    if self.use_bias:
      bias = self.param(
        "bias",
        rules.with_axes(nn.initializers.zeros, (self.axis, "head_dim")),
        shape,
      ).astype(self.dtype)
    return Weights(kernel, bias, self.axis)


class Weights(NamedTuple):
  """A kernel [D N H], a bias [N H] or None, and the heads' logical axis."""

  kernel: jax.Array
  bias: jax.Array | None
  axis: str | None

  def project(self, x: jax.Array) -> jax.Array:
    """Maps [B T D] to [B T N H]."""
    axes = (((2,), (0,)), ((), ()))
    x = x.astype(self.kernel.dtype)
    x = product.dot_general(x, self.kernel, axes, bias=self.bias)
    return rules.constrain(x, "batch", "length", self.axis, "head_dim")


def _projection_init(key, shape, dtype=jnp.float32):
  # Fan-out is all heads: a projection is one matrix.
  flat = (shape[0], shape[1] * shape[2])
  return nn.initializers.xavier_uniform()(key, flat, dtype).reshape(shape)


class KV(NamedTuple):
  """The keys and values of one attention layer, each [B S K H]."""

  k: jax.Array
  v: jax.Array


class Attention(nn.Module):
  """Self- or cross-attention with its four projections.

  Each device computes its own rows of the batch and its own heads.

  Attributes:
    heads: N, query heads.
    head_dim: H; None is D / N.
    kv_heads: K, key heads, a divisor of N; None is N.
    dtype: of the computation; parameters and softmax are float32.
    dropout: rate on the attention weights.
    biases: which projections have one: letters of "qkvo".
    scale: of the products; None is H**-0.5.
    softcap: of the scores, see `ops.attention`.
    rotary: theta of rotary positions; None is none.
    out_width: of what is returned; None is D.
    std, out_std: standard deviations at the start of query, key and value,
      and of the projection back; None is Xavier's.
    impl: implementation of `ops.attention`; None is the best that runs.
  """

  heads: int
  head_dim: int | None = None
  kv_heads: int | None = None
  dtype: Any = jnp.float32
  dropout: float = 0.0
  biases: str = "qkvo"
  scale: float | None = None
  softcap: float | None = None
  rotary: float | None = None
  out_width: int | None = None
  std: float | None = None
  out_std: float | None = None
  impl: str | None = None

  @nn.compact
  def __call__(
    self,
    x_q: jax.Array,
    x_kv: jax.Array | None = None,
    mask: Mask | None = None,
    deterministic: bool = True,
    *,
    bias: jax.Array | Bias | None = None,
    factor: jax.Array | None = None,
    positions: jax.Array | None = None,
    cache: KV | None = None,
    slot: jax.Array | None = None,
  ) -> Any:
    """Attends from x_q [B T D] to x_kv [B S D'] (None: to x_q).

    With a cache, x_q may be the next tokens only:
    - x_kv None and a slot: their keys and values are written to the cache from
      there on, and they attend to all of it, where the mask allows;
    - x_kv None and no slot: they attend to the cache as it is (the memory of
      cross-attention);
    - x_kv given: they attend to it, and its keys and values are the new cache.

    Args:
      x_q, x_kv: tokens.
      mask: over queries and keys, those of the cache if there is one.
      deterministic: no dropout.
      bias: added to the scores, [B|1 N|1 T S], or a table of `ops.bias`.
      factor: float32 scalar, of the scores before the bias; None is 1.
      positions: int32 [B|1 T] of x_q, for rotary positions; None is 0, 1, ...
      cache: keys and values of this layer.
      slot: int32 scalar.

    Returns:
      [B T D], or [B T out_width]; with a cache, also the new cache.

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
      Projection(
        n,
        head_dim,
        axis,
        self.dtype,
        letter in self.biases,
        self.std,
        name=name,
      )
      for name, n, axis, letter in (
        ("query", self.heads, "heads", "q"),
        ("key", kv_heads, kv_name, "k"),
        ("value", kv_heads, kv_name, "v"),
      )
    )
    q = query(width).project(x_q)
    if factor is not None:
      q = q * factor.astype(q.dtype)
    if cache is not None and x_kv is None and slot is None:
      k, v = cache.k.astype(self.dtype), cache.v.astype(self.dtype)
    else:
      x_kv = x_q if x_kv is None else x_kv
      w_k, w_v = key(x_kv.shape[-1]), value(x_kv.shape[-1])
      whole = deterministic or not self.dropout
      if cache is mask is bias is None and whole and self._folds(q, x_kv):
        return self._out(self._folded(q, x_kv, w_k, w_v), width)
      k, v = w_k.project(x_kv), w_v.project(x_kv)
      if self.rotary is not None:
        if positions is None:
          positions = jnp.arange(x_q.shape[1], dtype=jnp.int32)[None]
        q = rotate(q, positions, self.rotary)
        k = rotate(k, positions, self.rotary)
      if cache is not None:
        cache = _written(cache, k, v, slot)
        if slot is not None:
          k, v = cache.k.astype(self.dtype), cache.v.astype(self.dtype)
    out = self._attend(q, k, v, mask, bias, kv_name, deterministic)
    out = self._out(out, width)
    return out if cache is None else (out, cache)

  def _out(self, x: jax.Array, width: int) -> jax.Array:
    """Maps what heads found [B T N H] back to [B T D]."""
    init = nn.initializers.xavier_uniform()
    if self.out_std is not None:
      init = nn.initializers.normal(self.out_std)
    x = nn.DenseGeneral(
      self.out_width or width,
      axis=(-2, -1),
      dtype=self.dtype,
      use_bias="o" in self.biases,
      kernel_init=rules.with_axes(init, ("heads", "head_dim", "embed")),
      bias_init=rules.with_axes(nn.initializers.zeros, ("norm",)),
      dot_general=product.dot_general,
      name="out",
    )(x)
    return rules.constrain(x, "batch", "length", "embed")

  def _folds(self, q: jax.Array, x_kv: jax.Array) -> bool:
    """Returns whether keys and values are better not projected.

    A CPU is done sooner with a few queries in the space of many tokens, and
    what they find brought back: 2 N T D (S + H) products, not 2 N S H (D + T).
    """
    (T, _, H), (S, D) = q.shape[1:], x_kv.shape[1:]
    return (
      T * D * (S + H) < S * H * (D + T)
      and self.kv_heads in (None, self.heads)
      and self.impl in (None, "xla")
      and self.softcap is self.rotary is None
      and self.dtype == jnp.float32
      and choice.platform() == "cpu"
      and jax.sharding.get_abstract_mesh().size <= 1
    )

  def _folded(self, q, x_kv, w_k, w_v):
    """Attends to tokens as they are: q (k x)' = (q k') x', w (x v) = (w x) v.

    The bias of keys changes all scores of a query alike, which softmax does not
    see; that of values is added once, since weights sum to 1.
    """
    scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
    x = x_kv.astype(self.dtype)[:, :, None]
    q = jnp.einsum("BTNH,DNH->BTND", q * scale, w_k.kernel)
    found = ops.attention(q, x, x, scale=1.0, impl=self.impl)
    out = jnp.einsum("BTND,DNH->BTNH", found, w_v.kernel)
    return out if w_v.bias is None else out + w_v.bias[None, None]

  def _attend(
    self,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask | None,
    bias: jax.Array | Bias | None,
    kv_name: str | None,
    deterministic: bool,
  ) -> jax.Array:
    rate = 0.0 if deterministic else self.dropout
    seeds = None
    if rate > 0.0:
      seeds = dropout.seeds(self.make_rng("dropout"), q.shape[0], self.heads)

    # Sequences split over devices stay so: keys go round in a ring.
    axis = _ring(q.shape[1], k.shape[1])
    length = None if axis is None else "length"

    def attend(q, k, v, mask, bias, seeds):
      return ops.attention(
        q,
        k,
        v,
        mask=mask,
        bias=bias,
        scale=self.scale,
        softcap=self.softcap,
        dropout_rate=rate,
        dropout_rng=seeds,
        impl=self.impl,
        axis=axis,
      )

    q_names = ("batch", length, "heads", None)
    kv_names = ("batch", length, kv_name, None)
    bias_names = None
    if isinstance(bias, Bias):
      bias_names = ("heads",)
    elif bias is not None:
      bias_names = tuple(
        name if size > 1 else None
        for name, size in zip(
          ("batch", "heads", length), bias.shape, strict=False
        )
      )
    return rules.per_shard(
      attend,
      [
        q_names,
        kv_names,
        kv_names,
        ("batch", length),
        bias_names,
        ("batch", "heads"),
      ],
      q_names,
      # Pallas kernels and the ring are beyond what shard_map can check.
      check=axis is None and choice.candidates(self.impl) == ("xla",),
    )(q, k, v, mask, bias, seeds)


def _ring(length_q: int, length_k: int) -> str | None:
  """Returns the mesh axis that splits both lengths, or None."""
  layout = rules.current()
  if layout is None:
    return None
  axes = [a for a in layout.mesh_axes("length") if layout.mesh.shape[a] > 1]
  if len(axes) != 1:
    return None
  parts = layout.mesh.shape[axes[0]]
  return None if length_q % parts or length_k % parts else axes[0]


def _written(
  cache: KV, k: jax.Array, v: jax.Array, slot: jax.Array | None
) -> KV:
  """Returns the cache with k and v [B T K H] from a slot on, or in place."""
  k, v = k.astype(cache.k.dtype), v.astype(cache.v.dtype)
  if slot is None:
    return KV(k, v)
  at = (0, slot, 0, 0)
  return KV(
    jax.lax.dynamic_update_slice(cache.k, k, at),
    jax.lax.dynamic_update_slice(cache.v, v, at),
  )
