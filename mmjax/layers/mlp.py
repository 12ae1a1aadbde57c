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
from mmjax.ops import choice, in_turn, product
from mmjax.parallel import rules


def quick_gelu(x: jax.Array) -> jax.Array:
  """Computes x sigmoid(1.702 x), the GELU of OpenAI's CLIP."""
  return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: jax.Array) -> jax.Array:
  """Computes x P(z <= x) of a standard normal z ("GELUs", Hendrycks 2016).

  Of float32 by erf, as PyTorch does: erfc, which keeps digits of what is almost
  zero far below 0, takes a CPU 2.4 times as long. In fewer bits they are needed.
  """
  if x.dtype != jnp.float32:
    return jax.nn.gelu(x, approximate=False)
  return 0.5 * x * (1.0 + jax.lax.erf(math.sqrt(0.5) * x))


def clipped_gelu(x: jax.Array) -> jax.Array:
  """Computes the exact GELU, cut at -10 and 10 (so that int8 can hold it)."""
  return jnp.clip(exact_gelu(x), -10.0, 10.0)


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
  "gelu_exact": exact_gelu,
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
    width = x.shape[-1]
    inward, outward = ("embed", "mlp"), ("mlp", "embed")
    weights = {"up": self._weights("up", width, self.hidden, inward)}
    if self.gated:
      weights["gate"] = self._weights("gate", width, self.hidden, inward)
    out_width = self.out_width or width
    weights["down"] = self._weights("down", self.hidden, out_width, outward)
    spread = functools.partial(_spread, act=self.act, dtype=self.dtype)
    gather = functools.partial(_dense, dtype=self.dtype)
    if self.norm is None and (deterministic or not self.dropout):
      x = in_turn.in_turn(
        lambda x, weights: gather(spread(x, weights), weights["down"]),
        x,
        weights,
        math.prod(x.shape[:-1]) * self.hidden * jnp.dtype(self.dtype).itemsize,
      )
      return rules.constrain(x, "batch", "length", "embed")
    hidden = spread(x, weights)
    if self.norm is not None:
      hidden = norm(
        self.norm, epsilon=self.epsilon, dtype=self.dtype, name="norm"
      )(hidden)
    hidden = nn.Dropout(self.dropout)(hidden, deterministic=deterministic)
    x = gather(hidden, weights["down"])
    return rules.constrain(x, "batch", "length", "embed")

  def _weights(
    self, name: str, width: int, features: int, axes: tuple[str, str]
  ) -> dict[str, jax.Array]:
    std = self.out_std if name == "down" else self.std
    init = nn.initializers.xavier_uniform()
    if std is not None:
      init = nn.initializers.normal(std)
    return Weights(features, axes, init, self.use_bias, name=name)(width)


class Weights(nn.Module):
  """The parameters of a dense layer, for those who compute it in parts.

  Attributes:
    features: numbers that come out.
    axes: logical axes of what goes in and what comes out.
    init: of the kernel.
    use_bias: whether there is a bias.
  """

  features: int
  axes: tuple[str, str]
  init: Callable[..., jax.Array]
  use_bias: bool = True

  @nn.compact
  def __call__(self, width: int) -> dict[str, jax.Array]:
    """Returns "kernel" [width features] and, if there is one, "bias"."""
    shape = (width, self.features)
    found = {
      "kernel": self.param(
        "kernel", rules.with_axes(self.init, self.axes), shape
      )
    }
    if self.use_bias:
      axis = "norm" if self.axes[1] == "embed" else self.axes[1]
      init = rules.with_axes(nn.initializers.normal(1e-6), (axis,))
      found["bias"] = self.param("bias", init, shape[1:])
    return found


def _spread(x, weights, act, dtype):
  """Computes hidden units [B T F] of tokens [B T D].

  On a GPU and a CPU the backward pass bends the products anew: to write and
  read what would be kept of it takes longer.
  """
  names = [name for name in ("up", "gate") if name in weights]
  products = {name: _product(x, weights[name], dtype) for name in names}
  biases = {name: weights[name].get("bias") for name in names}
  bend = functools.partial(_bend, act=act)
  if choice.platform() != "tpu":
    bend = jax.checkpoint(bend)
  return rules.constrain(bend(products, biases), "batch", "length", "mlp")


def _bend(products, biases, act):
  found = {name: _biased(x, biases[name]) for name, x in products.items()}
  if "gate" in found:
    return activation(act)(found["gate"]) * found["up"]
  return activation(act)(found["up"])


def _dense(x, weights, dtype):
  return _biased(_product(x, weights, dtype), weights.get("bias"))


def _product(x, weights, dtype):
  axes = (((x.ndim - 1,), (0,)), ((), ()))
  kernel = weights["kernel"].astype(dtype)
  return product.dot_general(x.astype(dtype), kernel, axes)


def _biased(x, bias):
  if bias is None:
    return x
  return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
