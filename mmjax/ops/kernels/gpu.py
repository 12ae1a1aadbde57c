"""Attention on a GPU: Pallas by the Triton route, for Ampere and later.

"FlashAttention-2", Dao 2023: a program holds a tile of queries and walks over
the tiles of keys with a running softmax, so that no T x S array exists. Any
lengths, any mask of the algebra, dense broadcastable bias with gradient,
soft-cap, grouped heads, dropout, widths to 256. A query that sees no key gets
a zero output and gives zero gradients. Reverse mode only: there is no rule for
tangents. Hopper has kernels of its own for much of it (`gpu_hopper`,
`gpu_hopper_backward`, `gpu_hopper_whole`), which `for_hopper` puts in their
place.
"""

import dataclasses
import functools
import importlib.metadata
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from mmjax import errors
from mmjax.ops import blocks, masks
from mmjax.ops.kernels import (
  gpu_backward,
  gpu_hopper,
  gpu_hopper_backward,
  gpu_hopper_whole,
)
from mmjax.ops.kernels import gpu_tiles as gt
from mmjax.ops.kernels.gpu_hopper import HopperTiles
from mmjax.ops.kernels.gpu_hopper_backward import BackwardTiles
from mmjax.ops.kernels.gpu_hopper_whole import Whole
from mmjax.ops.kernels.gpu_tiles import Extra, KernelTiles, Plan, Tile, Tiles

DTYPES = ("float32", "bfloat16", "float16")
MAX_WIDTH = 256
_MAX_ELEMENTS = 2**31  # offsets of the Triton route are int32
_HOPPER = re.compile(r"\bG?H(20|100|200|800)\b")
_MAX_GRID = 65_535  # of the second and third dimension of a CUDA grid


def refuses(
  q_shape: tuple[int, ...],
  k_shape: tuple[int, ...],
  v_shape: tuple[int, ...],
  dtype: Any,
  mask: masks.Mask | None = None,
  bias_shape: tuple[int, ...] | None = None,
) -> str | None:
  """Says why the kernel cannot run; None if it can.

  Soft-caps, dropout and scales are never refused, nor any mask.

  Args:
    q_shape, k_shape, v_shape: [B T N H], [B S K H] and [B S K H'].
    dtype: the one dtype of q, k and v.
    mask: the mask, or None.
    bias_shape: [B|1 N|1 T|1 S|1], or None.
  """
  del mask
  if jnp.dtype(dtype).name not in DTYPES:
    return f"dtype {jnp.dtype(dtype).name}; it computes {', '.join(DTYPES)}"
  for name, width in (("head_dim", q_shape[3]), ("value width", v_shape[3])):
    if width > MAX_WIDTH:
      return f"{name} {width}; at most {MAX_WIDTH} fit a tile"
  shapes = [q_shape, k_shape, v_shape]
  if bias_shape is not None:
    shapes.append(bias_shape)
  for shape in shapes:
    size = math.prod(shape)
    if size == 0:
      return f"shape {tuple(shape)}; nothing to compute"
    if size >= _MAX_ELEMENTS:
      return f"shape {tuple(shape)}; offsets reach {_MAX_ELEMENTS} elements"
  if max(q_shape[0], q_shape[2]) > _MAX_GRID:
    return f"batch or heads of {tuple(q_shape)}; at most {_MAX_GRID}"
  return None


def choose_tiles(
  queries: int, keys: int, width: int, dtype: Any, masked: bool = False
) -> KernelTiles:
  """Returns the tiles of the kernels that run on any GPU.

  Of 16 bits, those that were fastest on an H100 (tools/tune_gpu.py); of
  float32 and widths above 128, some that spill few registers
  (tools/compile_gpu.py).
  """
  wide, short = gt.padded(width), max(queries, keys) <= 512
  if jnp.dtype(dtype).itemsize > 2:
    side = 64 if wide <= 64 else 32
    chosen = [(side, 32, 4, 2), (32, 32, 4, 2), (32, 32, 4, 2), (32, 32, 4, 1)]
  elif wide <= 96:
    chosen = [
      (64, 64, 4, 3) if short or masked else (128, 64, 8, 3),
      (64, 32, 4, 3) if short else (64, 64, 4, 2),
      (32, 64, 4, 3) if wide <= 64 else (64, 64, 4, 3),
      (64, 64, 4, 1),
    ]
  elif wide <= 128:
    chosen = [(128, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 8, 1)]
  else:
    chosen = [(64, 64, 8, 1), (64, 32, 8, 1), (32, 64, 8, 1), (32, 32, 8, 1)]

  def fit(block, length):
    return max(16, min(block, pl.next_power_of_2(length)))

  return KernelTiles(
    *(Tiles(fit(q, queries), fit(k, keys), w, s) for q, k, w, s in chosen)
  )


