"""Stacks of Transformer blocks by scan and rematerialisation."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers.block import ORDERS, Block, Cache, Context, Cycle, Each, Spec
from mmjax.layers.loop import looped
from mmjax.ops import attention as ops
from mmjax.ops.bias import Bias
from mmjax.ops.masks import Mask

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


class Told(Block):
  """A block that also tells the loop what it returns."""

  def __call__(self, *args: Any, **keywords: Any) -> Any:
    """Returns the tokens of a block, twice."""
    x, _ = super().__call__(*args, **keywords)
    return x, x


class Stack(nn.Module):
  """Blocks one after the other; their parameters are stacked [depth ...].

  Attributes:
    spec: of each block.
    depth: number of blocks; 0 has no parameters and returns its input.
    drop_path: rate of stochastic depth of the last block; it grows from 0
      linearly with depth.
    dtype: of the computation.
    scan: a loop over the blocks, which compiles once for all depths; False
      unrolls it, over the same parameters; None see `layers.loop`. (Parameters
      taken `apart` unroll it, too.)
    remat: what the backward pass keeps: "none" recomputes nothing, "full"
      everything, "dots" all but products with weights.
  """

  spec: Spec
  depth: int
  drop_path: float = 0.0
  dtype: Any = jnp.float32
  scan: bool | None = None
  remat: str = "none"

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    mask: Mask | tuple[Mask, ...] | None = None,
    deterministic: bool = True,
    *,
    bias: jax.Array | Bias | None = None,
    positions: jax.Array | None = None,
    memory: jax.Array | None = None,
    memory_mask: Mask | None = None,
    cache: Cache | None = None,
    slot: jax.Array | None = None,
    each: Each | None = None,
    every: bool = False,
  ) -> Any:
    """Maps tokens [B T D] to tokens [B T D].

    Args:
      x: tokens.
      mask: of all blocks; or C masks, of blocks 0 to C-1, C to 2C-1, ... (the
        dense and banded layers of GPT-3): parameters then stand in
        "blocks/block0", ... [depth/C ...].
      deterministic: no dropout.
      bias, positions, memory, memory_mask, slot: see `Context`.
      cache: see `make_cache`.
      each: leaves [depth ...], what each block has of its own.
      every: what each block returns is wanted; without a cache, and with one
        mask for all.

    Returns:
      [B T D]; with a cache, also the new cache; with `every`, what each block
      returns [depth B T D].

    Raises:
      InputError: unknown remat policy or order, or a depth that is no multiple
        of the number of masks.
    """
    if self.remat not in REMAT:
      raise errors.unknown("remat", self.remat, REMAT)
    if self.spec.order not in ORDERS:
      raise errors.unknown("order", self.spec.order, ORDERS)
    if not self.depth:  # a scan of length 0 would make arrays of size 0
      told = jnp.zeros((0, *x.shape), x.dtype) if every else cache
      return x if told is None else (x, told)
    if isinstance(mask, tuple) and len(mask) == 1:
      mask = mask[0]
    cycle = len(mask) if isinstance(mask, tuple) else 1
    if self.depth % cycle:
      raise errors.InputError(
        f"depth = {self.depth} is no multiple of the {cycle} masks that its "
        "blocks take in turn; change one of them."
      )
    settled = functools.partial(
      ops.settled, length_q=x.shape[1], length_k=x.shape[1]
    )
    make = functools.partial(
      Context,
      bias=settled(bias),
      positions=positions,
      memory=memory,
      memory_mask=memory_mask,
      slot=slot,
    )
    context: Any = (
      tuple(map(make, mask)) if isinstance(mask, tuple) else make(mask)
    )
    rates = None
    if self.drop_path > 0.0:
      rates = jnp.linspace(0.0, self.drop_path, self.depth)
    if each is not None and each.bias is not None:
      each = each._replace(bias=jax.vmap(settled)(each.bias))
    if cycle > 1:
      rates, cache, each = jax.tree.map(
        lambda a: a.reshape(-1, cycle, *a.shape[1:]), (rates, cache, each)
      )
    length = self.depth // cycle
    loop = looped(self.scan, length)
    block: Any = Cycle if cycle > 1 else Told if every else Block
    if self.remat != "none":
      # In a loop nothing can be merged across its boundary; unrolled, the
      # compiler would merge the recomputation with the original.
      block = nn.remat(
        block,
        policy=REMAT[self.remat],
        prevent_cse=not loop,
        static_argnums=(5,),
      )
    in_axes: Any = (0, 0, nn.broadcast, nn.broadcast, 0)
    args = (self.spec,) if cycle == 1 else (self.spec, cycle)
    if self.has_variable("params", "blocks_0"):
      news = []
      for i in range(length):
        given = jax.tree.map(lambda a, i=i: a[i], (rates, cache, each))
        x, new = block(*args, dtype=self.dtype, name=f"blocks_{i}")(
          x, *given[:2], context, deterministic, given[2]
        )
        news.append(new)
      new = jax.tree.map(lambda *a: jnp.stack(a), *news)
    else:
      x, new = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=length,
        unroll=1 if loop else length,
        metadata_params={nn.PARTITION_NAME: "layers"},
        check_constancy_invariants=False,  # or it traces the body twice
      )(
        *args, dtype=self.dtype, name="blocks"
      )(x, rates, cache, context, deterministic, each)
    if cycle > 1:
      new = jax.tree.map(lambda a: a.reshape(self.depth, *a.shape[2:]), new)
    return x if cache is None and not every else (x, new)


def sized(
  model: str, variant: str | None, given: Mapping[str, int | None]
) -> dict[str, Any]:
  """Returns all sizes of an encoder, from those given and those of a variant.

  Args:
    model: for messages, "models.vit".
    variant: a name of `SIZES`, with a patch where `given` has one: "S/16"; or
      None.
    given: by name, what goes before the variant's; None is not given.

  Raises:
    InputError: an unknown variant, or a size that neither says.
  """
  sizes: dict[str, Any] = dict(given)
  patched = "patch" in given
  if variant is not None:
    size, slash, pixels = variant.partition("/")
    if size not in SIZES or (slash and not patched):
      raise errors.unknown(f"{model} variant", variant, SIZES)
    if pixels and not pixels.isdecimal():
      raise errors.InputError(
        f"{model} variant = {variant!r}: {pixels!r} is no number of pixels; "
        f"write for example '{size}/16'."
      )
    known = dict(SIZES[size], patch=int(pixels) if pixels else None)
    sizes = {k: known[k] if v is None else v for k, v in sizes.items()}
  missing = [name for name, value in sizes.items() if value is None]
  if missing:
    example = "S/16" if patched else "B"
    raise errors.InputError(
      f"{model}: {', '.join(missing)} not given; give them, or a variant such "
      f"as {example!r}."
    )
  return sizes
