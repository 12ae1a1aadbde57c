"""What decoding does to logits before it picks a token.

All take and return float [B V]; -inf is a token that is never picked. `index`
is the place in `ids` [B L] that the picked token will take, so that
ids[:, :index] is what came before.
"""

import jax
import jax.numpy as jnp

NEVER = float("-inf")


def temper(logits: jax.Array, temperature: float) -> jax.Array:
  """Divides by the temperature: above 0; the lower, the bolder."""
  return logits / temperature


def top_k(logits: jax.Array, k: int) -> jax.Array:
  """Keeps the k highest, and what equals the lowest of them.

  "Hierarchical neural story generation", Fan et al. 2018.
  """
  least = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
  return jnp.where(logits < least, NEVER, logits)


def top_p(logits: jax.Array, p: float) -> jax.Array:
  """Keeps the fewest tokens whose probabilities add up to p, one at least.

  "The curious case of neural text degeneration", Holtzman et al. 2020.
  """
  order = jnp.argsort(logits, axis=-1)
  rising = jnp.take_along_axis(logits, order, axis=-1)
  below = jnp.cumsum(jax.nn.softmax(rising, axis=-1), axis=-1)
  drop = (below <= 1.0 - p).at[:, -1].set(False)
  ranks = jnp.argsort(order, axis=-1)
  return jnp.where(jnp.take_along_axis(drop, ranks, axis=-1), NEVER, logits)


def suppress(
  logits: jax.Array, tokens: tuple[int, ...], when: jax.Array | bool = True
) -> jax.Array:
  """Forbids tokens, where a bool scalar holds."""
  if not tokens:
    return logits
  forbidden = logits.at[:, jnp.array(tokens)].set(NEVER)
  return jnp.where(when, forbidden, logits)


def force(logits: jax.Array, token: int, when: jax.Array) -> jax.Array:
  """Leaves one token, at logit 0, where a bool scalar holds."""
  forced = jnp.full_like(logits, NEVER).at[:, token].set(0.0)
  return jnp.where(when, forced, logits)


def no_repeat(
  logits: jax.Array, ids: jax.Array, index: jax.Array, n: int
) -> jax.Array:
  """Forbids tokens that would end n tokens which already came in a row.

  "A deep reinforced model for abstractive summarization", Paulus et al. 2018.
  """
  last = jnp.take(
    ids, jnp.maximum(index - n + 1 + jnp.arange(n - 1), 0), axis=1
  )
  starts = jnp.arange(ids.shape[1] - n + 1)
  windows = ids[:, starts[:, None] + jnp.arange(n)[None]]  # [B starts n]
  again = (windows[:, :, :-1] == last[:, None]).all(-1)
  again &= (starts + n - 1 < index)[None]
  rows = jnp.arange(ids.shape[0])[:, None]
  return logits.at[rows, windows[:, :, -1]].min(
    jnp.where(again, NEVER, jnp.inf)
  )
