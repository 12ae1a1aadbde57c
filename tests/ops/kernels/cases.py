"""What the kernels for TPU and GPU are both held to: masks, and the truth."""

import jax.numpy as jnp
import numpy as np

from mmjax.ops import dropout, masks


def ids(length, *runs):
  """Rows of segment ids: a run (id, count) after the other, then padding."""
  rows = np.zeros((len(runs), length), np.int32)
  for row, run in zip(rows, runs, strict=True):
    filled = np.repeat([i for i, _ in run], [n for _, n in run])
    row[: len(filled)] = filled[:length]
  return jnp.asarray(rows)


def specs(T, S):
  """A mask of each kind, for two rows, some of which see nothing."""
  positions = ids(T, [(3, 5), (20, T)], [(7, T)]), ids(S, [(3, S)], [(8, S)])
  return {
    "none": None,
    "full": masks.Full(),
    "causal": masks.Causal(S - T),
    "causal_late": masks.Causal(-20),  # the first 20 queries see nothing
    "prefix": masks.Prefix(21) | masks.Causal(),
    "local": masks.Local(9, 4),
    "banded": masks.Banded(11),
    "row": masks.Row(20, 6, 8),
    "column": masks.Column(20, 6, 8),
    "conv": masks.Conv(20, 6, 8, 3),
    "lengths": masks.KeyPadding(jnp.array([18, 0])),
    "prefix_lengths": masks.PrefixLengths(jnp.array([30, 3])) | masks.Causal(),
    "segments": masks.Segments(
      ids(T, [(1, 20), (2, 9)], [(5, 33), (6, 4)]),
      ids(S, [(1, 17), (2, 20)], [(6, 35)]),
    ),
    "packed": masks.Segments(
      ids(T, [(1, 20), (2, 9)], [(5, T)]),
      ids(S, [(1, 17), (2, 20)], [(5, S)]),
    )
    & masks.Causal(),
    "keys": masks.Keys(jnp.arange(2 * S).reshape(2, S) % 3 > 0),
    "positions": masks.Positions(*positions, left=15),
  }


def truth(args, d_out, mask, scale, softcap, rate, seeds):
  """Returns the output and the gradients of q, k, v and bias, float64.

  The closed form and its derivative, in NumPy.
  """
  q, k, v, bias = (None if x is None else np.asarray(x, float) for x in args)
  d_out = np.asarray(d_out, float)
  B, T, N = q.shape[:3]
  S, K = k.shape[1:3]
  k, v = (np.repeat(x, N // K, axis=2) for x in (k, v))
  s = np.einsum("BTNH,BSNH->BNTS", q, k) * scale
  slope = 1.0
  if softcap is not None:
    slope = 1 - np.tanh(s / softcap) ** 2
    s = softcap * np.tanh(s / softcap)
  if bias is not None:
    s = s + bias
  seen = np.ones((1, 1, T, S), bool)
  if mask is not None:
    seen = np.asarray(masks.dense(mask, T, S))
  e = np.where(seen, np.exp(s), 0.0)  # numbers are modest
  total = e.sum(-1, keepdims=True)
  p = e / np.where(total == 0.0, 1.0, total)
  keep = 1.0
  if rate:
    at = np.arange(T).reshape(1, 1, T, 1), np.arange(S).reshape(1, 1, 1, S)
    keep = dropout.keep(seeds.reshape(B, N, 1, 1), *at, rate)
    keep = np.asarray(keep) / (1.0 - rate)
  out = np.einsum("BNTS,BSNH->BTNH", p * keep, v)
  d_v = np.einsum("BNTS,BTNH->BSNH", p * keep, d_out)
  dp = np.einsum("BTNH,BSNH->BNTS", d_out, v) * keep
  ds = p * (dp - (p * dp).sum(-1, keepdims=True))
  found = [out]
  d_bias = ds
  ds = ds * slope * scale
  found.append(np.einsum("BNTS,BSNH->BTNH", ds, k))
  for x in (np.einsum("BNTS,BTNH->BSNH", ds, q), d_v):
    found.append(x.reshape(B, S, K, N // K, -1).sum(3))
  if bias is not None:
    alike = tuple(axis for axis, n in enumerate(bias.shape) if n == 1)
    found.append(d_bias.sum(alike, keepdims=True))
  return found
