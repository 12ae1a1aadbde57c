"""Layers that let two streams of tokens see each other (LXMERT).

"LXMERT: Learning cross-modality encoder representations from transformers",
Tan and Bansal 2019.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers.attention import Attention
from mmjax.layers.block import Spec
from mmjax.layers.loop import looped
from mmjax.layers.mlp import MLP
from mmjax.layers.norm import layer_norm
from mmjax.layers.transformer import REMAT
from mmjax.ops.masks import Mask
from mmjax.parallel import rules

Streams = tuple[jax.Array, jax.Array]


class CrossBlock(nn.Module):
  """Two streams look at each other, then at themselves, then pass an MLP.

  One cross-attention, of one set of parameters, serves both directions; both
  read the streams as they were before it. Norms come after each branch.

  Attributes:
    spec: heads, mlp, activation, epsilon and dropout of its layers.
    dtype: of the computation.
  """

  spec: Spec
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    streams: Streams,
    masks: tuple[Mask | None, Mask | None],
    deterministic: bool = True,
  ) -> tuple[Streams, None]:
    """Maps tokens [B T D] and regions [B R D] to the same shapes.

    Args:
      streams: tokens and regions.
      masks: over the keys of each.
      deterministic: no dropout.

    Returns:
      The streams, and None: the carry and output that `scan` wants.
    """
    spec = self.spec

    def attention(name: str) -> Attention:
      return Attention(
        spec.heads, dtype=self.dtype, dropout=spec.dropout, name=name
      )

    def norm(name: str) -> nn.Module:
      return layer_norm(epsilon=spec.epsilon, dtype=self.dtype, name=name)

    def add(x: jax.Array, y: jax.Array, normal: nn.Module) -> jax.Array:
      y = nn.Dropout(spec.dropout)(y, deterministic=deterministic)
      return rules.constrain(normal(x + y), "batch", "length", "embed")

    text, regions = streams
    cross, normal = attention("cross"), norm("norm_cross")
    streams = (
      add(text, cross(text, regions, masks[1], deterministic), normal),
      add(regions, cross(regions, text, masks[0], deterministic), normal),
    )
    found = []
    for name, x, mask in zip(("text", "regions"), streams, masks, strict=True):
      y = attention(f"{name}_attention")(x, None, mask, deterministic)
      x = add(x, y, norm(f"{name}_norm1"))
      y = MLP(
        spec.mlp,
        act=spec.act,
        # No dropout between its layers there.
        dtype=self.dtype,
        name=f"{name}_mlp",
      )(x, deterministic)
      found.append(add(x, y, norm(f"{name}_norm2")))
    return (found[0], found[1]), None


class CrossStack(nn.Module):
  """Cross blocks one after the other; their parameters are stacked [depth ...].

  Attributes:
    spec: of each block.
    depth: number of blocks; 0 returns its input.
    dtype, scan, remat: see `layers.transformer.Stack`.
  """

  spec: Spec
  depth: int
  dtype: Any = jnp.float32
  scan: bool | None = None
  remat: str = "none"

  @nn.compact
  def __call__(
    self,
    text: jax.Array,
    regions: jax.Array,
    text_mask: Mask | None = None,
    region_mask: Mask | None = None,
    deterministic: bool = True,
  ) -> Streams:
    """Maps tokens [B T D] and regions [B R D] to the same shapes.

    Raises:
      InputError: an unknown remat policy.
    """
    if self.remat not in REMAT:
      raise errors.unknown("remat", self.remat, REMAT)
    if not self.depth:
      return text, regions
    loop = looped(self.scan, self.depth)
    block: Any = CrossBlock
    if self.remat != "none":
      block = nn.remat(
        block,
        policy=REMAT[self.remat],
        prevent_cse=not loop,
        static_argnums=(3,),
      )
    in_axes: Any = (nn.broadcast, nn.broadcast)
    streams, _ = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=in_axes,
      length=self.depth,
      unroll=1 if loop else self.depth,
      metadata_params={nn.PARTITION_NAME: "layers"},
      check_constancy_invariants=False,  # or it traces the body twice
    )(
      self.spec, dtype=self.dtype, name="blocks"
    )((text, regions), (text_mask, region_mask), deterministic)
    return streams
