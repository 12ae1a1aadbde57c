"""Recurrent layers over padded sequences: LSTM and GRU, stacked, both ways.

"Long short-term memory", Hochreiter and Schmidhuber 1997, with the forget gate
of Gers et al. 2000; "Learning phrase representations using RNN
encoder-decoder", Cho et al. 2014; bidirectional as in Graves et al. 2013. The
equations, and the two biases, are PyTorch's, so that its weights fit:

  LSTM  i f g o = W x + b + U h + d
        c' = sigmoid(f) c + sigmoid(i) tanh(g),  h' = sigmoid(o) tanh(c')
  GRU   r z n = W x + b,  r' z' n' = U h + d
        h' = (1 - Z) tanh(n + R n') + Z h,  R, Z = sigmoid of r + r', z + z'

What is beyond a sequence's length changes nothing: the state stays, the output
is 0, and the way back begins at the last frame, not at the padding.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.parallel import rules

GATES = {"lstm": 4, "gru": 3}
_FORGET = 1  # which of an LSTM's gates starts open

State = tuple[jax.Array, ...]  # float32 [B H]: h, and c of an LSTM


class _Affine(nn.Module):
  """The weights of all gates: a kernel [D G H] and a bias [G H], float32."""

  gates: int
  width: int
  init: Any
  open_gate: int | None = None

  @nn.compact
  def __call__(self, features: int) -> tuple[jax.Array, jax.Array]:
    shape = (features, self.gates, self.width)
    kernel = self.param(
      "kernel", rules.with_axes(self.init, ("embed", None, "mlp")), shape
    )

    def bias_init(key, shape, dtype=jnp.float32):
      bias = jnp.zeros(shape, dtype)
      return bias if self.open_gate is None else bias.at[self.open_gate].set(1)

    bias = self.param(
      "bias", rules.with_axes(bias_init, (None, "mlp")), shape[1:]
    )
    return kernel, bias


def _orthogonal(key, shape, dtype=jnp.float32):
  """An orthogonal matrix for each gate: [H G H]."""
  keys = jax.random.split(key, shape[1])
  one = nn.initializers.orthogonal()
  return jnp.stack([one(k, (shape[0], shape[2]), dtype) for k in keys], axis=1)


_GLOROT = nn.initializers.variance_scaling(
  1.0, "fan_avg", "uniform", in_axis=0, out_axis=2, batch_axis=(1,)
)


class Direction(nn.Module):
  """One layer in one direction.

  Attributes:
    cell: "lstm" or "gru".
    width: H.
    reverse: from the last frame to the first.
    dtype: of the products with weights; gates and state are float32.
  """

  cell: str
  width: int
  reverse: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, keep: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Runs over a sequence.

    Args:
      x: [B T D].
      keep: bool [B T], which frames there are; None is all.

    Returns:
      The outputs [B T H], and the last of them [B H]: of the last frame that
      there is, or of the first if it runs back.

    Raises:
      InputError: unknown cell.
    """
    if self.cell not in GATES:
      raise errors.unknown("cell", self.cell, GATES)
    gates, dtype = GATES[self.cell], self.dtype
    W, b = _Affine(
      gates,
      self.width,
      _GLOROT,
      _FORGET if self.cell == "lstm" else None,
      name="input",
    )(x.shape[-1])
    U, d = _Affine(gates, self.width, _orthogonal, name="hidden")(self.width)
    # What does not depend on the state is one product for all frames.
    z = jnp.einsum("btd,dgh->tbgh", x.astype(dtype), W.astype(dtype))
    z = z.astype(jnp.float32) + b[None, None]
    z = rules.constrain(z, None, "batch", None, "mlp")
    # Gathered over its rows once, not at every frame.
    U = rules.constrain(U.astype(dtype), None, None, "mlp")
    step = _lstm if self.cell == "lstm" else _gru

    def frame(state: State, inputs: tuple[jax.Array, jax.Array | None]):
      z, keep = inputs
      u = jnp.einsum("bk,kgh->bgh", state[0].astype(dtype), U)
      new = step(state, z, u.astype(jnp.float32) + d[None])
      out = new[0]
      if keep is not None:
        new = tuple(
          jnp.where(keep[:, None], n, s)
          for n, s in zip(new, state, strict=True)
        )
        out = jnp.where(keep[:, None], out, 0.0)
      return new, out.astype(dtype)

    start = jnp.zeros((x.shape[0], self.width), jnp.float32)
    start = rules.constrain(start, "batch", "mlp")
    state = (start, start) if self.cell == "lstm" else (start,)
    kept = None if keep is None else keep.T
    state, y = jax.lax.scan(frame, state, (z, kept), reverse=self.reverse)
    y = rules.constrain(y.swapaxes(0, 1), "batch", "length", None)
    return y, state[0].astype(dtype)


