"""Which of a codebook's vectors stands for another: the nearest, or a draw.

"Neural discrete representation learning", van den Oord et al. 2017;
"Categorical reparameterization with Gumbel-softmax", Jang et al. 2017. The
losses' weights are the task's.
"""

from typing import Any

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
    return _vectors(self.table, ids)

  def quantise(
    self, z: jax.Array
  ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Returns ids, their vectors with the gradient of z, and losses.

    Those are mean squares of the distances: "codebook" moves the vectors,
    "commitment" z.
    """
    ids = self.ids(z)
    nearest = self(ids)
    stop = jax.lax.stop_gradient
    return (
      ids,
      z + stop(nearest - z),
      {
        "codebook": jnp.square(nearest - stop(z)).mean(),
        "commitment": jnp.square(stop(nearest) - z).mean(),
      },
    )


class GumbelCodebook(nn.Module):
  """Vectors of which one is drawn by logits, a projection of what it is for.

  Attributes:
    codes: V.
    width: D of each, and of what they stand for.
  """

  codes: int
  width: int

  def setup(self) -> None:
    self.proj = nn.Dense(
      self.codes,
      precision=jax.lax.Precision.HIGHEST,  # see `Codebook.ids`
      kernel_init=rules.with_axes(
        nn.initializers.lecun_normal(), ("embed", "vocab")
      ),
      bias_init=rules.with_axes(nn.initializers.zeros, ("vocab",)),
    )
    self.table = self.param(
      "table",
      rules.with_axes(nn.initializers.normal(1.0), ("vocab", "embed")),
      (self.codes, self.width),
    )

  def ids(self, z: jax.Array) -> jax.Array:
    """Returns the likeliest id, the least of equals: int32 [B Y X].

    Args:
      z: [B Y X D] float32.
    """
    return self.proj(z).argmax(-1).astype(jnp.int32)

  def __call__(self, ids: jax.Array) -> jax.Array:
    """Returns the vectors [B Y X D] of ids; of V or more, NaN."""
    return _vectors(self.table, ids)

  def quantise(
    self, z: jax.Array, temperature: Any = 1.0, rng: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Returns ids, their vectors with the gradient of a softmax, and losses.

    "kl" is the divergence, in nats, of softmax(logits) from equal chances.

    Args:
      z: [B Y X D] float32.
      temperature: of that softmax, above 0.
      rng: key by which the ids are drawn; None takes the likeliest.
    """
    logits = self.proj(z)
    noise = 0.0 if rng is None else jax.random.gumbel(rng, logits.shape)
    soft = jax.nn.softmax((logits + noise) / temperature)
    soft = rules.constrain(soft, "batch", None, None, "vocab")
    ids = soft.argmax(-1).astype(jnp.int32)
    hard = jax.nn.one_hot(ids, self.codes, dtype=soft.dtype)
    straight = soft + jax.lax.stop_gradient(hard - soft)
    chances = jax.nn.softmax(logits)
    kl = (chances * jnp.log(chances * self.codes + 1e-10)).sum(-1).mean()
    vectors = jnp.matmul(
      straight, self.table, precision=jax.lax.Precision.HIGHEST
    )
    return ids, vectors, {"kl": kl}


def _vectors(table: jax.Array, ids: jax.Array) -> jax.Array:
  # As in layers/embed.py: gather the table rather than move the result.
  table = rules.constrain(table, "vocab", None)
  return jnp.take(table, ids, axis=0, mode="fill")
