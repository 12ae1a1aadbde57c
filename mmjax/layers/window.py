"""Attention within windows of a grid, which every second block shifts.

"Swin transformer: Hierarchical vision transformer using shifted windows", Liu
et al. 2021. A grid that windows do not fill is padded with zeros after the
norm, and they are looked at, as in the reference.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.layers.attention import Attention
from mmjax.layers.loop import looped
from mmjax.layers.mlp import MLP
from mmjax.layers.norm import layer_norm
from mmjax.ops.bias import Offsets
from mmjax.ops.masks import Segments
from mmjax.parallel import rules


def partition(x: jax.Array, size: int) -> jax.Array:
  """Cuts a grid [B Y X D] into windows [B*W size*size D], row by row.

  The size divides Y and X.
  """
  B, Y, X, D = x.shape
  x = x.reshape(B, Y // size, size, X // size, size, D)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size * size, D)


def join(x: jax.Array, size: int, rows: int, columns: int) -> jax.Array:
  """Puts windows [B*W size*size D] together to the grid [B rows columns D]."""
  D = x.shape[-1]
  x = x.reshape(-1, rows // size, columns // size, size, size, D)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows, columns, D)


def regions(rows: int, columns: int, size: int, shift: int) -> np.ndarray:
  """Numbers what was side by side before a grid was rolled by the shift.

  The last windows hold what came from the other end: tokens see each other
  where their numbers agree.

  Returns:
    int32 [W size*size], from 1.
  """

  def part(n: int) -> np.ndarray:
    place = np.arange(n)
    return (place >= n - size).astype(np.int32) + (place >= n - shift)

  grid = 1 + 3 * part(rows)[:, None] + part(columns)[None]
  grid = grid.reshape(rows // size, size, columns // size, size)
  return grid.transpose(0, 2, 1, 3).reshape(-1, size * size).astype(np.int32)


class WindowAttention(nn.Module):
  """Attention within windows, with a bias by relative position.

  Attributes:
    heads: N.
    size: tokens along a side of a window.
    biases: of the projections, see `layers.attention`.
    dropout: rate on the attention weights.
    dtype: of the computation.
  """

  heads: int
  size: int
  biases: str = "qkvo"
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    shifted: jax.Array | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """Maps a grid [B Y X D] to one of the same shape.

    Args:
      x: tokens.
      shifted: bool scalar, the windows lie half their size further down and
        right; None is that they never do.
      deterministic: no dropout.
    """
    B, Y, X, _ = x.shape
    size = self.size
    x = jnp.pad(x, ((0, 0), (0, -Y % size), (0, -X % size), (0, 0)))
    rows, columns = x.shape[1:3]
    mask = shift = None
    if shifted is not None:
      # Known when it runs, not when it compiles: blocks of a stack are alike.
      shift = jnp.where(shifted, size // 2, 0)
      x = _roll(x, -shift)
      ids = regions(rows, columns, size, size // 2)
      ids = jnp.where(shifted, jnp.asarray(ids), 1)[None]
      ids = jnp.broadcast_to(ids, (B, *ids.shape[1:])).reshape(-1, size**2)
      ids = rules.constrain(ids, "batch", None)
      mask = Segments(ids, ids)
    table = self.param(
      "table",
      rules.with_axes(nn.initializers.normal(0.02), (None, "heads")),
      ((2 * size - 1) ** 2, self.heads),
    )
    bias = Offsets(table.T, size, size)
    x = rules.constrain(partition(x, size), "batch", None, "embed")
    x = Attention(
      self.heads,
      biases=self.biases,
      dropout=self.dropout,
      dtype=self.dtype,
      name="attention",
    )(x, None, mask, deterministic, bias=bias)
    x = join(x, size, rows, columns)
    if shift is not None:
      x = _roll(x, shift)
    return rules.constrain(x[:, :Y, :X], "batch", None, None, "embed")


def _roll(x: jax.Array, shift: jax.Array) -> jax.Array:
  x = jnp.roll(x, jnp.stack([shift, shift]), (1, 2))
  return rules.constrain(x, "batch", None, None, "embed")


class WindowBlock(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)), over a grid.

  Attributes:
    heads, size, biases: of the attention.
    mlp: F.
    act: of the MLP. epsilon: of the norms.
    dropout: rate on attention weights, hidden units and branches.
    dtype: of the computation.
  """

  heads: int
  size: int
  mlp: int
  biases: str = "qkvo"
  act: str = "gelu_exact"
  epsilon: float = 1e-5
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    shifted: jax.Array | None = None,
    drop_path: jax.Array | None = None,
    deterministic: bool = True,
  ) -> tuple[jax.Array, None]:
    """Maps [B Y X D] to [B Y X D].

    Args:
      x: tokens.
      shifted: see `WindowAttention`.
      drop_path: scalar, the probability of dropping a branch; None is 0.
      deterministic: no dropout at all.

    Returns:
      The tokens, and None: the carry and output that `scan` wants.
    """
    y = WindowAttention(
      self.heads,
      self.size,
      self.biases,
      self.dropout,
      self.dtype,
      name="window",
    )(self._norm("norm1")(x), shifted, deterministic)
    x = x + self._dropped(y, drop_path, deterministic)
    y = self._norm("norm2")(x).reshape(x.shape[0], -1, x.shape[-1])
    y = MLP(
      self.mlp, act=self.act, dropout=self.dropout, dtype=self.dtype, name="mlp"
    )(y, deterministic)
    x = x + self._dropped(y.reshape(x.shape), drop_path, deterministic)
    return rules.constrain(x, "batch", None, None, "embed"), None

  def _norm(self, name: str) -> nn.Module:
    return layer_norm(epsilon=self.epsilon, dtype=self.dtype, name=name)

  def _dropped(
    self, y: jax.Array, drop_path: jax.Array | None, deterministic: bool
  ) -> jax.Array:
    y = nn.Dropout(self.dropout)(y, deterministic=deterministic)
    if drop_path is None or deterministic:
      return y
    keep = jax.random.bernoulli(
      self.make_rng("dropout"), 1.0 - drop_path, (y.shape[0], 1, 1, 1)
    )
    return jnp.where(keep, y / (1.0 - drop_path).astype(y.dtype), 0.0)


