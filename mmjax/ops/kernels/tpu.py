"""Attention on TPU: which of our Pallas kernels runs, and what none can do."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import errors
from mmjax.ops import blocks, masks
from mmjax.ops.bias import Bias
from mmjax.ops.kernels import (
  tpu_band,
  tpu_call,
  tpu_flash,
  tpu_flash_backward,
  tpu_scores,
  tpu_steps,
  tpu_whole_backward,
)
from mmjax.ops.kernels.tiles import (
  CHIPS,
  LANES,
  LONGEST,
  WIDE,
  Flash,
  Key,
  Whole,
  bucket,
  flash,
  sharing,
  whole,
)

_SCALARS = 2**17  # 4-byte words of seeds or lengths that may go ahead
# Bytes of float32 scores that XLA is thought to keep in vector memory, with
# their exponentials: half of the 64 MiB of v5p and tpu7x. A guess: unmeasured.
_STAYS = 32 * 2**20
_CODE = 16 * 768**2  # scores of heads side by side: half a minute to compile
_FEW = 16  # queries; fewer, as when a model decodes, fill no tile of the MXU
_DTYPES = ("bfloat16", "float32")
# Blocks of flash under a static mask, and what a pair costs in them: smaller
# ones skip more. On v6e by tools/kernel_steps.py, causal 2048, head of 128,
# forward and backward; elsewhere a guess.
_PAIR: dict[str | None, Sequence[tuple[int, float]]] = {
  None: ((1024, 1.0), (512, 1.15), (256, 1.5)),
  "v6e": ((1024, 1.0), (512, 1.45), (256, 3.4)),
}


def refuses(
  q_shape: Sequence[int],
  k_shape: Sequence[int],
  v_shape: Sequence[int],
  dtype: Any,
  *,
  mask: masks.Mask | None = None,
  bias_shape: Sequence[int] | None = None,
  dropout_rate: float = 0.0,
  named: bool = True,
) -> str | None:
  """Says why neither kernel runs; None if one does.

  Both can do what this refuses only where it is not named: few queries, and few
  short rows that must be laid with heads first (`packs`), whose scores XLA keeps
  in vector memory. By the compiler's estimates it is then no slower. What need
  not be laid costs less than XLA in every shape that was tried (ops/README.md).

  Args:
    q_shape, k_shape, v_shape: of [B T N H], [B S K H] and [B S K H'].
    dtype: of all three.
    mask, dropout_rate: as of `attend`.
    bias_shape: [B|1 N|1 T|1 S|1], or None.
    named: the caller insists on these kernels.
  """
  B, T, N, H = q_shape
  S = k_shape[1]
  if jnp.dtype(dtype).name not in _DTYPES:
    return f"q is {jnp.dtype(dtype).name}; the TPU kernels take {_DTYPES}"
  if min(B, T, S, N, H, v_shape[3]) < 1:
    return f"an axis of q {tuple(q_shape)} or k {tuple(k_shape)} is empty"
  if max(H, v_shape[3]) > 1024:
    return f"head_dim {max(H, v_shape[3])} is more than 1024"
  if dropout_rate > 0.0 and B * N > _SCALARS:
    return f"dropout has {B} x {N} seeds, more than {_SCALARS}"
  if mask is not None and "b" in masks.leaf_axes(mask) and B > _SCALARS:
    return f"the mask has {B} lengths, more than {_SCALARS}"
  tiles = choose(
    q_shape, k_shape, v_shape, dtype, mask=mask, bias_shape=bias_shape
  )
  may_pass = not named and isinstance(tiles, Whole)
  if may_pass and T < _FEW:
    return (
      f"{T} queries are few (less than {_FEW}), so that any kernel waits for "
      "keys and values, as XLA does; give impl='tpu' to insist"
    )
  laid = not packs(q_shape, k_shape, v_shape)
  if may_pass and laid and 4 * B * N * T * S <= _STAYS:
    return (
      f"the {4 * B * N * T * S / 2**20:.1f} MiB of scores stay in vector memory"
      f" (up to {_STAYS // 2**20} MiB), where XLA is no slower by estimate; "
      "give impl='tpu' to insist"
    )
  return _too_many(T, S, tiles)


def _too_many(T: int, S: int, tiles: Whole | Flash) -> str | None:
  if isinstance(tiles, Whole) or not tpu_steps.too_many(
    T, S, tiles.block_q, tiles.block_k
  ):
    return None
  return (
    f"{T} queries and {S} keys are too many blocks of {tiles.block_q} x "
    f"{tiles.block_k} for the scalar memory"
  )


def choose(
  q_shape: Sequence[int],
  k_shape: Sequence[int],
  v_shape: Sequence[int],
  dtype: Any,
  *,
  mask: masks.Mask | None = None,
  bias_shape: Sequence[int] | None = None,
  chip: str | None = None,
) -> Whole | Flash:
  """Returns the tiles to take, which say the kernel: the table's, or a rule's.

  Args:
    q_shape, k_shape, v_shape, dtype, mask, bias_shape: as of `refuses`.
    chip: as of `tiles.Key`; None asks the rule alone.
  """
  B, T, N, H = q_shape
  S, K = k_shape[1:3]
  name = jnp.dtype(dtype).name
  kind = "none" if mask is None or isinstance(mask, masks.Full) else "static"
  if kind == "static" and jax.tree.leaves(mask):
    kind = "data"
  packed = [True, False] if packs(q_shape, k_shape, v_shape) else [False]
  for each in packed if max(T, S) <= LONGEST else ():
    found = whole(
      (B, K, N // K),
      (T, S),
      (H, v_shape[3]),
      np.dtype(jnp.dtype(dtype)).itemsize,
      None if bias_shape is None else tuple(bias_shape),
      Key(chip, "whole", bucket(S), H, kind, name),
      each,
    )
    if found is not None:
      return found
  mask = _by_lines(mask, T, S, bias_shape is not None) or mask
  size = _block(mask, T, S, chip) if kind == "static" else None
  return flash(Key(chip, "flash", bucket(S), H, kind, name), size)


def packs(
  q_shape: Sequence[int], k_shape: Sequence[int], v_shape: Sequence[int]
) -> bool:
  """Says whether the whole-sequence kernel takes arrays as [B T N*H].

  Where heads fill tiles of lanes together and each has keys of its own, or where
  each fills tiles alone: nothing need then be laid with heads first, and 64
  lanes are not padded to 128. Heads of 72, 80 or 88 end together after 16, 8 or
  16; these are all laid side by side in the code, so that there may not be too
  many scores of them.
  """
  _, T, N, H = q_shape
  share = sharing(H)
  alike = v_shape[3] == H and (k_shape[2] == N or share == 1)
  # Heads that end within a tile each have code of their own.
  small = H >= 16 and H % 8 == 0 and (share * T * k_shape[1] <= _CODE)
  even = LANES % H == 0 or H % LANES == 0
  return alike and N % share == 0 and (small or (even and H >= 16))


def _by_lines(
  mask: masks.Mask | None, T: int, S: int, biased: bool
) -> masks.Lines | None:
  """Returns the mask to compute instead, of tokens in another order; or None.

  Column by column, for a mask by columns: keys that a query sees then stand
  together. A bias would have to be laid too, and it has T x S numbers.
  """
  if biased or not isinstance(mask, masks.Column):
    return None
  lines = mask.by_lines()
  return lines if T == S == mask.text + mask.rows * mask.columns else None


def _block(mask: masks.Mask | None, T: int, S: int, chip: str | None) -> int:
  """Returns the size of block at which a mask leaves the least to do."""
  costs = {}
  for size, each in _PAIR.get(chip, _PAIR[None]):
    kinds = blocks.static_map(mask, T, S, size, size)
    costs[size] = each * size**2 * np.count_nonzero(kinds)
  return min(costs, key=lambda size: costs[size])


def attend(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  *,
  mask: masks.Mask | None,
  bias: jax.Array | Bias | None,
  scale: float,
  softcap: float | None,
  dropout_rate: float,
  dropout_seeds: jax.Array | None,
  interpret: Any = False,
  tiles: Whole | Flash | None = None,
) -> jax.Array:
  """Computes attention by the whole-sequence or the flash kernel.

  Reverse-mode differentiable in q, k, v and bias. A query that may see no key
  gets zero, and gives zero gradients. The products take the inputs' dtype and
  sum in float32, as does the softmax; float32 inputs count in full.

  Args:
    q_BTNH, k_BSKH, v_BSKH, mask, bias, scale, softcap: as of
      `ops.attention.attention`.
    dropout_rate: probability of dropping a weight.
    dropout_seeds: uint32 [B N] of `ops.dropout.seeds`, or None at rate 0.
    interpret: as of `pallas_call`; True runs on a CPU.
    tiles: which kernel and which tiles; None chooses.

  Returns:
    [B T N H'] in the dtype of q.

  Raises:
    InputError: what `refuses` refuses.
  """
  _B, T, N, H = q_BTNH.shape
  shapes = (q_BTNH.shape, k_BSKH.shape, v_BSKH.shape)
  shape: Any = None if bias is None else (1, N, T, k_BSKH.shape[1])
  if bias is not None and not isinstance(bias, Bias):
    shape = bias.shape
  given: dict[str, Any] = dict(mask=mask, bias_shape=shape)
  why = refuses(*shapes, q_BTNH.dtype, dropout_rate=dropout_rate, **given)
  if why is None and not q_BTNH.dtype == k_BSKH.dtype == v_BSKH.dtype:
    why = f"q {q_BTNH.dtype}, k {k_BSKH.dtype}, v {v_BSKH.dtype} differ"
  if why is None and dropout_rate > 0.0 and dropout_seeds is None:
    why = f"dropout_rate = {dropout_rate} without dropout_seeds"
  if tiles is None:
    tiles = choose(*shapes, q_BTNH.dtype, chip=_chip(), **given)
  else:
    why = why or _too_many(T, k_BSKH.shape[1], tiles)
  if why is not None:
    raise errors.InputError(f"attention impl = 'tpu': {why}; take 'xla'.")
  if isinstance(mask, masks.Full):
    mask = None
  packed = packs(*shapes)
  if isinstance(tiles, Whole):
    packed = packed and tiles.kv_heads % sharing(H) == 0
  lines = _by_lines(mask, T, k_BSKH.shape[1], bias is not None)
  if isinstance(tiles, Whole) and lines is not None:
    # It lays tokens in its registers, where these fill them.
    whole = (lines.text | lines.rows | lines.columns) % 16 == 0
    whole = whole and LANES % H == 0 and k_BSKH.shape[2] == N
    lines = lines if packed and whole else None
  mask = lines or mask
  band = False
  if isinstance(bias, Bias):
    bias, band = _spread(bias, T, k_BSKH.shape[1], tiles)
  rule = _rule(
    mask,
    scale=float(scale),
    softcap=None if softcap is None else float(softcap),
    rate=float(dropout_rate),
    biased=bias is not None,
    band=band,
    laid=lines is not None,
  )
  leaves = _leaves(mask)
  seeds = None
  if dropout_seeds is not None and dropout_rate > 0.0:
    seeds = jax.lax.bitcast_convert_type(dropout_seeds, jnp.int32)
  run = _flash
  if isinstance(tiles, Whole):
    run = _packed if packed else _apart
  qkv = q_BTNH, k_BSKH, v_BSKH
  return run(rule, tiles, interpret, qkv, bias, leaves, seeds)


def reads_table(bias: Bias, length_q: int, length_k: int) -> bool:
  """Says whether the kernel that runs may read a table without its T x S."""
  return bias.DIAGONAL and max(length_q, length_k) > LONGEST


def _spread(
  bias: Bias, T: int, S: int, tiles: Whole | Flash
) -> tuple[jax.Array, bool]:
  """Returns a bias as the kernel reads it, and whether that is windows."""
  if isinstance(tiles, Flash) and bias.DIAGONAL:
    sizes = min(tiles.block_q, T), min(tiles.block_k, S)
    if tpu_band.fits(T, S, *sizes):
      return tpu_band.windows(bias, T, S, sizes[0]), True
  return bias.dense(T, S), False


def _rule(
  mask: masks.Mask | None,
  scale: float = 1.0,
  softcap: float | None = None,
  rate: float = 0.0,
  **given: bool,
) -> tpu_scores.Rule:
  return tpu_scores.Rule(
    None if mask is None else jax.tree.structure(mask),
    () if mask is None else masks.leaf_axes(mask),
    scale,
    softcap,
    rate,
    **given,
  )


def _flash(rule, tiles, interpret, qkv, bias, *rest) -> jax.Array:
  """Calls the flash kernel, of [B N T H]."""
  plan = tpu_flash.Plan(rule, tiles, interpret)
  heads_first = [x.swapaxes(1, 2) for x in qkv]
  lines = rule.spec() if rule.laid else None
  if lines is not None:
    heads_first = [lines.lay(x, 2) for x in heads_first]
  out: Any = tpu_flash_backward.attend(plan, *heads_first, bias, *rest)
  out = out if lines is None else lines.lay(out, 2, True)
  return out.swapaxes(1, 2)


def _apart(rule, tiles, interpret, qkv, bias, *rest) -> jax.Array:
  """Calls the whole-sequence kernel, of heads first."""
  plan = tpu_call.Plan(rule, tiles, interpret)
  q, k, v = (x.swapaxes(1, 2) for x in qkv)
  (B, N, T, H), K = q.shape, k.shape[1]
  q = q.reshape(B, K, N // K, T, H)
  bias = _grouped(bias, N, K)
  out: Any = tpu_whole_backward.attend(plan, q, k, v, bias, *rest)
  return out.reshape(B, N, T, -1).swapaxes(1, 2)


def _packed(rule, tiles, interpret, qkv, bias, *rest) -> jax.Array:
  """Calls the whole-sequence kernel, of arrays as projections leave them."""
  shape = qkv[0].shape
  narrow = _chip() not in (None, *WIDE)
  plan = tpu_call.Plan(rule, tiles, interpret, shape[-1], narrow)
  flat = (x.reshape(*x.shape[:2], -1) for x in qkv)
  bias = _grouped(bias, shape[2], qkv[1].shape[2])
  out: Any = tpu_whole_backward.attend(plan, *flat, bias, *rest)
  return out.reshape(shape)


def _grouped(bias: jax.Array | None, N: int, K: int) -> jax.Array | None:
  """Returns a bias as [B|1 K|1 G|1 T|1 S|1]."""
  if bias is None:
    return None
  heads = (1, 1) if bias.shape[1] == 1 else (K, N // K)
  return bias.reshape(bias.shape[0], *heads, *bias.shape[2:])


def _leaves(mask: masks.Mask | None) -> tuple[jax.Array, ...]:
  """Returns a mask's data as kernels read it: int32 [B], [B 1 T] or [B 1 S]."""
  if mask is None:
    return ()
  return tuple(
    jnp.asarray(leaf).astype(jnp.int32)
    if axis == "b"
    else jnp.asarray(leaf).astype(jnp.int32)[:, None]
    for leaf, axis in zip(
      jax.tree.leaves(mask), masks.leaf_axes(mask), strict=True
    )
  )


def _chip() -> str | None:
  """Returns the chip the table knows, or None."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  kind = device.device_kind if device else jax.devices()[0].device_kind
  return CHIPS.get(kind)
