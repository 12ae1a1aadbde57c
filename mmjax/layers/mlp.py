"""The feed-forward layer of a Transformer, and the activations by name."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers.norm import norm
from mmjax.parallel import rules


def quick_gelu(x: jax.Array) -> jax.Array:
  """Computes x sigmoid(1.702 x), the GELU of OpenAI's CLIP."""
  return x * jax.nn.sigmoid(1.702 * x)


def clipped_gelu(x: jax.Array) -> jax.Array:
  """Computes the exact GELU, cut at -10 and 10 (so that int8 can hold it)."""
  return jnp.clip(jax.nn.gelu(x, approximate=False), -10.0, 10.0)


def squared_relu(x: jax.Array) -> jax.Array:
  """Computes max(x, 0)^2 ("Primer", So et al. 2021)."""
  return jnp.square(jax.nn.relu(x))


def laplace(x: jax.Array) -> jax.Array:
  """Computes the distribution function of Laplace as in "Mega", Ma et al. 2022.

  Near squared_relu: its mean is sqrt(1/2), its deviation sqrt(1 / (4 pi)).
  """
  scaled = (x - math.sqrt(0.5)) / math.sqrt(0.5 / math.pi)
  return 0.5 * (1.0 + jax.lax.erf(scaled))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu": functools.partial(jax.nn.gelu, approximate=True),
  "gelu_clipped": clipped_gelu,
  "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
  "hard_silu": jax.nn.hard_silu,
  "laplace": laplace,
  "leaky_relu": jax.nn.leaky_relu,
  "linear": lambda x: x,
  "mish": jax.nn.mish,
  "quick_gelu": quick_gelu,
  "relu": jax.nn.relu,
  "relu6": jax.nn.relu6,
  "relu_squared": squared_relu,
  "sigmoid": jax.nn.sigmoid,
  "silu": jax.nn.silu,
  "tanh": jnp.tanh,
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
  """Two dense layers with an activation between: D -> F -> D, or to E.

  Gated, the hidden units are act(x gate) (x up) ("GLU variants improve
  Transformer", Shazeer 2020).

  Attributes:
    hidden: F.
    act: name of the activation, see `ACTIVATIONS`.
    gated: whether there is a gate.
    use_bias: of the dense layers.
    norm: kind of a norm of the hidden units, see `layers.norm`; None is none
      ("NormFormer", Shleifer et al. 2021). epsilon: of it.
    out_width: E; None is D.
    dropout: rate after the activation.
    std, out_std: standard deviations of the kernels to the hidden units and
      back at the start; None is Xavier's.
    dtype: of the computation; parameters are float32.
  """

  hidden: int
  act: str = "gelu"
  gated: bool = False
  use_bias: bool = True
  norm: str | None = None
  epsilon: float = 1e-6
  out_width: int | None = None
  dropout: float = 0.0
  std: float | None = None
  out_std: float | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
    """Maps [B T D] to [B T D], or to [B T E]."""
    width = self.out_width or x.shape[-1]
    act = activation(self.act)
    hidden = self._dense(x, "up", self.hidden, ("embed", "mlp"))
    if self.gated:
      gate = self._dense(x, "gate", self.hidden, ("embed", "mlp"))
      hidden = act(gate) * hidden
    else:
      hidden = act(hidden)
    if self.norm is not None:
      hidden = norm(
        self.norm, epsilon=self.epsilon, dtype=self.dtype, name="norm"
      )(hidden)
    hidden = rules.constrain(hidden, "batch", "length", "mlp")
    hidden = nn.Dropout(self.dropout)(hidden, deterministic=deterministic)
    x = self._dense(hidden, "down", width, ("mlp", "embed"))
    return rules.constrain(x, "batch", "length", "embed")

  def _dense(
    self, x: jax.Array, name: str, features: int, axes: tuple[str, str]
  ) -> jax.Array:
    bias_axis = "norm" if axes[1] == "embed" else axes[1]
    std = self.out_std if name == "down" else self.std
    init = nn.initializers.xavier_uniform()
    if std is not None:
      init = nn.initializers.normal(std)
    return nn.Dense(
      features,
      use_bias=self.use_bias,
      dtype=self.dtype,
      kernel_init=rules.with_axes(init, axes),
      bias_init=rules.with_axes(nn.initializers.normal(1e-6), (bias_axis,)),
      name=name,
    )(x)