def on_hopper() -> bool:
  """Says whether what is traced now will run on a Hopper GPU.

  By the mesh's devices, which may be none of this machine, else by the first
  of the default backend. Never with a JAX before 0.11, on which nobody has run
  kernels of Mosaic GPU for it.
  """
  if jax.__version_info__ < (0, 11):
    return False
  device = jax.sharding.get_abstract_mesh().abstract_device
  kind = jax.devices()[0].device_kind if device is None else device.device_kind
  return _HOPPER.search(kind) is not None


def for_hopper(plan: Plan, dtype: Any) -> Plan:
  """Returns the plan with the kernels for Hopper where these were faster.

  By tools/tune_gpu.py on an H100 and an H200; comments are milliseconds of its
  shapes, at causal 77 of 512 texts, at causal 256 of 256 rows of 16 heads. A
  predicate on a tile costs them more than the others, so masks of which many
  tiles are partial stay where they are.
  """
  if gpu_hopper.refuses(plan, dtype) is not None:
    return plan
  if plan.mask is not None and miscompiles_masks():
    return plan
  short = plan.H <= 96 and max(plan.T, plan.S) <= 512
  if min(plan.T, plan.S) < (64 if short else 128):
    return plan
  if plan.H > gpu_hopper_backward.MAX_WIDTH:
    return plan
  found: dict[str, Any] = {}
  if plan.H > 96:
    # Blocks that stay are slower: 0.31 for 0.29 forward, 0.61 for 0.52 dkv.
    found = dict(
      forward=HopperTiles(2, 128, 2, lazy=True),
      d_q=BackwardTiles(2, 64, 3),
      d_kv=BackwardTiles(2, 64, 3),
    )
  elif short:
    found = _short(plan)
  elif plan.mask is None:
    found = _unmasked(plan)
  elif _partial(plan) < 0.7:  # causal 0.18; DALL-E's row 0.5, column 0.69
    found = dict(
      forward=HopperTiles(2, 128, 2, resident=True, lazy=True),
      # 0.40 and 0.35; blocks that go: 0.41, 0.38.
      d_q=BackwardTiles(2, 64, 3, resident=True),
      # 0.51 at causal 1280, 0.40 at conv; blocks that go: 0.53, 0.47.
      d_kv=BackwardTiles(2, 64, 4, held=2, resident=True),
    )
  return dataclasses.replace(plan, tiles=plan.tiles._replace(**found))


