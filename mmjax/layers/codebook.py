"""The nearest of a codebook's vectors.

"Neural discrete representation learning", van den Oord et al. 2017; the losses
are the model's.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.parallel import rules


class Codebook(nn.Module):
  """Vectors of which the nearest stands for another.

  Attributes:
    codes: V.
    width: D of each.
  """

  codes: int
  width: int

  def setup(self) -> None:
    bound = 1.0 / self.codes
    self.table = self.param(
      "table",
      rules.with_axes(
        lambda key, shape, dtype=jnp.float32: jax.random.uniform(
          key, shape, dtype, -bound, bound
        ),
        ("vocab", "embed"),
      ),
      (self.codes, self.width),
    )

  def ids(self, z: jax.Array) -> jax.Array:
    """Returns the nearest vector's id, the least of equals: int32 [B Y X].

    Args:
      z: [B Y X D] float32.
    """
    # The nearest of 16,384 is often nearest by a hair: no shorter products.
    products = jnp.einsum(
      "byxd,vd->byxv", z, self.table, precision=jax.lax.Precision.HIGHEST
    )
    far = (
      jnp.square(z).sum(-1, keepdims=True)
      + jnp.square(self.table).sum(-1)[None, None, None]
      - 2 * products
    )
    return jnp.argmin(far, axis=-1).astype(jnp.int32)

  def __call__(self, ids: jax.Array) -> jax.Array:
    """Returns the vectors [B Y X D] of ids; of V or more, NaN."""
    # As in layers/embed.py: gather the table rather than move the result.
    table = rules.constrain(self.table, "vocab", None)
    return jnp.take(table, ids, axis=0, mode="fill")
