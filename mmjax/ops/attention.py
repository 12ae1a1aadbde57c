"""The one door to attention.

Everything that attends calls `attention`: it checks the arguments, picks an
implementation, and drops none of them in silence.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.ops import choice, dropout, masks
from mmjax.ops.bias import Bias
from mmjax.ops.kernels import ring

Shaped = jax.Array | jax.ShapeDtypeStruct


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  mask: masks.Mask | None = None,
  bias: jax.Array | Bias | None = None,
  scale: float | None = None,
  softcap: float | None = None,
  dropout_rate: float = 0.0,
  dropout_rng: jax.Array | None = None,
  impl: str | None = None,
  axis: str | None = None,
) -> jax.Array:
  """Computes multi-head attention, softmax(scale q k' + bias, where mask) v.

  "Attention is all you need", Vaswani et al. 2017; several query heads a key
  head as in "GQA", Ainslie et al. 2023. The softmax is float32. A query that
  may see no key gets a zero output, and gives zero gradients.

  Args:
    q: queries [B T N H].
    k: keys [B S K H]; N is a multiple of K, and query head n reads key head
      n // (N / K).
    v: values [B S K H'].
    mask: which query sees which key; None is all.
    bias: added to the scaled, capped scores; [B|1 N|1 T|1 S|1], or a table
      with a rule (`ops.bias`), which kernels read where they need it.
    scale: of the products; None is H**-0.5.
    softcap: scores s become softcap * tanh(s / softcap), before the bias
      (Gemma 2).
    dropout_rate: probability in [0, 1) of dropping a weight.
    dropout_rng: one key, or the seeds uint32 [B N] of `dropout.seeds`.
    impl: "xla", "tpu" and "gpu" (our kernels), or "cudnn"; a name insists.
      None is the best that can compute this, see `explain_attention`.
    axis: None, or inside `shard_map` the mesh axis that splits T and S: the
      arguments are this device's parts, but for the S of a bias, which is
      whole, and keys go round in a ring ("Ring attention", Liu et al. 2023).

  Returns:
    [B T N H'] in the dtype of q.

  Raises:
    InputError: shapes that do not fit each other, dropout without a key, or an
      implementation that does not exist or cannot compute this.
  """
  parts = 1 if axis is None else jax.lax.axis_size(axis)
  _check(q, k, v, mask, bias, parts)
  if not 0.0 <= dropout_rate < 1.0:
    raise errors.InputError(
      f"attention dropout_rate = {dropout_rate}: not in [0, 1); 0 is none."
    )
  batch, _, heads, head_dim = q.shape
  seeds = None
  if dropout_rate > 0.0:
    if dropout_rng is None:
      raise errors.InputError(
        f"attention dropout_rate = {dropout_rate} needs dropout_rng; give a "
        "key, or the rate 0."
      )
    seeds = dropout_rng
    if seeds.ndim < 2:  # a key, typed or raw
      seeds = dropout.seeds(seeds, batch, heads)
    if seeds.shape != (batch, heads) or seeds.dtype != jnp.uint32:
      raise errors.InputError(
        f"attention dropout_rng is {seeds.dtype} {seeds.shape}; give one key, "
        f"or seeds uint32 {(batch, heads)} for [B N]."
      )
  arguments: dict[str, Any] = dict(
    mask=None if isinstance(mask, masks.Full) else mask,
    bias=bias,
    scale=head_dim**-0.5 if scale is None else scale,
    softcap=softcap,
    dropout_rate=dropout_rate,
    dropout_seeds=seeds,
  )
  if axis is not None:
    if impl not in (None, "xla"):
      raise errors.InputError(
        f"attention impl = {impl!r}: a ring over the axis {axis!r} computes in "
        "XLA; take None."
      )
    if isinstance(bias, Bias):  # of this device's queries, and of all keys
      whole = bias.dense(q.shape[1] * parts, k.shape[1] * parts)
      first = jax.lax.axis_index(axis) * q.shape[1]
      arguments["bias"] = jax.lax.dynamic_slice_in_dim(
        whole, first, q.shape[1], axis=2
      )
    return ring.attend(q, k, v, axis=axis, **arguments)
  call = _call(q, k, v, arguments["mask"], bias, softcap, dropout_rate)
  name = choice.choose(impl, None, call).impl
  lengths = q.shape[1], k.shape[1]
  if isinstance(bias, Bias) and not choice.reads_table(name, bias, *lengths):
    arguments["bias"] = bias.dense(*lengths)
  return choice.kernel(name).attend(q, k, v, **arguments)


def explain_attention(
  q: Shaped,
  k: Shaped,
  v: Shaped,
  *,
  mask: masks.Mask | None = None,
  bias: Shaped | Bias | None = None,
  scale: float | None = None,
  softcap: float | None = None,
  dropout_rate: float = 0.0,
  dropout_rng: jax.Array | None = None,
  impl: str | None = None,
  platform: str | None = None,
) -> choice.Choice:
  """Says what `attention` takes for these arguments, and why not another.

  Args:
    q, k, v, mask, bias, scale, softcap, dropout_rate, dropout_rng, impl: as of
      `attention`; arrays may be `jax.ShapeDtypeStruct`s.
    platform: "cpu", "gpu" or "tpu"; None is that of the mesh or of the default
      device.

  Returns:
    A `Choice`; print it.

  Raises:
    InputError: as `attention`.
  """
  del scale, dropout_rng  # every implementation takes any
  _check(q, k, v, mask, bias, 1)
  call = _call(q, k, v, mask, bias, softcap, dropout_rate)
  return choice.choose(impl, platform, call)


def _call(
  q: Shaped,
  k: Shaped,
  v: Shaped,
  mask: masks.Mask | None,
  bias: Shaped | Bias | None,
  softcap: float | None,
  dropout_rate: float,
) -> dict[str, Any]:
  """Returns what may matter to an implementation, see `choice.choose`."""
  bias_shape = None if bias is None else (1, q.shape[2], q.shape[1], k.shape[1])
  if bias is not None and not isinstance(bias, Bias):
    bias_shape = bias.shape
  return dict(
    q_shape=q.shape,
    k_shape=k.shape,
    v_shape=v.shape,
    dtype=q.dtype,
    mask=mask,
    bias=bias,
    bias_shape=bias_shape,
    softcap=softcap,
    dropout_rate=dropout_rate,
  )


def settled(
  bias: jax.Array | Bias | None,
  length_q: int,
  length_k: int,
  impl: str | None = None,
) -> jax.Array | Bias | None:
  """Returns a bias in the form that what may be taken for `impl` reads.

  A table stays one where there is a kernel for it. Elsewhere each layer of a
  stack would spread it to [1 N T S] anew; this does so once for all.
  """
  if not isinstance(bias, Bias) or any(
    choice.reads_table(name, bias, length_q, length_k)
    for name in choice.candidates(impl)
  ):
    return bias
  return bias.dense(length_q, length_k)


def _check(
  q: Shaped,
  k: Shaped,
  v: Shaped,
  mask: masks.Mask | None,
  bias: Shaped | Bias | None,
  parts: int,
) -> None:
  shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
  if not q.ndim == k.ndim == v.ndim == 4:
    raise errors.InputError(
      f"attention: {shapes}; give arrays [batch length heads head_dim]."
    )
  if (
    k.shape[:3] != v.shape[:3]
    or q.shape[0] != k.shape[0]
    or q.shape[3] != k.shape[3]
    or q.shape[2] % k.shape[2]
  ):
    raise errors.InputError(
      f"attention: {shapes} do not fit; q [B T N H], k [B S K H] and v "
      "[B S K H'] share B, S, K and H, and N is a multiple of K."
    )
  full = (q.shape[0], q.shape[2], q.shape[1], k.shape[1] * parts)
  if isinstance(bias, Bias):
    _check_table(bias, q.shape[2], q.shape[1] * parts, full[3])
  elif bias is not None and (
    bias.ndim != 4
    or any(b not in (1, f) for b, f in zip(bias.shape, full, strict=True))
  ):
    raise errors.InputError(
      f"attention: bias of shape {bias.shape} does not broadcast to [B N T S] "
      f"= {full}; give 4 dimensions, each full or 1."
    )
  if not jnp.issubdtype(q.dtype, jnp.floating):
    raise errors.InputError(f"attention: q is {q.dtype}; give floats.")
  if mask is not None:
    masks.check(mask, q.shape[0], q.shape[1], k.shape[1], parts)


def _check_table(bias: Bias, heads: int, length_q: int, length_k: int) -> None:
  name, shape = type(bias).__name__, tuple(bias.table.shape)
  if shape != (heads, bias.entries()):
    raise errors.InputError(
      f"attention: the table of the bias {name} has shape {shape}; give "
      f"{(heads, bias.entries())}, one row for each head."
    )
  why = bias.misfit(length_q, length_k)
  if why is not None:
    raise errors.InputError(f"attention: bias {name}: {why}")
