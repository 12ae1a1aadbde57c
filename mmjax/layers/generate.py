"""From any model that decodes to ids, in one call.

A model decodes if it has two methods beside its call, which
`model.apply(variables, ..., method="start")` reaches:

  start(prompt, *, slots, **inputs) -> (logits, cache)
    Computes the prompt int32 [B P] and whatever the model reads besides: what
    it encodes (an image, a sound, a text with its mask), or the prompt's own
    `mask` [B P] where it is padded on the left. Returns the logits [B V] after
    the prompt's last token, and a cache with room for `slots` tokens, prompt
    included.

  step(cache, tokens, slot) -> (logits, cache)
    Continues by tokens int32 [B T]; the first of them is token number `slot`,
    an int32 scalar, counted from the first of the prompt. Returns the logits
    [B V] after the last one, and the new cache.

The cache is any pytree, of the same shapes and dtypes after each step. The
leaves of a `layers.block.Cache` in it are [depth B ...], and its `memory` is
never written; all other leaves are arrays with the batch first. What a cache
keeps beside keys and values (the mask of what is read, positions of a prompt
that is padded on the left) stands in such leaves; what a model puts before the
prompt (an image's tokens) it adds to `slots` and `slot` itself.

The row that a step computes must not depend on the other rows of the batch:
beam search computes several rows for an example.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers.apart import apart
from mmjax.layers.block import Cache
from mmjax.ops import decoding

# Where parameters are taken apart, which costs what a few tokens cost: bytes,
# what is smaller stays in a processor's caches; and tokens.
_LARGE, _MANY = 2**22, 16


def generate(
  model: nn.Module,
  variables: Mapping[str, Any],
  prompt: Any,
  inputs: Mapping[str, Any] | None = None,
  *,
  rng: jax.Array | None = None,
  adjust: decoding.Adjust | None = None,
  **settings: Any,
) -> jax.Array:
  """Continues prompts; compiles once for a model, settings and shapes.

  Args:
    model: with the methods `start` and `step`, see above.
    variables: of the model.
    prompt: int32 [B P], what the decoder begins with: the whole prompt of a
      language model, padded on the left, the start token of an
      encoder-decoder.
    inputs: the other arguments of `start`.
    rng: a key, where `sample` is True.
    adjust: see `ops.decoding.decode`; the same function each time, or it
      compiles again.
    **settings: of `ops.decoding.Settings`; `length` is needed.

  Returns:
    ids int32 [B length]: prompt, continuation, padding.

  Raises:
    InputError: a model that does not decode; an unknown or wrong setting.
  """
  for method in ("start", "step"):
    if not hasattr(model, method):
      raise errors.InputError(
        f"generate model = {type(model).__name__}: has no method {method!r}; "
        "take a model that decodes."
      )
  for name in settings:
    if name not in decoding.Settings.__dataclass_fields__:
      known = list(decoding.Settings.__dataclass_fields__)
      raise errors.unknown("generate setting", name, known)
  if "length" not in settings:
    raise errors.InputError(
      "generate length: not given; give the length of the longest row, prompt "
      "included."
    )
  prompt = jnp.asarray(prompt, jnp.int32)
  return _generate(
    model,
    decoding.Settings(**settings),
    adjust,
    variables,
    prompt,
    dict(inputs or {}),
    rng,
  )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(model, settings, adjust, variables, prompt, inputs, rng):
  logits, cache = model.apply(
    variables, prompt, slots=settings.length, **inputs, method="start"
  )

  slot = jnp.asarray(prompt.shape[1], jnp.int32)
  split = variables
  size = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(variables))
  many = settings.length - prompt.shape[1] >= _MANY
  if many and size >= _LARGE and jax.default_backend() == "cpu":
    split = apart(model, variables, cache, prompt[:, :1], slot, method="step")

  def step(cache, tokens, slot):
    return model.apply(split, cache, tokens, slot, method="step")

  return decoding.decode(
    step,
    (logits, cache),
    prompt,
    settings,
    rng=rng,
    adjust=adjust,
    batch_axis=_each(cache, 1, 1, 0),
    fixed=_each(cache, False, True, False),
  )


def _each(cache: Any, own: Any, memory: Any, other: Any) -> Any:
  """Returns values for the parts of caches of blocks, and one for all else."""
  blocks = Cache(own, memory)
  is_blocks = lambda x: isinstance(x, Cache)  # noqa: E731
  return jax.tree.map(
    lambda x: blocks if is_blocks(x) else other, cache, is_leaf=is_blocks
  )