class WindowStage(nn.Module):
  """Blocks over one grid; each second one is shifted.

  A grid of one window is not shifted, and smaller ones are one window.

  Attributes:
    depth: number of blocks, at least 1; parameters are stacked [depth ...].
    size: of a window, at most.
    drop_path: rates of stochastic depth, one a block.
    scan: a loop over the blocks instead of unrolling them, see `layers.loop`.
    block: (name, value) of further attributes of each `WindowBlock`.
  """

  depth: int
  size: int
  drop_path: tuple[float, ...] | None = None
  scan: bool | None = None
  block: tuple[tuple[str, Any], ...] = ()

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
    """Maps [B Y X D] to [B Y X D]."""
    side = min(x.shape[1:3])
    shifted = None
    if side > self.size and self.depth > 1:
      shifted = jnp.arange(self.depth) % 2 == 1
    rates = None
    if self.drop_path is not None and any(self.drop_path):
      rates = jnp.asarray(self.drop_path, jnp.float32)
    in_axes: Any = (0, 0, nn.broadcast)
    x, _ = nn.scan(
      WindowBlock,
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=in_axes,
      length=self.depth,
      unroll=1 if looped(self.scan, self.depth) else self.depth,
      metadata_params={nn.PARTITION_NAME: "layers"},
      check_constancy_invariants=False,  # or it traces the body twice
    )(
      size=min(self.size, side), **dict(self.block), name="blocks"
    )(x, shifted, rates, deterministic)
    return x


class Merge(nn.Module):
  """Makes one token of two by two, twice as wide.

  Attributes:
    epsilon: of the norm.
    dtype: of the computation.
  """

  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B Y X D], Y and X even, to [B Y/2 X/2 2D]."""
    B, Y, X, D = x.shape
    x = x.reshape(B, Y // 2, 2, X // 2, 2, D)
    # The two of a column before those of the next one.
    x = x.transpose(0, 1, 3, 4, 2, 5).reshape(B, Y // 2, X // 2, 4 * D)
    x = layer_norm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
    x = nn.Dense(
      2 * D,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=rules.with_axes(
        nn.initializers.xavier_uniform(), ("embed", "mlp")
      ),
      name="dense",
    )(x)
    return rules.constrain(x, "batch", None, None, "embed")
