"""Some of the patches of an image: those kept, and their way back; those hidden.

"Masked autoencoders are scalable vision learners", He et al. 2022; "Scaling
language-image pre-training via masking", Li et al. 2023 (FLIP); "SimMIM", Xie
et al. 2022 (the mask token).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.parallel import rules


def kept(rate: float, count: int) -> int:
  """Returns how many of `count` patches stay when a rate is dropped, 1 least.

  The product is cut, not rounded, as in the reference.
  """
  return max(1, int(count * (1 - rate)))


def shuffled(noise: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Sorts patches by noise [B P].

  Returns:
    Which patch stands at each place of the sorted order, and the place of
    each patch: int32 [B P] both.
  """
  order = jnp.argsort(noise, axis=1).astype(jnp.int32)
  return order, jnp.argsort(order, axis=1).astype(jnp.int32)


def take(x: jax.Array, places: jax.Array) -> jax.Array:
  """Takes tokens of each example: [B T D], int [B K] -> [B K D]."""
  return jnp.take_along_axis(x, places[:, :, None], axis=1)


def drop(x: jax.Array, rate: float, rng: jax.Array) -> jax.Array:
  """Keeps random patches [B P D], other ones for each example, in order."""
  keep = kept(rate, x.shape[1])
  order, _ = shuffled(jax.random.uniform(rng, x.shape[:2]))
  return take(x, jnp.sort(order[:, :keep], axis=1))


class MaskToken(nn.Module):
  """A learned token that stands for patches that are hidden."""

  @nn.compact
  def __call__(self, x: jax.Array, hidden: jax.Array | None) -> jax.Array:
    """Maps patches [B Y X D] to the same with the token where it is asked for.

    Args:
      x: patches.
      hidden: int or bool [B Y*X], 1 where the token stands; None is nowhere.

    Raises:
      InputError: `hidden` of another shape.
    """
    B, Y, X, D = x.shape
    token = self.param(
      "token", rules.with_axes(nn.initializers.normal(0.02), ("norm",)), (D,)
    )
    if hidden is None:
      return x
    if hidden.shape != (B, Y * X):
      raise errors.InputError(
        f"hidden of shape {hidden.shape}: there are {Y} x {X} patches; give "
        f"{(B, Y * X)}."
      )
    where = (hidden != 0).reshape(B, Y, X, 1)
    token = token.astype(x.dtype)[None, None, None]
    return jnp.where(where, token, x)
