"""NVIDIA's attention in cuDNN, where it is right."""

import jax
import jax.numpy as jnp

from mmjax.ops import masks


def refuses(
  q_shape: tuple[int, ...],
  k_shape: tuple[int, ...],
  v_shape: tuple[int, ...],
  dtype: jnp.dtype,
  mask: masks.Mask | None,
  bias_shape: tuple[int, ...] | None,
  *,
  softcap: float | None = None,
  dropout_rate: float = 0.0,
  named: bool = False,
) -> str | None:
  """Says why cuDNN cannot compute a call, or None.

  Odd lengths are refused unless cuDNN was asked for by name: it computes them,
  but JAX raises when it comes to their gradient (0.12.0), and who calls cannot
  know whether a gradient will be asked for. A bias has a gradient for batch 1
  only (github.com/jax-ml/jax/issues/30593), so none is taken. Dropout is not
  keyed on positions there, and there is no soft cap.
  """
  if softcap is not None:
    return "has no softcap"
  if dropout_rate > 0.0:
    return "drops other weights than the seeds say"
  if bias_shape is not None:
    return "has no right gradient of a bias for batches above 1"
  if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
    return f"takes bfloat16 and float16, not {jnp.dtype(dtype)}"
  head_dim = q_shape[3]
  if head_dim > 128 or head_dim % 8 or v_shape[3] != head_dim:
    return (
      f"takes a multiple of 8 up to 128 as head_dim of q and v, not {head_dim} "
      f"and {v_shape[3]}"
    )
  parts = _parts(mask)
  if parts is None or (parts[0] and q_shape[1] != k_shape[1]):
    return "takes Causal() of a square, KeyPadding, or both, no other mask"
  if not named and (q_shape[1] % 2 or k_shape[1] % 2):
    return (
      f"cannot train odd lengths, {q_shape[1]} x {k_shape[1]}; ask for it by "
      "name if there will be no gradient"
    )
  return None


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
) -> jax.Array:
  """Computes what `kernels.reference.attend` computes, unless `refuses`."""
  why = refuses(
    q_BTNH.shape,
    k_BSKH.shape,
    v_BSKH.shape,
    q_BTNH.dtype,
    mask,
    None if bias is None else bias.shape,
    softcap=softcap,
    dropout_rate=dropout_rate,
    named=True,
  )
  parts = _parts(mask)
  if why is not None or parts is None:
    raise ValueError(f"cuDNN {why}")
  causal, lengths = parts
  queries = keys = None
  if lengths is not None:
    lengths = jnp.asarray(lengths, jnp.int32)
    # A row that sees nothing is NaN there: it looks at one key, for nothing.
    queries = jnp.full_like(lengths, q_BTNH.shape[1])
    keys = jnp.maximum(lengths, 1)
  out = jax.nn.dot_product_attention(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    scale=scale,
    is_causal=causal,
    implementation="cudnn",
    query_seq_lengths=queries,
    key_value_seq_lengths=keys,
  )
  if lengths is not None:
    out = jnp.where((lengths > 0)[:, None, None, None], out, 0)
  return out


def _parts(mask: masks.Mask | None) -> tuple[bool, jax.Array | None] | None:
  """Splits a mask into causal and lengths; None if it is another."""
  if mask is None or isinstance(mask, masks.Full):
    return False, None
  if isinstance(mask, masks.Causal) and mask.offset == 0:
    return True, None
  if isinstance(mask, masks.KeyPadding | masks.PrefixLengths):
    return False, mask.lengths
  if isinstance(mask, masks.And):
    a, b = _parts(mask.a), _parts(mask.b)
    if a is None or b is None or (a[1] is not None and b[1] is not None):
      return None
    return a[0] or b[0], b[1] if a[1] is None else a[1]
  return None
