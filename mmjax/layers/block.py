"""The Transformer block: what it is made of, what it sees, what it keeps."""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.layers.attention import KV, Attention
from mmjax.layers.mlp import MLP
from mmjax.layers.norm import norm
from mmjax.ops.bias import Bias
from mmjax.ops.masks import Mask
from mmjax.parallel import rules

ORDERS = ("pre", "post")


@dataclasses.dataclass(frozen=True)
class Spec:
  """What a block is made of.

  Attributes:
    heads: N. mlp: F.
    head_dim, kv_heads, scale, softcap, rotary: see `layers.attention`.
    act, gated: of the MLP, see `layers.mlp`.
    norm: its kind, see `layers.norm`. epsilon: of the norms.
    order: "pre" is x + f(norm(x)) ("Learning deep Transformer models", Wang
      et al. 2019), "post" is norm(x + f(x)) ("Attention is all you need").
    norm_after: kind of a norm at the end of each attention's branch,
      norm_after_mlp: of the MLP's ("Gemma 2", 2024), norm_mlp: of one of the
      MLP's hidden units ("NormFormer: Improved Transformer pretraining with
      extra normalization", Shleifer et al. 2021); None is none.
    biases: of the attention, letters of "qkvo". mlp_bias: of the MLP.
    cross: an attention to a memory between self-attention and MLP, which is
      left out where there is neither a memory nor a cache of one.
    layer_scale: what each entry of a branch is multiplied by at the start
      ("Going deeper with image transformers", Touvron et al. 2021); None is
      no such parameter.
    dropout: rate on attention weights, hidden units and branch outputs.
    attention_dropout, hidden_dropout: rates of the first two where they are
      others; None is `dropout`.
    std: standard deviation of the kernels at the start, out_std: of those
      at the end of a branch; None is Xavier's.
  """

  heads: int
  mlp: int
  head_dim: int | None = None
  kv_heads: int | None = None
  scale: float | None = None
  softcap: float | None = None
  rotary: float | None = None
  act: str = "gelu"
  gated: bool = False
  norm: str = "layer"
  epsilon: float = 1e-6
  order: str = "pre"
  norm_after: str | None = None
  norm_after_mlp: str | None = None
  norm_mlp: str | None = None
  biases: str = "qkvo"
  mlp_bias: bool = True
  cross: bool = False
  layer_scale: float | None = None
  dropout: float = 0.0
  attention_dropout: float | None = None
  hidden_dropout: float | None = None
  std: float | None = None
  out_std: float | None = None


class Cache(NamedTuple):
  """Keys and values of a block, or of a stack of them [depth ...].

  Attributes:
    own: of self-attention [B S K H], S slots.
    memory: of cross-attention [B M K H], or None.
  """

  own: KV
  memory: KV | None = None


