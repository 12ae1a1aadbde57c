"""What encoder-decoders of text share beside their stacks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers.block import Cache
from mmjax.ops import masks


class State(NamedTuple):
  """What decoding keeps.

  Attributes:
    layers: keys and values of the decoder's blocks.
    mask: which tokens of the encoder are there, bool [B M].
  """

  layers: Cache
  mask: jax.Array


def keys(mask: jax.Array | None) -> masks.Mask | None:
  """Returns the mask of keys that are there, [B M]; None is all."""
  return None if mask is None else masks.Keys(mask != 0)


def there(tokens: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Returns which tokens [B M] are there, bool [B M]; without a mask all."""
  return jnp.ones(tokens.shape, bool) if mask is None else mask != 0


def check_slots(slots: int, length: int) -> None:
  """Checks that a model of so many positions can write so much.

  Raises:
    InputError: more slots than positions.
  """
  if slots > length:
    raise errors.InputError(
      f"slots = {slots}: the model has positions for length = {length}; "
      "decode less."
    )


def ends(scores: jax.Array) -> dict[str, jax.Array]:
  """Names the scores [B T 2] that an answer begins and ends at a token."""
  return {"start": scores[..., 0], "end": scores[..., 1]}


def shifted(tokens: jax.Array, start_id: int) -> jax.Array:
  """Moves a text int32 [B T] to the right, behind the start token."""
  first = jnp.full_like(tokens[:, :1], start_id)
  return jnp.concatenate([first, tokens[:, :-1]], 1)


def last_end(tokens: jax.Array, eos_id: int) -> jax.Array:
  """Returns the place of the last end of each text, int32 [B]; -1 is none."""
  places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
  return jnp.where(tokens == eos_id, places, -1).max(1)
