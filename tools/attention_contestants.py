"""What tools/kernel_cycles.py compares: shapes of models, and kernels for them.

Rivals take no length of these, so they get padded ones with segment ids.
"""

from typing import Any, NamedTuple


class Shape(NamedTuple):
  """B rows of T queries and S keys, N heads over K key heads of H.

  mask: "", or one of DALL-E's, "row", "column" or "conv", which are causal.
  """

  batch: int
  queries: int
  keys: int
  heads: int
  kv_heads: int
  head_dim: int
  causal: bool = False
  mask: str = ""


SHAPES = {
  "lxmert": Shape(16, 20, 36, 12, 12, 64),
  "text": Shape(16, 77, 77, 8, 8, 64, True),
  "bert": Shape(8, 128, 128, 12, 12, 64),
  "vit": Shape(4, 197, 197, 12, 12, 64),
  "clip": Shape(4, 257, 257, 16, 16, 64),
  "so400m": Shape(1, 729, 729, 16, 16, 72),
  "whisper": Shape(1, 1500, 1500, 8, 8, 64),
  "paligemma": Shape(1, 384, 384, 8, 1, 256),
  "gpt3": Shape(1, 2048, 2048, 4, 4, 128, True),
  "dalle_none": Shape(1, 1280, 1280, 16, 16, 64),
  "dalle": Shape(1, 1280, 1280, 16, 16, 64, True),
  "dalle_row": Shape(1, 1280, 1280, 16, 16, 64, True, "row"),
  "dalle_column": Shape(1, 1280, 1280, 16, 16, 64, True, "column"),
  "dalle_conv": Shape(1, 1280, 1280, 16, 16, 64, True, "conv"),
}
# Of the pairs that DALL-E's masks let see each other: part of all 1280 x 1280.
DENSITIES = {"row": 0.200, "column": 0.190, "conv": 0.215}
CONTESTANTS = ("ours", "xla", "flash", "splash")


def flops(shape: Shape, backward: bool) -> float:
  """Returns the operations of the products: 2 forward, and 5 backward."""
  one = 2.0 * shape.batch * shape.heads * shape.queries * shape.keys
  one *= shape.head_dim
  one *= DENSITIES.get(shape.mask, 0.5 if shape.causal else 1.0)
  return one * (7 if backward else 2)


def mask_of(shape: Shape) -> Any:
  """Returns the mask of a shape."""
  from mmjax.ops import masks

  grid = (256, 32, 32)
  if shape.mask == "conv":
    return masks.Conv(*grid, 11)
  if shape.mask:
    return {"row": masks.Row, "column": masks.Column}[shape.mask](*grid)
  return masks.Causal() if shape.causal else None


def padding(shape: Shape) -> int:
  """Returns the tokens that rivals are handed beside the shape's."""
  return -shape.keys % (128 if shape.keys <= 768 else 512)


def block_of_flash(shape: Shape) -> int:
  """Returns queries and keys of a block of in-tree flash."""
  length = shape.keys + padding(shape)
  return length if length <= 768 else 512


def steps_of_flash(shape: Shape) -> int:
  """Returns the blocks of a head that in-tree flash computes."""
  return ((shape.keys + padding(shape)) // block_of_flash(shape)) ** 2


def contestant(name: str, shape: Shape, tiles: Any = None) -> Any:
  """Returns a function of q, k and v, each [B N S H]; tiles are for ours."""
  import jax
  import jax.numpy as jnp

  from mmjax.ops.kernels import reference, tpu

  if shape.mask and name not in ("ours", "xla"):
    raise SystemExit(f"{name} has no mask {shape.mask!r}")
  scale = shape.head_dim**-0.5
  pad = padding(shape)
  padded = [(0, 0), (0, 0), (0, pad), (0, 0)]

  if name in ("ours", "xla"):
    attend = {"ours": tpu.attend, "xla": reference.attend}[name]
    keywords: dict[str, Any] = dict(
      mask=mask_of(shape),
      bias=None,
      scale=scale,
      softcap=None,
      dropout_rate=0.0,
      dropout_seeds=None,
    )

    if tiles is not None:
      keywords["tiles"] = tiles

    def run(q, k, v):
      q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
      return attend(q, k, v, **keywords).swapaxes(1, 2)

    return run
  if name == "flash":
    from jax.experimental.pallas.ops.tpu import flash_attention as module

    block = block_of_flash(shape)
    sizes = module.BlockSizes(
      block_b=1, **dict.fromkeys(_blocks(module), block)
    )

    def run_flash(q, k, v):
      q, k, v = (jnp.pad(x, padded) for x in (q, k, v))
      k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], 1) for x in (k, v))
      real = jnp.arange(q.shape[2])[None] < shape.keys
      ids = jnp.broadcast_to(real.astype(jnp.int32), (len(q), q.shape[2]))
      out = module.flash_attention(
        q,
        k,
        v,
        segment_ids=module.SegmentIds(ids, ids) if pad else None,
        causal=shape.causal,
        sm_scale=scale,
        block_sizes=sizes,
      )
      return out[:, :, : shape.queries]

    return run_flash
  if name == "splash":
    from jax.experimental.pallas.ops.tpu import splash_attention as module

    T, N = shape.queries + pad, shape.heads
    sizes: Any = dict.fromkeys(_blocks(module), block_of_flash(shape))
    kind = module.CausalMask if shape.causal else module.FullMask
    kernel = module.make_splash_mha(
      module.MultiHeadMask([kind((T, T))] * N),
      block_sizes=module.BlockSizes(**sizes),
      head_shards=1,
      q_seq_shards=1,
    )

    def run_splash(q, k, v):
      q, k, v = (jnp.pad(x, padded) for x in (q * scale, k, v))
      k, v = (jnp.repeat(x, N // x.shape[1], 1) for x in (k, v))
      real = (jnp.arange(T) < shape.keys).astype(jnp.int32)
      ids = module.SegmentIds(real, real) if pad else None
      out: Any = jax.vmap(lambda *a: kernel(*a, segment_ids=ids))(q, k, v)
      return out[:, :, : shape.queries]

    return run_splash
  raise SystemExit(f"no contestant {name}; known: {', '.join(CONTESTANTS)}")


def _blocks(module: Any) -> list[str]:
  fields = [f for f in module.BlockSizes.__dataclass_fields__ if f != "block_b"]
  return [f for f in fields if f.startswith("block_")]
