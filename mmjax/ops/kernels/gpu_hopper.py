"""Attention on a Hopper GPU, forward: Pallas Mosaic GPU, for sm_90a.

"FlashAttention-3: Fast and Accurate Attention with Asynchrony and
Low-precision", Shah et al. 2024. A thread block holds 64 queries for each of
its warpgroups that compute; one more warpgroup moves tiles of keys and values
into a ring of shared memory (TMA), so that loads, products (wgmma) and the
running softmax overlap. Two warpgroups take turns: the products of one run
beside the softmax of the other. That is what takes longest, and may go ahead
without the highest logits, see `gpu_hopper_softmax`.

Of masks it takes those without data; no bias, soft-cap or dropout. Lengths are
any: loads past the end read zeros, stores past it are dropped, both by TMA.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mmjax.ops.kernels import gpu_hopper_memory as hm
from mmjax.ops.kernels import gpu_hopper_steps as steps
from mmjax.ops.kernels import gpu_tiles as gt
from mmjax.ops.kernels.gpu_hopper_grid import Item
from mmjax.ops.kernels.gpu_hopper_memory import ROWS
from mmjax.ops.kernels.gpu_hopper_steps import HopperTiles, Work
from mmjax.ops.kernels.gpu_tiles import Plan

DTYPES = ("bfloat16", "float16")
WIDTHS = (*range(8, 129, 8), 256)  # TMA takes rows of multiples of 16 bytes
_SMEM = 227 * 1024  # bytes of shared memory that a block may take
_GRID = 65_535  # of the second and third dimension of a CUDA grid
# Registers a thread after the warpgroups have shared them out anew: of those
# that compute, and of the one that loads. One that computes has what it needs
# from the start, and leaves room for other blocks.
_REGISTERS = {2: (240, 24), 3: (160, 32)}


def refuses(
  plan: Plan, dtype: Any, tiles: HopperTiles | None = None
) -> str | None:
  """Says why the kernel cannot compute a plan; None if it can.

  Args:
    plan: the call.
    dtype: of q, k and v.
    tiles: those to be used, or None for any that fit.
  """
  if jnp.dtype(dtype).name not in DTYPES:
    return f"dtype {jnp.dtype(dtype).name}; it computes {', '.join(DTYPES)}"
  if plan.H != plan.width or plan.H not in WIDTHS:
    return (
      f"head_dim {plan.H} and value width {plan.width}; it takes equal ones, "
      f"multiples of 8 up to 128, or 256"
    )
  for what, given in (
    ("a soft-cap", plan.softcap is not None),
    ("a bias", plan.bias is not None),
    ("dropout", plan.rate > 0.0),
    ("a mask with data", plan.axes != ()),
    ("interpret mode", plan.interpret),
    (f"scale {plan.scale}; it must be positive", not plan.scale > 0.0),
  ):
    if given:
      return what
  if min(plan.B, plan.T, plan.S, plan.N) < 1:
    return "arrays that are empty"
  if max(plan.B, plan.N) > _GRID:
    return f"batch or heads of {plan.B}, {plan.N}; at most {_GRID}"
  if tiles is None:
    return None
  if not 1 <= tiles.wgs <= 3 or tiles.stages < 1:
    return f"{tiles}; wgs are 1 to 3, stages at least 1"
  if tiles.lazy and tiles.overlap:
    return f"{tiles}; it is lazy or overlaps, not both"
  if tiles.k % 16 or not 16 <= tiles.k <= 256:
    return f"{tiles}; k is a multiple of 16 up to 256"
  if tiles.k % 64 and jax.__version_info__ < (0, 11):
    return f"{tiles}; with jax {jax.__version__}, k is a multiple of 64"
  size = _smem_bytes(plan, tiles)
  if size > _SMEM:
    return f"{tiles} of width {plan.H}; {size} bytes of shared memory"
  return None


def forward(
  plan: Plan, q: jax.Array, k: jax.Array, v: jax.Array, tiles: HopperTiles
) -> tuple[jax.Array, jax.Array]:
  """Computes attention and what its backward pass needs.

  Args:
    plan: the call, as `refuses` takes it.
    q: [B T N H].
    k, v: [B S K H].
    tiles: what a thread block computes.

  Returns:
    The output, [B T N H] in the dtype of q, and the log2 of each row's sum of
    exp2(scaled logits in units of log 2), float32 [B N up(T, 128)]: inf for
    rows past T and for those that see no key, whose output is zero.

  Raises:
    ValueError: what `refuses` says.
  """
  why = refuses(plan, q.dtype, tiles)
  if why is not None:
    raise ValueError(f"the Hopper kernel refuses {why}.")
  work = Work.of(plan, tiles, jnp.dtype(q.dtype))
  length = gt.up(plan.T, gt.LSE_ROWS)
  scratch, barriers = _scratch(work), _barriers(work)

  def attention_forward(*refs):
    pl.run_scoped(
      lambda memory, signals: _run(work, refs, memory, signals),
      scratch,
      barriers,
      collective_axes=hm.WG,
    )

  results = [
    jax.ShapeDtypeStruct(q.shape, q.dtype),
    jax.ShapeDtypeStruct((plan.B, plan.N, length), jnp.float32),
  ]
  kinds = plan.kinds((), gt.Tiles(tiles.q, tiles.k))
  out, lse = plgpu.kernel(
    attention_forward,
    out_type=results,
    **hm.costs(plan.cost(4 * plan.H, kinds, q, k, v, results)),
    **work.grid.launch(),
    num_threads=tiles.wgs + int(work.loader),
    thread_name=hm.WG,
    compiler_params=plgpu.CompilerParams(
      approx_math=True,
      # Arrays of warpgroups are laid out by hand; so are views of one memory.
      lowering_semantics=plgpu.LoweringSemantics.Lane,
    ),
  )(q, k, v, *work.walk.tables)
  if work.rows * tiles.q < length:  # rows of no block
    lse = jnp.where(jnp.arange(length) < plan.T, lse, jnp.inf)
  return out, lse


def _scratch(work: Work) -> dict[str, Any]:
  tiles, stages = work.tiles, work.stages

  def memory(*shape):
    return [part.memory(shape, work.dtype, work.tiled) for part in work.parts]

  found = {
    "q": memory(tiles.wgs, ROWS),
    "k": memory(stages, tiles.k),
    "v": memory(stages, steps.value_rows(tiles)),
    "lse": plgpu.SMEM((tiles.wgs, ROWS), jnp.float32),
  }
  if work.resident:
    found["out"] = memory(tiles.wgs, ROWS)
  return found


def _barriers(work: Work) -> dict[str, Any]:
  stages, parts, wgs = work.stages, len(work.parts), work.tiles.wgs
  found = {
    "q": plgpu.Barrier(num_arrivals=parts, num_barriers=wgs),
    "k": plgpu.Barrier(num_arrivals=parts, num_barriers=stages),
    "v": plgpu.Barrier(num_arrivals=parts, num_barriers=stages),
  }
  if work.loader:
    free = plgpu.Barrier(num_arrivals=wgs, num_barriers=stages)
    found["k_free"], found["v_free"] = free, free
  if work.resident:
    found["q_free"] = plgpu.Barrier(num_arrivals=1, num_barriers=wgs)
  if work.turns:
    found["turn"] = plgpu.Barrier(num_arrivals=1, num_barriers=2)
  return found


def _run(work: Work, refs: tuple[Any, ...], memory: Any, signals: Any) -> None:
  """Gives each warpgroup what it does."""
  wg, wgs = lax.axis_index(hm.WG), work.tiles.wgs

  def at(item):
    return steps.Block(work, refs, memory, signals, wg, item)

  def each(run):
    work.grid.for_each(lambda x: run(at(x)), lambda x: at(x).steps())

  def compute():
    at(Item()).begin_turns()
    each(steps.Block.compute)
    plgpu.wait_smem_to_gmem(0)

  if not work.loader:
    each(steps.Block.load_all)
    compute()
    return

  @pl.when(wg < wgs)
  def _():
    if wgs in _REGISTERS:
      plgpu.set_max_registers(_REGISTERS[wgs][0], action="increase")
    compute()

  @pl.when(wg == wgs)
  def _():
    if wgs in _REGISTERS:
      plgpu.set_max_registers(_REGISTERS[wgs][1], action="decrease")
    each(steps.Block.load)


def _smem_bytes(plan: Plan, tiles: HopperTiles) -> int:
  width = sum(part.size for part in hm.split(plan.H))
  rows = (1 + tiles.resident) * tiles.q
  rows += tiles.stages * (tiles.k + steps.value_rows(tiles))
  return 2 * width * rows + 4 * tiles.q + 4096