def _lstm(state: State, z: jax.Array, u: jax.Array) -> State:
  """One frame of an LSTM; z and u [B 4 H] are of the input and the state."""
  z = z + u
  i, f, g, o = (z[:, n] for n in range(4))
  c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
  return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _gru(state: State, z: jax.Array, u: jax.Array) -> State:
  """One frame of a GRU; z and u [B 3 H] are of the input and the state."""
  reset = jax.nn.sigmoid(z[:, 0] + u[:, 0])
  update = jax.nn.sigmoid(z[:, 1] + u[:, 1])
  new = jnp.tanh(z[:, 2] + reset * u[:, 2])
  return ((1.0 - update) * new + update * state[0],)


class Layer(nn.Module):
  """One layer, in one direction or both; dropout is on its input.

  Attributes:
    cell, width, dtype: of each `Direction`.
    bidirectional: outputs of both ways stand side by side, forward first.
    dropout: rate.
  """

  cell: str
  width: int
  bidirectional: bool = False
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    keep: jax.Array | None = None,
    deterministic: bool = True,
  ) -> tuple[jax.Array, jax.Array]:
    """Maps [B T D] to outputs [B T H or 2H] and the last ones [B H or 2H]."""
    x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
    args = dict(dtype=self.dtype)
    y, last = Direction(self.cell, self.width, **args, name="forward")(x, keep)
    if self.bidirectional:
      back = Direction(
        self.cell, self.width, reverse=True, **args, name="backward"
      )(x, keep)
      y = jnp.concatenate([y, back[0]], axis=-1)
      last = jnp.concatenate([last, back[1]], axis=-1)
    return y, last


class Recurrent(nn.Module):
  """Layers one above the other, as PyTorch's nn.LSTM and nn.GRU.

  The parameters of the first, whose input has a width of its own, are under
  "first"; those of the others are stacked [depth - 1 ...] under "blocks".

  Attributes:
    cell, width, bidirectional, dtype: of each `Layer`.
    depth: number of layers.
    dropout: rate between the layers.
    scan: a loop over the layers above the first; False unrolls it, over the
      same parameters.
  """

  cell: str
  width: int
  depth: int
  bidirectional: bool = False
  dropout: float = 0.0
  dtype: Any = jnp.float32
  scan: bool = True

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    lengths: jax.Array | None = None,
    deterministic: bool = True,
  ) -> tuple[jax.Array, jax.Array]:
    """Runs over sequences.

    Args:
      x: [B T D].
      lengths: int [B]; frames from lengths[b] on are padding, and may hold
        anything. None is T.
      deterministic: no dropout.

    Returns:
      The top layer's outputs [B T E], E = H or, of both directions, 2H, which
      are 0 at padding; and each layer's last outputs [depth B E].

    Raises:
      InputError: unknown cell.
    """
    keep = None
    if lengths is not None:
      keep = jnp.arange(x.shape[1])[None, :] < lengths[:, None]
      x = jnp.where(keep[:, :, None], x, 0)  # a gradient of NaN x 0 is NaN
    args: Any = dict(
      cell=self.cell,
      width=self.width,
      bidirectional=self.bidirectional,
      dtype=self.dtype,
    )
    x, last = Layer(**args, name="first")(x, keep, deterministic)
    if self.depth == 1:
      return x, last[None]
    in_axes: Any = (nn.broadcast, nn.broadcast)
    x, lasts = nn.scan(
      Layer,
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=in_axes,
      length=self.depth - 1,
      unroll=1 if self.scan else self.depth - 1,
      metadata_params={nn.PARTITION_NAME: "layers"},
      check_constancy_invariants=False,  # or it traces the body twice
    )(**args, dropout=self.dropout, name="blocks")(x, keep, deterministic)
    return x, jnp.concatenate([last[None], lasts])
