"""Beam search, in which hypotheses that ended compete with those that go on.

"Sequence transduction with recurrent neural networks", Graves 2012; scores
with a length penalty, "Google's neural machine translation system", Wu et al.
2016. When a search ends, and what it then returns, is as in the model hub's
`generate`, to the id.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Added to the score of what shall not be chosen while others can be.
_WORST = -1.0e9


class State(NamedTuple):
  """K hypotheses that go on and K that have ended, best first.

  Attributes:
    ids: [B K L]. scores: log probabilities [B K].
    parents: int32 [B K], of which beam each was before its last token.
    ended_ids: [B K L]. ended_scores: with the length penalty [B K].
    ended: which of them are any [B K].
    hopeful: may those that go on become better than those? [B]
    index: the next place.
    going: bool scalar.
  """

  ids: jax.Array
  scores: jax.Array
  parents: jax.Array
  ended_ids: jax.Array
  ended_scores: jax.Array
  ended: jax.Array
  hopeful: jax.Array
  index: jax.Array
  going: jax.Array


def search(
  step: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]],
  start: tuple[jax.Array, Any],
  ids: jax.Array,
  prompt: int,
  *,
  beams: int,
  length_penalty: float,
  early_stopping: bool | str,
  eos_ids: tuple[int, ...],
  adjust: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
  batch_axis: Any,
  fixed: Any,
) -> jax.Array:
  """Returns the best hypothesis of each example, ids int32 [B L].

  Args:
    step, start: see `ops.decoding`; start is of B rows.
    ids: [B L], prompt and padding.
    prompt: P, length of the prompt.
    beams: K.
    length_penalty, early_stopping, eos_ids: see `ops.decoding.Settings`.
    adjust: changes log probabilities [B*K V], given ids [B*K L] and the place.
    batch_axis, fixed: see `ops.decoding.decode`.
  """
  batch, longest = ids.shape
  ends_at = jnp.array(eos_ids, jnp.int32)

  def penalty(length):
    return length.astype(jnp.float32) ** length_penalty

  def of_best(scores, *arrays):
    """Returns the K best scores [B K], and what belongs to them."""
    best, at = jax.lax.top_k(scores, beams)
    return best, *(_of_beams(a, at) for a in arrays)

  def choose(x, s: State) -> State:
    vocab = x.shape[-1]
    x = jax.nn.log_softmax(x.astype(jnp.float32))
    x = adjust(x, s.ids.reshape(batch * beams, -1), s.index)
    x = x.reshape(batch, beams, vocab) + s.scores[:, :, None]
    # Enough that K can go on even if all others end here.
    keep = max(2, 1 + len(eos_ids)) * beams
    scores, at = jax.lax.top_k(x.reshape(batch, -1), keep)
    parents, tokens = at // vocab, at % vocab
    ids = _of_beams(s.ids, parents).at[:, :, s.index].set(tokens)
    ends = jnp.isin(tokens, ends_at) | (s.index + 1 >= longest)

    going_scores, going_ids, going_parents = of_best(
      jnp.where(ends, scores + _WORST, scores), ids, parents
    )
    # Only the K best can end; the others are there to fill up.
    ends_well = ends & (jnp.arange(keep) < beams)[None]
    closed = ~s.hopeful
    if early_stopping is True:
      closed |= s.ended.all(-1)
    made = scores / penalty(s.index + 1 - prompt)
    made += jnp.where(closed[:, None], _WORST, 0.0)
    made += jnp.where(ends_well, 0.0, _WORST)
    ended_scores, ended_ids, ended = of_best(
      jnp.concatenate([s.ended_scores, made], 1),
      jnp.concatenate([s.ended_ids, ids], 1),
      jnp.concatenate([s.ended, ends_well], 1),
    )

    index = s.index + 1
    length = index - prompt
    if early_stopping == "never" and length_penalty > 0:
      length = jnp.asarray(longest - prompt)
    worst = jnp.where(ended, ended_scores.min(-1, keepdims=True), _WORST)
    best = going_scores[:, :1] / penalty(length)
    hopeful = s.hopeful & (best > worst).any(-1)
    going = hopeful.any() & ~ends.all()
    if early_stopping is True:
      going &= ~ended.all()
    return State(
      going_ids,
      going_scores,
      going_parents,
      ended_ids,
      ended_scores,
      ended,
      hopeful,
      index,
      going,
    )

  def body(carry):
    s, cache = carry
    first = jnp.arange(batch)[:, None] * beams
    cache = _rows(cache, (first + s.parents).reshape(-1), batch_axis, fixed)
    ids = s.ids.reshape(batch * beams, -1)
    tokens = jax.lax.dynamic_slice_in_dim(ids, s.index - 1, 1, axis=1)
    x, cache = step(cache, tokens, s.index - 1)
    return choose(x, s), cache

  x, cache = start
  repeated = jnp.repeat(jnp.arange(batch), beams)
  cache = _rows(cache, repeated, batch_axis, False)
  ids = jnp.repeat(ids[:, None], beams, axis=1)
  # All beams are alike yet: only the first one counts.
  scores = jnp.full((batch, beams), _WORST).at[:, 0].set(0.0)
  none = jnp.full((batch, beams), _WORST)
  state = State(
    ids=ids,
    scores=scores,
    parents=jnp.zeros((batch, beams), jnp.int32),
    ended_ids=ids,
    ended_scores=none,
    ended=jnp.zeros((batch, beams), bool),
    hopeful=jnp.ones((batch,), bool),
    index=jnp.asarray(prompt, jnp.int32),
    going=jnp.asarray(True),
  )
  carry = choose(x[repeated], state), cache
  state, _ = jax.lax.while_loop(lambda c: c[0].going, body, carry)
  return state.ended_ids[:, 0]


def _of_beams(x: jax.Array, at: jax.Array) -> jax.Array:
  """Returns x [B K ...] at beams [B K']."""
  return jnp.take_along_axis(x, at.reshape(*at.shape, *(1,) * (x.ndim - 2)), 1)


def _rows(cache: Any, rows: jax.Array, batch_axis: Any, fixed: Any) -> Any:
  """Returns the cache of other rows, which `fixed` leaves do not move to."""
  axes = jax.tree.broadcast(batch_axis, cache)
  still = jax.tree.broadcast(fixed, cache)

  def take(x, axis, still):
    return x if still else jnp.take(x, rows, axis=axis)

  return jax.tree.map(take, cache, axes, still)