def make_cache(
  spec: Spec,
  depth: int,
  *,
  width: int,
  batch: int,
  slots: int,
  memory: int | None = None,
  dtype: Any = jnp.float32,
) -> Cache:
  """Returns the empty cache of a stack.

  Args:
    spec: of its blocks.
    depth: number of blocks.
    width: D.
    batch: B.
    slots: S, the longest sequence, prompt included.
    memory: M, length of what cross-attention reads; None is without.
    dtype: of keys and values.
  """
  heads = spec.kv_heads or spec.heads
  head_dim = spec.head_dim or width // spec.heads

  def zeros(length: int) -> KV:
    shape = (depth, batch, length, heads, head_dim)
    return KV(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

  return Cache(zeros(slots), None if memory is None else zeros(memory))


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["mask", "bias", "positions", "memory", "memory_mask", "slot"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Context:
  """What every block of a stack sees alike.

  Attributes:
    mask: which token sees which.
    bias: added to the scores of self-attention, [B|1 N|1 T S], or a table of
      `ops.bias` where there is no cache.
    positions: int32 [B|1 T], for rotary positions; None is 0, 1, ...
    memory: [B M D'] that cross-attention reads; None reads the cache.
    memory_mask: which token sees what of the memory.
    slot: int32 scalar, where the tokens stand in the cache.
  """

  mask: Mask | None = None
  bias: jax.Array | Bias | None = None
  positions: jax.Array | None = None
  memory: jax.Array | None = None
  memory_mask: Mask | None = None
  slot: jax.Array | None = None


class Each(NamedTuple):
  """What a block of a stack has beside parameters, or all [depth ...].

  Attributes:
    scale: float32 scalar, a factor of the scores of self-attention.
    bias: added to them in place of the context's.
  """

  scale: jax.Array | None = None
  bias: jax.Array | Bias | None = None


class Block(nn.Module):
  """Self-attention, perhaps cross-attention, and an MLP, each a branch.

  Stochastic depth drops a whole branch for an example ("Deep networks with
  stochastic depth", Huang et al. 2016).

  Attributes:
    spec: what it is made of.
    dtype: of the computation.
  """

  spec: Spec
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    drop_path: jax.Array | None = None,
    cache: Cache | None = None,
    context: Context | None = None,
    deterministic: bool = True,
    each: Each | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    """Maps tokens [B T D] to tokens [B T D].

    Args:
      x: tokens.
      drop_path: scalar, the probability of dropping a branch; None is 0.
      cache: of this block.
      context: masks, positions, memory.
      deterministic: no dropout at all.
      each: of this block.

    Returns:
      The tokens and the new cache: the carry and output that `scan` wants.
    """
    spec, context, each = self.spec, context or Context(), each or Each()
    own, memory = (None, None) if cache is None else cache

    def attend(y, name, x_kv, mask, kv, rotary, **kw):
      y = Attention(
        spec.heads,
        head_dim=spec.head_dim,
        kv_heads=spec.kv_heads,
        dtype=self.dtype,
        dropout=_else(spec.attention_dropout, spec.dropout),
        biases=spec.biases,
        scale=spec.scale,
        softcap=spec.softcap,
        rotary=rotary,
        std=spec.std,
        out_std=spec.out_std,
        name=name,
      )(y, x_kv, mask, deterministic, cache=kv, **kw)
      return y if kv is not None else (y, None)

    def attention(y):
      nonlocal own
      y, own = attend(
        y,
        "attention",
        None,
        context.mask,
        own,
        spec.rotary,
        bias=context.bias if each.bias is None else each.bias,
        factor=each.scale,
        positions=context.positions,
        slot=context.slot,
      )
      return y

    def cross(y):
      nonlocal memory
      y, memory = attend(
        y, "cross", context.memory, context.memory_mask, memory, None
      )
      return y

    def mlp(y):
      return MLP(
        spec.mlp,
        act=spec.act,
        gated=spec.gated,
        use_bias=spec.mlp_bias,
        norm=spec.norm_mlp,
        epsilon=spec.epsilon,
        dropout=_else(spec.hidden_dropout, spec.dropout),
        std=spec.std,
        out_std=spec.out_std,
        dtype=self.dtype,
        name="mlp",
      )(y, deterministic)

    x = self._add(x, attention, "1", drop_path, deterministic)
    if spec.cross and not (context.memory is None and memory is None):
      x = self._add(x, cross, "_cross", drop_path, deterministic)
    x = self._add(x, mlp, "2", drop_path, deterministic)
    x = rules.constrain(x, "batch", "length", "embed")
    return x, None if cache is None or own is None else Cache(own, memory)

  def _add(self, x, branch, suffix, drop_path, deterministic):
    """Returns x with a branch added, normalised before or after."""
    spec = self.spec
    normal = norm(
      spec.norm, epsilon=spec.epsilon, dtype=self.dtype, name=f"norm{suffix}"
    )
    y = branch(normal(x) if spec.order == "pre" else x)
    after = spec.norm_after_mlp if suffix == "2" else spec.norm_after
    if after is not None:
      y = norm(
        after,
        epsilon=spec.epsilon,
        dtype=self.dtype,
        name=f"norm{suffix}_after",
      )(y)
    if spec.layer_scale is not None:
      scale = self.param(
        f"layer_scale{suffix}",
        rules.with_axes(nn.initializers.constant(spec.layer_scale), ("norm",)),
        (x.shape[-1],),
      )
      y = y * scale.astype(y.dtype).reshape(1, 1, -1)
    y = nn.Dropout(spec.dropout)(y, deterministic=deterministic)
    if drop_path is not None and not deterministic:
      keep = jax.random.bernoulli(
        self.make_rng("dropout"), 1.0 - drop_path, (y.shape[0], 1, 1)
      )
      y = jnp.where(keep, y / (1.0 - drop_path).astype(y.dtype), 0.0)
    return x + y if spec.order == "pre" else normal(x + y)


def _else(value: float | None, default: float) -> float:
  return default if value is None else value


class Cycle(nn.Module):
  """Blocks with a mask each, which a stack repeats: "block0", "block1", ...

  Attributes:
    spec, dtype: of the blocks.
    length: C, how many.
  """

  spec: Spec
  length: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    drop_path: jax.Array | None,
    cache: Cache | None,
    context: tuple[Context, ...],
    deterministic: bool,
    each: Each | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    """As `Block`, where all but x and deterministic have C entries."""
    caches = []
    for i in range(self.length):
      pick = lambda a, i=i: a[i]  # noqa: E731
      x, new = Block(self.spec, self.dtype, name=f"block{i}")(
        x,
        jax.tree.map(pick, drop_path),
        jax.tree.map(pick, cache),
        context[i],
        deterministic,
        jax.tree.map(pick, each),
      )
      caches.append(new)
    return x, jax.tree.map(lambda *a: jnp.stack(a), *caches)
