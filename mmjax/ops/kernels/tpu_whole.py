"""Attention of short sequences on TPU: all keys of a head at once.

Blocks are as long as the sequence, so that any length runs without padding in
HBM: 197 patches, 20 regions, 1500 frames. A program holds a few heads of a few
rows and computes a plain softmax. Queries are cut into chunks, and a chunk
computes those runs of keys that its mask does not rule out: which are known
when the kernel is compiled, so that nothing is looked up. Where keys move on
with the queries, as the window of a local mask does, a chunk has a run of them
for each 128 queries, all in one tile.

Scores lie with their keys along the sublanes, and weights are what the MXU
holds while the few rows of a head's values, turned, go through it: a head of 64
is 64 rows to push where the queries would be hundreds.

Arrays come either with heads first, or as a model's projection leaves them,
[B T N*H]: heads narrower than a register then share its lanes, several to a
`tile`, and nothing is laid anew or padded. A head's scores are products of
whole registers in which the queries of the others are zero.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.ops.kernels import tpu_scores as tile
from mmjax.ops.kernels.tiles import LANES
from mmjax.ops.kernels.tpu_call import Call, Plan, of_lines
from mmjax.ops.kernels.tpu_chunks import aligned, pieces
from mmjax.ops.kernels.tpu_heads import (
  Heads,
  cut,
  each_tile,
  firsts,
  join,
  pipeline,
  spread,
  units,
)


def _kernel(call: Call, scalars, inputs, extra, outs, scratch):
  del extra
  out_ref, lse_ref = outs[0], outs[1] if len(outs) > 1 else None
  heads = Heads(call, scalars, inputs, [*inputs[:3], out_ref], scratch)
  rule = call.plan.rule
  # The MXU sums the weights as they are multiplied, where it has rows left.
  H = call.widths[1]
  ones = 16 - H % 16 if H < LANES and rule.rate == 0.0 else 0

  def scores(unit):
    found = []
    for s, _ in heads.scores(unit):
      found.append(s)
      yield
    return (found,)

  def weights(unit, parts):
    """Computes (unscaled weights of each run, their maximum, their sum)."""
    if not unit.chunk[2]:
      return (), None, None
    tops = [s.max(0, keepdims=True) for s in parts]
    top = functools.reduce(jnp.maximum, tops)
    if rule.mask is not None or rule.biased:
      top = jnp.maximum(top, tile.LOWEST)
    powers = []
    for s in parts:
      powers.append(tile.power(rule, s - top))
      yield
    if ones:
      return powers, top, None
    sums = [p.sum(0, keepdims=True) for p in powers]
    return powers, top, functools.reduce(jnp.add, sums)

  def products(unit, powers, top, total):
    out: Any = 0.0
    for run, p in zip(unit.chunk[2], powers, strict=True):
      p = heads.thin(p, unit, run).astype(heads.v.dtype)
      parts = []
      for queries, keys in pieces(unit.chunk, run):
        wide = aligned(keys, call.S)
        v = heads.turned(heads.v, unit, wide, of_keys=True)
        if ones:
          some = jnp.ones((ones, v.shape[1]), v.dtype)
          v = jnp.concatenate([v, some], 0)
        parts.append(tile.dot(v, spread(cut(p, queries), keys, wide), 1, 0))
      out += join(parts, 1)
      yield
    start, stop, runs = unit.chunk
    # Of a row that sees nothing: infinite, so that its weights come out 0.
    lse = jnp.full((1, stop - start), jnp.inf, jnp.float32)
    if runs:
      if ones:
        out, total = out[:-ones], out[-1:]
      out = out * tile.inverse(total)
      lse = jnp.where(total == 0.0, lse, top + tile.logarithm(rule, total))
    else:
      out = jnp.zeros((call.widths[1], stop - start), out_ref.dtype)
    heads.write(out_ref, unit, unit.span, out)
    if lse_ref is not None:
      at = unit.b, heads.key_head(unit), unit.g
      lse_ref[(*at, slice(None), unit.span)] = lse

  def several(tiles):
    for unit in firsts(tiles):
      heads.lay(inputs[:3], unit)
    pipeline(
      units(call, tiles, range(call.block[2])),
      scores,
      weights,
      products,
      turns=call.tiles.block_k > 0,
    )
    for unit in firsts(tiles):
      heads.lay_back(out_ref, unit)

  each_tile(call, several)


def forward(
  plan: Plan, args: Sequence[Any], keep: bool = False
) -> list[jax.Array]:
  """Computes attention.

  Args:
    plan: what is static.
    args: (q, k, v, bias, leaves, seeds) as of `Call`, but a bias as of the
      caller, [B|1 K|1 G|1 T|1 S|1].
    keep: whether to return the log of sums, too.

  Returns:
    The output, shaped as q (but H' wide), and the log of sums [B K G 1 T].
  """
  call = Call(plan, keys_first(args), backward=False)
  q, v = args[0], args[2]
  width = q.shape[-1] if plan.width else v.shape[-1]
  out = jax.ShapeDtypeStruct((*q.shape[:-1], width), q.dtype)
  outs = [(out, call.of_heads(out, 3))]
  if keep:
    lse = jax.ShapeDtypeStruct((*call.heads, 1, call.T), jnp.float32)
    outs.append((lse, call.spec(lse.shape, 3)))
  return call.run(_kernel, "attention_whole", [], outs, of_lines(call, q, 4))


def keys_first(args: Sequence[Any]) -> Sequence[Any]:
  """Turns the bias of arguments, so that its keys come first as in scores."""
  q, k, v, bias, *rest = args
  return q, k, v, None if bias is None else bias.swapaxes(3, 4), *rest
