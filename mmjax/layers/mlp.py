"""The feed-forward layer of a Transformer, and the activations by name."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.parallel import rules


def quick_gelu(x: jax.Array) -> jax.Array:
  """Computes x sigmoid(1.702 x), the GELU of OpenAI's CLIP."""
  return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu": functools.partial(jax.nn.gelu, approximate=True),
  "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
  "quick_gelu": quick_gelu,
  "relu": jax.nn.relu,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
  """Returns the activation function of that name.

  Raises:
    InputError: there is none.
  """
  if name not in ACTIVATIONS:
    raise errors.unknown("activation", name, ACTIVATIONS)
  return ACTIVATIONS[name]


class MLP(nn.Module):
  """Two dense layers with an activation between: D -> F -> D.

  Attributes:
    hidden: F.
    act: name of the activation, see `ACTIVATIONS`.
    dropout: rate after the activation.
    dtype: of the computation; parameters are float32.
  """

  hidden: int
  act: str = "gelu"
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
    """Maps [B T D] to [B T D]."""
    kernel = nn.initializers.xavier_uniform()
    bias = nn.initializers.normal(1e-6)
    width = x.shape[-1]
    x = nn.Dense(
      self.hidden,
      dtype=self.dtype,
      kernel_init=rules.with_axes(kernel, ("embed", "mlp")),
      bias_init=rules.with_axes(bias, ("mlp",)),
      name="up",
    )(x)
    x = rules.constrain(x, "batch", "length", "mlp")
    x = activation(self.act)(x)
    x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
    x = nn.Dense(
      width,
      dtype=self.dtype,
      kernel_init=rules.with_axes(kernel, ("mlp", "embed")),
      bias_init=rules.with_axes(bias, ("norm",)),
      name="down",
    )(x)
    return rules.constrain(x, "batch", "length", "embed")
