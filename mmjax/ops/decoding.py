"""From a model's step to ids: greedy, sampling, beam search.

A step is any function of a cache, the next tokens int32 [B T] and the place of
the first of them, an int32 scalar; it returns the logits [B V] after the last
of them, and the new cache. Here T is 1: the prompt has been computed before,
and `start` holds its logits and cache. The loops compile once for a shape and
a length; they end as soon as all rows have ended.

Rows of ids hold prompt, what follows, the token that ended it, and padding.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.ops import beams
from mmjax.ops import logits as change

Step = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]
Adjust = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Settings:
  """How ids are chosen; the defaults are greedy.

  Attributes:
    length: L of the longest row, prompt included.
    eos_ids: tokens that end a row; () is none.
    pad_id: fills rows up after their end.
    beams: K of beam search; 1 is none.
    length_penalty: a hypothesis scores log p / (tokens after the prompt) **
      penalty: above 0 favours long ones.
    early_stopping: True ends an example as soon as K hypotheses have ended;
      False when the best of the others, were it to end now, would not be
      better than the worst of those; "never" when it could not be, whatever
      its length.
    sample: draw tokens instead of taking the best.
    temperature, top_k, top_p: see `ops.logits`, in this order; of sampling.
    min_length: rows are no shorter, prompt and end included.
    min_new: no fewer tokens after the prompt, its end not counted.
    forced_bos: the second token, None is free.
    forced_eos: the token at the last place of length L, None is free.
    suppress: tokens that are never chosen.
    begin_suppress: tokens that are not the first that is chosen (freely).
    no_repeat: n; no n tokens in a row come twice. 0 allows all.
  """

  length: int
  eos_ids: tuple[int, ...] = ()
  pad_id: int = 0
  beams: int = 1
  length_penalty: float = 1.0
  early_stopping: bool | str = False
  sample: bool = False
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_length: int = 0
  min_new: int = 0
  forced_bos: int | None = None
  forced_eos: int | None = None
  suppress: tuple[int, ...] = ()
  begin_suppress: tuple[int, ...] = ()
  no_repeat: int = 0

  def __post_init__(self):
    for name in ("eos_ids", "suppress", "begin_suppress"):
      # A list, of JSON, is no constant of a compiled function.
      object.__setattr__(self, name, tuple(getattr(self, name)))
    for name, good, fix in (
      ("beams", self.beams >= 1, "give 1 or more"),
      ("temperature", self.temperature > 0, "give one above 0"),
      ("top_k", self.top_k >= 0, "0 is all"),
      ("top_p", 0 < self.top_p <= 1, "1 is all"),
      ("no_repeat", self.no_repeat >= 0, "0 is none"),
      (
        "early_stopping",
        self.early_stopping in (True, False, "never"),
        "give True, False or 'never'",
      ),
      (
        "sample",
        not (self.sample and self.beams > 1),
        "beams are not drawn; take beams = 1",
      ),
    ):
      if not good:
        raise errors.InputError(
          f"decoding {name} = {getattr(self, name)!r}: {fix}."
        )


def decode(
  step: Step,
  start: tuple[jax.Array, Any],
  prompt: jax.Array,
  settings: Settings,
  *,
  rng: jax.Array | None = None,
  adjust: Adjust | None = None,
  batch_axis: Any = 1,
  fixed: Any = False,
) -> jax.Array:
  """Continues a prompt.

  Args:
    step: see above.
    start: logits [B V] after the prompt, and the cache.
    prompt: int32 [B P].
    settings: how.
    rng: a key, for sampling.
    adjust: changes logits (in beam search: log probabilities) [B V], given
      ids [B L] and the place that is chosen, after what the settings say and
      before sampling.
    batch_axis: of each leaf of the cache; a pytree that is a prefix of it.
      Only beam search asks.
    fixed: likewise, whether a leaf is of the example, and so the same in all
      its beams: those are not moved.

  Returns:
    ids int32 [B L].

  Raises:
    InputError: a prompt that leaves no place, sampling without a key.
  """
  length = prompt.shape[1]
  if length >= settings.length:
    raise errors.InputError(
      f"decoding length = {settings.length}: the prompt already has {length} "
      "tokens, which count; raise it."
    )
  if settings.sample and rng is None:
    raise errors.InputError(
      "decoding sample = True: needs rng, a key; give jax.random.key(0)."
    )

  def adjusted(x, ids, index):
    x = _adjust(x.astype(jnp.float32), ids, index, settings, length)
    return x if adjust is None else adjust(x, ids, index)

  if settings.beams == 1:
    return _one_by_one(step, start, prompt, settings, rng, adjusted)
  return beams.search(
    step,
    start,
    _padded(prompt, settings),
    length,
    beams=settings.beams,
    length_penalty=settings.length_penalty,
    early_stopping=settings.early_stopping,
    eos_ids=settings.eos_ids,
    adjust=adjusted,
    batch_axis=batch_axis,
    fixed=fixed,
  )


def filtered(x: jax.Array, settings: Settings) -> jax.Array:
  """Returns the logits [B V] that tokens are drawn from."""
  if settings.temperature != 1.0:
    x = change.temper(x, settings.temperature)
  if settings.top_k:
    x = change.top_k(x, settings.top_k)
  if settings.top_p < 1.0:
    x = change.top_p(x, settings.top_p)
  return x


def _adjust(x, ids, index, settings, prompt):
  s = settings
  if s.no_repeat:
    x = change.no_repeat(x, ids, index, s.no_repeat)
  early = (index < s.min_length) | (index - prompt < s.min_new)
  if s.min_length or s.min_new:
    x = change.suppress(x, s.eos_ids, early)
  if s.forced_bos is not None:
    x = change.force(x, s.forced_bos, index == 1)
  if s.forced_eos is not None:
    x = change.force(x, s.forced_eos, index == s.length - 1)
  x = change.suppress(x, s.suppress)
  first = prompt + (prompt == 1 and s.forced_bos is not None)
  return change.suppress(x, s.begin_suppress, index == first)


def _is_end(tokens: jax.Array, settings: Settings) -> jax.Array:
  return jnp.isin(tokens, jnp.array(settings.eos_ids, jnp.int32))


def _padded(prompt: jax.Array, settings: Settings) -> jax.Array:
  shape = (prompt.shape[0], settings.length)
  ids = jnp.full(shape, settings.pad_id, jnp.int32)
  return ids.at[:, : prompt.shape[1]].set(prompt)


def _one_by_one(step, start, prompt, settings, rng, adjusted):
  """Greedy decoding and sampling."""

  def choose(x, ids, ended, index):
    x = adjusted(x, ids, index)
    if settings.sample:
      key = jax.random.fold_in(rng, index)
      token = jax.random.categorical(key, filtered(x, settings))
    else:
      token = x.argmax(-1)
    token = jnp.where(ended, settings.pad_id, token.astype(jnp.int32))
    ended |= _is_end(token, settings)
    return ids.at[:, index].set(token), ended, index + 1

  def go_on(carry):
    (_, ended, index), _ = carry
    return (index < settings.length) & ~ended.all()

  def body(carry):
    (ids, ended, index), cache = carry
    tokens = jax.lax.dynamic_slice_in_dim(ids, index - 1, 1, axis=1)
    x, cache = step(cache, tokens, index - 1)
    return choose(x, ids, ended, index), cache

  x, cache = start
  ids = _padded(prompt, settings)
  ended = jnp.zeros(ids.shape[:1], bool)
  index = jnp.asarray(prompt.shape[1], jnp.int32)
  carry = choose(x, ids, ended, index), cache
  (ids, _, _), _ = jax.lax.while_loop(go_on, body, carry)
  return ids