def _short(plan: Plan) -> dict[str, Any]:
  """Returns the kernels for up to 512 queries and keys of up to 96."""
  found: dict[str, Any] = {}
  if max(plan.T, plan.S) <= 128:
    # All keys in one step: 0.071 at causal 77; Triton 0.098.
    keys = gt.up(plan.S, 16)
    found["forward"] = HopperTiles(1, keys, 1, pingpong=False)
  elif _partial(plan) > 1 / 3:
    pass  # 0.31 at causal 256; Triton 0.24
  elif _computed(plan, 128) <= 1.25 * _computed(plan, 64):
    found["forward"] = HopperTiles(2, 128, 2, pingpong=False)  # 0.25 at 197
  else:
    # 0.35 at 257; Triton 0.37.
    half = gt.up(-(-plan.S // 2), 16)
    found["forward"] = HopperTiles(1, half, 2, pingpong=False)
  if gpu_hopper_whole.refuses(plan) is None:
    # 0.69 at 197, 0.21 at causal 77; dq and dk, dv apart: 1.03, 0.24.
    found["d_q"] = Whole()
  elif _partial(plan) <= 1 / 3 and max(plan.T, plan.S) > 128:
    found["d_kv"] = BackwardTiles(2, 64, 3, held=2)  # 0.64 at 257; Triton 0.68
  return found


def _unmasked(plan: Plan) -> dict[str, Any]:
  """Returns the kernels for more than 512 tokens of up to 96, all seen."""
  wgs = 3 if gt.up(plan.T, 192) <= 1.1 * gt.up(plan.T, 128) else 2
  # With three, registers do not suffice for scores that are kept, nor for
  # products ahead of time of wider heads.
  found: dict[str, Any] = dict(lazy=True)
  if wgs == 3:
    found = dict(overlap=plan.H <= 64)
  long = max(plan.T, plan.S) > 1024
  return dict(
    # 0.37 at 1500, without overlap 0.41; 0.24 at 577, eager 0.28.
    forward=HopperTiles(wgs, 128, 2, resident=True, **found),
    # At 1500 0.52, and 0.56 as at 729; there 0.31, and 0.37 as at 1500.
    d_q=BackwardTiles(wgs, 64, 3)
    if long
    else BackwardTiles(2, 64, 4, held=1, resident=True),
    d_kv=BackwardTiles(2, 64, 4, held=2, resident=True),  # 0.39 at 729; 0.45
  )


def miscompiles_masks() -> bool:
  """Says whether the assembler of JAX's CUDA 12 makes wrong code of masks.

  That of CUDA 12.8.0 to 12.9.0 does, by what JAX's own kernel for Hopper
  refuses (jax.experimental.pallas.ops.gpu.attention_mgpu). An assembler that
  pip did not install is not looked for.
  """
  try:
    found = importlib.metadata.version("nvidia-cuda-nvcc-cu12")
  except importlib.metadata.PackageNotFoundError:
    return False
  version = tuple(int(x) for x in re.findall(r"\d+", found)[:3])
  return (12, 8) <= version < (12, 9, 86)  # 12.9.86 is of CUDA 12.9.1


def _computed(plan: Plan, side: int) -> int:
  """Returns how many scores of a head square tiles compute."""
  return gt.up(plan.T, side) * gt.up(plan.S, side)


def _partial(plan: Plan) -> float:
  """Returns which part of the tiles that are not empty need the predicate."""
  if plan.mask is None:
    return 0.0
  kinds = plan.kinds((), Tiles(128, 128))
  some = (kinds != blocks.EMPTY).sum()
  return float((kinds == blocks.PARTIAL).sum() / max(some, 1))


def attend(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  *,
  mask: masks.Mask | None,
  bias: jax.Array | None,
  scale: float,
  softcap: float | None,
  dropout_rate: float,
  dropout_seeds: jax.Array | None,
  interpret: bool = False,
  tiles: tuple[Tiles, ...] | None = None,
) -> jax.Array:
  """Computes softmax(cap(scale q k') + bias, where mask) v.

  Scores, softmax and sums are float32; products take the inputs' dtype, and
  float32 is computed as float32, not as tf32. Arguments as in
  `ops.attention.attention`, already checked; dropout_seeds is [B N].

  Args:
    interpret: run on the CPU, for tests.
    tiles: instead of those chosen; powers of two of at least 16.

  Returns:
    [B T N H'] in the dtype of q; differentiable by q, k, v and bias.

  Raises:
    InputError: what `refuses` says, or dtypes of q, k and v that differ.
  """
  why = refuses(
    q_BTNH.shape,
    k_BSKH.shape,
    v_BSKH.shape,
    q_BTNH.dtype,
    mask,
    None if bias is None else bias.shape,
  )
  if not q_BTNH.dtype == k_BSKH.dtype == v_BSKH.dtype:
    dtypes = ", ".join(x.dtype.name for x in (q_BTNH, k_BSKH, v_BSKH))
    why = f"q, k and v of {dtypes}; give them one dtype"
  if why is not None:
    raise errors.InputError(f"attention impl 'gpu' refuses {why}.")
  if isinstance(mask, masks.Full):
    mask = None
  B, T, N, H = q_BTNH.shape
  S, K, width = v_BSKH.shape[1:]
  mine = tiles is None
  if mine:
    tiles = choose_tiles(
      T, S, max(H, width), q_BTNH.dtype, masked=mask is not None
    )
  plan = Plan(
    B,
    T,
    S,
    N,
    K,
    H,
    width,
    scale=float(scale),
    softcap=None if softcap is None else float(softcap),
    rate=float(dropout_rate),
    mask=None if mask is None else jax.tree.structure(mask),
    axes=() if mask is None else masks.leaf_axes(mask),
    bias=None if bias is None else tuple(bias.shape),
    tiles=KernelTiles(*tiles),
    interpret=interpret,
  )
  if mine and on_hopper():
    plan = for_hopper(plan, q_BTNH.dtype)
  seeds = dropout_seeds if dropout_rate > 0.0 else None
  return _attend(plan, q_BTNH, k_BSKH, v_BSKH, bias, gt.as_leaves(mask), seeds)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan, q, k, v, bias, leaves, seeds):
  return forward(plan, q, k, v, Extra(leaves, bias, seeds))[0]


def _attend_fwd(plan, q, k, v, bias, leaves, seeds):
  extra = Extra(leaves, bias, seeds)
  out, lse = forward(plan, q, k, v, extra)
  return out, (q, k, v, extra, out, lse)


def _attend_bwd(plan, residuals, d_out):
  q, k, v, extra, out, lse = residuals
  found = gpu_backward.gradients(plan, q, k, v, extra, out, lse, d_out)
  return *found, None, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def forward(
  plan: Plan, q: jax.Array, k: jax.Array, v: jax.Array, extra: Extra
) -> tuple[jax.Array, jax.Array]:
  """Returns [B T N H'] and the log2 of each row's sum, float32 [B N T].

  The kernel for Hopper returns more rows of the second, of +inf.
  """
  tiles = plan.tiles.forward
  if isinstance(tiles, HopperTiles):
    return gpu_hopper.forward(plan, q, k, v, tiles)
  kinds = plan.kinds(extra.leaves, tiles)
  walk = gt.walk(kinds, tail=plan.S % tiles.k > 0)
  rows = pl.cdiv(plan.T, tiles.q)

  def row(i):
    return rows - 1 - i if walk.last_first else i

  def at(i, n, b):
    return b, n

  def at_kv(i, n, b):
    return b, jax.lax.div(n, plan.group)

  out = jax.ShapeDtypeStruct((plan.B, plan.T, plan.N, plan.width), q.dtype)
  lse = jax.ShapeDtypeStruct((plan.B, plan.N, plan.T), jnp.float32)
  call = pl.pallas_call(
    functools.partial(_forward_kernel, plan, tiles, walk, row),
    grid=(rows, plan.N, plan.B),
    in_specs=[
      gt.array_spec(plan.T, tiles.q, plan.H, at),
      gt.array_spec(plan.S, tiles.k, plan.H, at_kv),
      gt.array_spec(plan.S, tiles.k, plan.width, at_kv),
      gt.extra_specs(plan, tiles, extra, at),
      walk.specs(lambda i, n, b: (b, row(i))),
    ],
    out_specs=[
      pl.BlockSpec(
        (None, tiles.q, None, gt.padded(plan.width)),
        lambda i, n, b: (b, row(i), n, 0),
      ),
      pl.BlockSpec((None, None, tiles.q), lambda i, n, b: (b, n, row(i))),
    ],
    out_shape=[out, lse],
    cost_estimate=plan.cost(
      2 * (plan.H + plan.width), kinds, q, k, v, extra, out, lse
    ),
    compiler_params=tiles.params(),
    interpret=plan.interpret,
    name="attention_forward",
  )
  out, lse = call(q, k, v, extra, walk.tables)
  return out, lse


def _forward_kernel(
  plan, tiles, walk, row, q_ref, k_ref, v_ref, extra, tables, out_ref, lse_ref
):
  q0 = row(pl.program_id(0)) * tiles.q
  q = gt.load(q_ref, 0, q0, tiles.q, plan.T, 0, plan.H)

  def body(j, carry, partial):
    top, total, acc = carry
    k0 = j * tiles.k
    tile = Tile(plan, tiles, extra, 0, 0, q0, k0)
    k = gt.load(k_ref, 0, k0, tiles.k, plan.S, 0, plan.H, tail=partial)
    logits, _ = tile.logits(gt.products(q, k))
    seen = tile.seen() if partial else None
    if seen is not None:
      logits = jnp.where(seen, logits, -jnp.inf)
    new = jnp.maximum(top, logits.max(1))
    # Of a row that has seen nothing yet: -inf - -inf would be NaN.
    shift = jnp.where(new == -jnp.inf, 0.0, new)
    weights = jnp.exp2(logits - shift[:, None])
    fade = jnp.exp2(top - shift)
    total = total * fade + weights.sum(1)
    v = gt.load(v_ref, 0, k0, tiles.k, plan.S, 0, plan.width, tail=partial)
    acc = tuple(x * fade[:, None] for x in acc)
    return new, total, gt.add_mixed(acc, tile.kept(weights), v)

  top = jnp.full((tiles.q,), -jnp.inf, jnp.float32)
  start = (top, jnp.zeros_like(top), gt.zeros(tiles.q, plan.width))
  top, total, acc = walk.run(tables, body, start)
  empty = total == 0.0
  share = 1.0 / (jnp.where(empty, 1.0, total) * (1.0 - plan.rate))
  gt.store(
    out_ref, tuple(x * share[:, None] for x in acc), q0, plan.T, plan.width
  )
  # Rows without keys: their weights exp2(logit - inf) are zero.
  lse = jnp.where(empty, jnp.inf, top + jnp.log2(jnp.where(empty, 1.0, total)))
  gt.store_vector(lse_ref, lse, q0, plan.T)
