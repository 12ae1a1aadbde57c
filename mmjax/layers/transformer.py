"""Transformer blocks, and stacks of them by scan and rematerialisation."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers.attention import Attention
from mmjax.layers.mlp import MLP
from mmjax.layers.norm import layer_norm
from mmjax.ops.masks import Mask
from mmjax.parallel import rules

# Width, depth, heads and mlp of the encoders that papers name by letter.
SIZES: dict[str, dict[str, int]] = {
  name: dict(width=width, depth=depth, heads=heads, mlp=mlp)
  for name, width, depth, heads, mlp in (
    ("mu", 32, 1, 2, 128),
    ("Ti", 192, 12, 3, 768),
    ("S", 384, 12, 6, 1536),
    ("M", 512, 12, 8, 2048),
    ("B", 768, 12, 12, 3072),
    ("L", 1024, 24, 16, 4096),
    ("So400m", 1152, 27, 16, 4304),
    ("H", 1280, 32, 16, 5120),
    ("g", 1408, 40, 16, 6144),
    ("g-opt", 1536, 40, 16, 6144),
    ("G", 1664, 48, 16, 8192),
    ("G-opt", 1536, 48, 16, 8192),
    ("e", 1792, 56, 16, 15360),
  )
}

# What the backward pass finds in memory: everything; nothing but the input of
# each block; or the results of products with weights, but no attention scores.
REMAT = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Block(nn.Module):
  """Pre-norm Transformer block: x + attention(norm x), then x + mlp(norm x).

  "Learning deep Transformer models", Wang et al. 2019. Stochastic depth drops
  a whole branch for an example ("Deep networks with stochastic depth", Huang
  et al. 2016).

  Attributes:
    heads: N.
    mlp: F.
    act: name of the activation.
    dropout: rate on attention weights, hidden units and branch outputs.
    epsilon: of the norms.
    dtype: of the computation.
  """

  heads: int
  mlp: int
  act: str = "gelu"
  dropout: float = 0.0
  epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    drop_path: jax.Array | None = None,
    mask: Mask | None = None,
    deterministic: bool = True,
  ) -> tuple[jax.Array, None]:
    """Maps tokens [B T D] to tokens [B T D].

    Args:
      x: tokens.
      drop_path: scalar, the probability of dropping a branch; None is 0.
      mask: which token sees which.
      deterministic: no dropout at all.

    Returns:
      The tokens, and None: the carry and output that `scan` wants.
    """
    norm = functools.partial(layer_norm, epsilon=self.epsilon, dtype=self.dtype)

    def branch(y):
      y = nn.Dropout(self.dropout)(y, deterministic=deterministic)
      if drop_path is None or deterministic:
        return y
      keep = jax.random.bernoulli(
        self.make_rng("dropout"), 1.0 - drop_path, (y.shape[0], 1, 1)
      )
      return jnp.where(keep, y / (1.0 - drop_path).astype(y.dtype), 0.0)

    y = Attention(
      self.heads, dtype=self.dtype, dropout=self.dropout, name="attention"
    )(norm(name="norm1")(x), None, mask, deterministic)
    x = x + branch(y)
    y = MLP(
      self.mlp,
      act=self.act,
      dropout=self.dropout,
      dtype=self.dtype,
      name="mlp",
    )(norm(name="norm2")(x), deterministic)
    x = x + branch(y)
    return rules.constrain(x, "batch", "length", "embed"), None


class Stack(nn.Module):
  """Blocks one after the other; their parameters are stacked [depth ...].

  Attributes:
    depth: number of blocks; 0 has no parameters and returns its input.
    heads, mlp, act, dropout, epsilon, dtype: of each `Block`.
    drop_path: rate of stochastic depth of the last block; it grows from 0
      linearly with depth.
    scan: a loop over the blocks, which compiles once for all depths; False
      unrolls it, over the same parameters.
    remat: what the backward pass keeps: "none" recomputes nothing, "full"
      everything, "dots" all but products with weights.
  """

  depth: int
  heads: int
  mlp: int
  act: str = "gelu"
  dropout: float = 0.0
  drop_path: float = 0.0
  epsilon: float = 1e-6
  dtype: Any = jnp.float32
  scan: bool = True
  remat: str = "none"

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    mask: Mask | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """Maps tokens [B T D] to tokens [B T D].

    Raises:
      InputError: unknown remat policy.
    """
    if self.remat not in REMAT:
      raise errors.unknown("remat", self.remat, REMAT)
    if not self.depth:
      return x  # a scan of length 0 would make arrays of size 0
    block: Any = Block
    if self.remat != "none":
      # In a loop nothing can be merged across its boundary; unrolled, the
      # compiler would merge the recomputation with the original.
      block = nn.remat(
        Block,
        policy=REMAT[self.remat],
        prevent_cse=not self.scan,
        static_argnums=(4,),
      )
    rates = None
    if self.drop_path > 0.0:
      rates = jnp.linspace(0.0, self.drop_path, self.depth)
    in_axes: Any = (0, nn.broadcast, nn.broadcast)
    x, _ = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=in_axes,
      length=self.depth,
      unroll=1 if self.scan else self.depth,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )(
      self.heads,
      self.mlp,
      act=self.act,
      dropout=self.dropout,
      epsilon=self.epsilon,
      dtype=self.dtype,
      name="blocks",
    )(x, rates, mask, deterministic)
    return x
