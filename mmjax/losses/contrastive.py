"""Contrastive losses over all pairs of a batch, in three equal forms.

Row i of the images belongs to row i of the texts; all other pairs of the
global batch are negatives. With logits l = t x z^T (+ b):

  softmax (CLIP, Radford et al. 2021): the mean of the cross-entropies of
    image to text (rows) and text to image (columns).
  sigmoid (SigLIP, Zhai et al. 2023): the sum over all pairs of
    -log sigmoid(y l), y = 1 on the diagonal and -1 off it, over the batch B.

Forms, the same in value and gradient:

  dense: the logits, B x B, rows split over the batch axes of the mesh. The
    compiler gathers the texts.
  chunked: texts are gathered, and visited `chunk` at a time; the backward pass
    computes the logits again. Memory O(B chunk) instead of O(B B).
  ring: no device ever holds all texts. Blocks of texts travel around the batch
    axes (ppermute), and their statistics and gradients travel with them.
    Memory a device O(b chunk) for its b rows.

Metrics are those of the batch as a retrieval task: `batch/image_to_text` and
`batch/text_to_image`, the fraction of rows whose own partner scores strictly
higher than every other; `temperature` is t, `bias` is b.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mmjax import errors
from mmjax.parallel import rules
from mmjax.typing import Metrics

IMPLS = ("dense", "chunked", "ring")


def softmax(
  image_BD: jax.Array,
  text_BD: jax.Array,
  t: jax.Array,
  *,
  impl: str = "dense",
  chunk: int = 1024,
) -> tuple[jax.Array, Metrics]:
  """Symmetric cross-entropy over the batch (CLIP, Radford et al. 2021).

  Args:
    image_BD: normalised embeddings of the global batch.
    text_BD: the same for the texts; row i belongs to image i.
    t: inverse temperature, already exponentiated, a scalar.
    impl: "dense", "chunked" or "ring"; see the module.
    chunk: at most so many texts at a time (chunked, ring); the largest
      divisor of the number of texts in a block up to this is used.

  Returns:
    (loss in nats, metrics).

  Raises:
    InputError: unknown impl, a chunk below 1, or a batch that the devices of
      a ring cannot share equally.
  """
  return _loss("softmax", image_BD, text_BD, t, None, impl, chunk)


def sigmoid(
  image_BD: jax.Array,
  text_BD: jax.Array,
  t: jax.Array,
  b: jax.Array,
  *,
  impl: str = "dense",
  chunk: int = 1024,
) -> tuple[jax.Array, Metrics]:
  """Pairwise sigmoid loss over the batch, / B (SigLIP, Zhai et al. 2023).

  Args:
    image_BD: normalised embeddings of the global batch.
    text_BD: the same for the texts; row i belongs to image i.
    t: inverse temperature, already exponentiated, a scalar.
    b: bias added to each logit, a scalar.
    impl: "dense", "chunked" or "ring"; see the module.
    chunk: see `softmax`.

  Returns:
    (loss in nats an example, metrics).

  Raises:
    InputError: as `softmax`.
  """
  return _loss("sigmoid", image_BD, text_BD, t, b, impl, chunk)


def _loss(kind, image_BD, text_BD, t, b, impl, chunk):
  if impl not in IMPLS:
    raise errors.unknown("contrastive loss impl", impl, IMPLS)
  if chunk < 1:
    raise errors.InputError(f"chunk = {chunk}: must be 1 or more; give 1024.")
  image_BD = rules.constrain(image_BD, "batch", None)
  text_BD = rules.constrain(text_BD, "batch", None)
  scaled_BD = image_BD * t
  bias = jnp.zeros((), scaled_BD.dtype) if b is None else b
  if impl == "dense":
    stats, own = _dense(kind, scaled_BD, text_BD, bias)
  else:
    stats, own = _blockwise(kind, scaled_BD, text_BD, bias, impl, chunk)
  if kind == "softmax":
    loss = jnp.mean((stats.row + stats.column) / 2 - own)
  else:
    loss = jnp.mean(stats.row)
  metrics = {
    "batch/image_to_text": jnp.mean(own > stats.row_best, dtype=jnp.float32),
    "batch/text_to_image": jnp.mean(own > stats.column_best, dtype=jnp.float32),
    "temperature": jnp.asarray(t),
  }
  if b is not None:
    metrics["bias"] = jnp.asarray(b)
  return loss, jax.tree.map(lax.stop_gradient, metrics)


class _Stats(NamedTuple):
  """What the loss needs of the logits; each [B].

  softmax: row and column are logsumexps. sigmoid: row is the sum of the row's
  pair losses, column is zero. The bests are the highest negative logits.
  """

  row: jax.Array
  column: jax.Array
  row_best: jax.Array
  column_best: jax.Array


def _logits(scaled, text, bias):
  product = jnp.einsum(
    "bd,cd->bc", scaled, text, preferred_element_type=jnp.float32
  )
  return product + bias


def _pair_losses(logits, same):
  return jax.nn.softplus(jnp.where(same, -logits, logits))


def _dense(kind, scaled_BD, text_BD, bias):
  logits = _logits(scaled_BD, text_BD, bias)
  logits = rules.constrain(logits, "batch", None)
  same = jnp.eye(logits.shape[0], dtype=bool)
  if kind == "softmax":
    row = jax.nn.logsumexp(logits, axis=1)
    column = jax.nn.logsumexp(logits, axis=0)
  else:
    row = jnp.sum(_pair_losses(logits, same), axis=1)
    column = jnp.zeros_like(row)
  negative = lax.stop_gradient(jnp.where(same, -jnp.inf, logits))
  own = jnp.sum(jnp.where(same, logits, 0.0), axis=1)
  return _Stats(row, column, negative.max(axis=1), negative.max(axis=0)), own


def _blockwise(kind, scaled_BD, text_BD, bias, impl, chunk):
  layout = rules.current()
  batch = scaled_BD.shape[0]
  ids = jnp.arange(batch)
  # One bias an image makes every argument of the shard_map split the same way.
  biases = jnp.broadcast_to(jnp.asarray(bias, jnp.float32), (batch,))
  own = jnp.sum(scaled_BD * text_BD, axis=1, dtype=jnp.float32) + biases
  if impl == "ring" and layout is not None and layout.batch_shards > 1:
    shards = layout.batch_shards
    if batch % shards:
      raise errors.InputError(
        f"batch_size = {batch}: a ring needs equal parts on {shards} devices; "
        f"use a multiple of {shards}, or loss_impl='chunked'."
      )
    plan = _Plan(kind, chunk, tuple(layout.batch_axes), shards)
    row, matrix = ("batch",), ("batch", None)
    run = rules.per_shard(
      lambda *args: tuple(_pairs(plan, *args)),
      [matrix, matrix, row, row],
      [row] * len(_Stats._fields),
    )
  else:
    run = functools.partial(_pairs, _Plan(kind, chunk, (), 1))
    text_BD = rules.constrain(text_BD, None, None)
  return _Stats(*run(scaled_BD, text_BD, biases, ids)), own


class _Plan(NamedTuple):
  """How to visit all texts; static."""

  kind: str
  chunk: int
  axes: tuple[str, ...]  # mesh axes of the ring, () if there is none
  shards: int


def _visit(
  plan: _Plan, step: Callable[..., Any], home: Any, fixed: Any, moving: Any
) -> tuple[Any, Any]:
  """Folds step(home, fixed piece, moving piece) -> (home, moving) over texts.

  `home` stays with this device's images. `fixed` and `moving` have a row per
  text and arrive a chunk at a time; in a ring they tour all devices and end
  where they began. `fixed` is apart so that its hop to the next device does
  not wait for the work on it.
  """
  rows = jax.tree.leaves(fixed)[0].shape[0]
  size = max(n for n in range(1, min(plan.chunk, rows) + 1) if rows % n == 0)

  def block(home, fixed, moving):
    split, merge = (
      lambda x: x.reshape(-1, size, *x.shape[1:]),
      lambda x: x.reshape(rows, *x.shape[2:]),
    )
    home, moving = lax.scan(
      lambda home, piece: step(home, *piece),
      home,
      jax.tree.map(split, (fixed, moving)),
    )
    return home, jax.tree.map(merge, moving)

  if not plan.axes:
    return block(home, fixed, moving)
  hops = [(i, (i + 1) % plan.shards) for i in range(plan.shards)]

  def hop(x):
    return lax.ppermute(x, plan.axes, hops)

  def stop(carry, _):
    home, fixed, moving = carry
    following = jax.tree.map(hop, fixed)
    home, moving = block(home, fixed, moving)
    return (home, following, jax.tree.map(hop, moving)), None

  carry, _ = lax.scan(stop, (home, fixed, moving), None, length=plan.shards)
  return carry[0], carry[2]


def _statistics(plan, scaled, text, biases, ids) -> _Stats:
  """Returns the statistics of the logits of all images and all texts.

  scaled [b D], text [c D], biases [b], ids [b]: image i owns text j if their
  ids are equal.
  """

  def step(home, fixed, moving):
    (row, row_best), (text, text_ids), (column, column_best) = (
      home,
      fixed,
      moving,
    )
    logits = _logits(scaled, text, biases[:, None])
    logits = logits if plan.axes else rules.constrain(logits, "batch", None)
    same = ids[:, None] == text_ids[None]
    if plan.kind == "softmax":
      row = jnp.logaddexp(row, jax.nn.logsumexp(logits, axis=1))
      column = jnp.logaddexp(column, jax.nn.logsumexp(logits, axis=0))
    else:
      row = row + jnp.sum(_pair_losses(logits, same), axis=1)
    negative = jnp.where(same, -jnp.inf, logits)
    row_best = jnp.maximum(row_best, negative.max(axis=1))
    column_best = jnp.maximum(column_best, negative.max(axis=0))
    return (row, row_best), (column, column_best)

  nothing = jnp.full_like(biases, -jnp.inf)
  start = nothing if plan.kind == "softmax" else jnp.zeros_like(biases)
  (row, row_best), (column, column_best) = _visit(
    plan, step, (start, nothing), (text, ids), (start, nothing)
  )
  return _Stats(row, column, row_best, column_best)


def _pairs_forward(plan, scaled, text, biases, ids):
  stats = _statistics(plan, scaled, text, biases, ids)
  return stats, (scaled, text, biases, ids, stats.row, stats.column)


def _pairs_backward(plan, residuals, cotangents: _Stats):
  scaled, text, biases, ids, row, column = residuals

  def step(home, fixed, moving):
    d_scaled, d_biases = home
    text, text_ids, column, d_column = fixed
    logits = _logits(scaled, text, biases[:, None])
    logits = logits if plan.axes else rules.constrain(logits, "batch", None)
    d_row = cotangents.row[:, None]
    if plan.kind == "softmax":
      d_logits = d_row * jnp.exp(logits - row[:, None])
      d_logits += d_column[None] * jnp.exp(logits - column[None])
    else:
      # d softplus(y l) / dl = y sigmoid(y l), never as a difference: the
      # gradient of a pair that is nearly right keeps its digits.
      same = ids[:, None] == text_ids[None]
      sign = jnp.where(same, -1.0, 1.0)
      d_logits = d_row * sign * jax.nn.sigmoid(sign * logits)
    d_scaled += jnp.einsum("bc,cd->bd", d_logits, text.astype(d_logits.dtype))
    d_biases += jnp.sum(d_logits, axis=1)
    d_text = jnp.einsum("bc,bd->cd", d_logits, scaled.astype(d_logits.dtype))
    return (d_scaled, d_biases), moving + d_text

  zeros = functools.partial(jnp.zeros_like, dtype=jnp.float32)
  (d_scaled, d_biases), d_text = _visit(
    plan,
    step,
    (zeros(scaled), zeros(biases)),
    (text, ids, column, cotangents.column),
    zeros(text),
  )
  d_scaled, d_text = d_scaled.astype(scaled.dtype), d_text.astype(text.dtype)
  return d_scaled, d_text, d_biases, None


_pairs = jax.custom_vjp(_statistics, nondiff_argnums=(0,))
_pairs.defvjp(_pairs_forward, _pairs_backward)
