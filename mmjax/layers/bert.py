"""What BERT and its kin share: how words come in, and the heads on top.

"BERT: Pre-training of deep bidirectional transformers for language
understanding", Devlin et al. 2019.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers.embed import TokenEmbed
from mmjax.layers.mlp import activation
from mmjax.layers.norm import layer_norm
from mmjax.layers.position import LearnedSequence
from mmjax.parallel import rules

SCALE = 0.02  # standard deviation of matrices at the start


def dense(
  features: int,
  *,
  name: str | None,
  axis: str | None = None,
  use_bias: bool = True,
  dtype: Any = jnp.float32,
) -> nn.Dense:
  """Returns a dense layer from the width, of BERT's start.

  Args:
    features: of the result.
    name: of the module, None where its attribute names it.
    axis: logical axis of the result, None where it is never split.
    use_bias: whether there is a bias.
    dtype: of the computation.
  """
  return nn.Dense(
    features,
    use_bias=use_bias,
    dtype=dtype,
    kernel_init=rules.with_axes(nn.initializers.normal(SCALE), ("embed", axis)),
    bias_init=rules.with_axes(nn.initializers.zeros, (axis or "norm",)),
    name=name,
  )


def offset_positions(tokens: jax.Array, pad_id: int) -> jax.Array:
  """Counts tokens that are no padding, from pad_id + 1; padding is at pad_id.

  RoBERTa's positions ("RoBERTa", Liu et al. 2019), wherever the padding is.

  Args:
    tokens: int32 [B T].
    pad_id: id of padding.

  Returns:
    int32 [B T].
  """
  kept = (tokens != pad_id).astype(jnp.int32)
  return jnp.cumsum(kept, axis=1) * kept + pad_id


class TextEmbed(nn.Module):
  """Sums embeddings of word, position and type, and normalises the sum.

  Attributes:
    vocab_size: V.
    width: D.
    length: rows of the table of positions.
    types: how many types (segments) of tokens there are.
    offset: None, positions are 0, 1, ...; or the id of padding, and positions
      are RoBERTa's, see `offset_positions`.
    epsilon: of the norm.
    dtype: of the computation.
  """

  vocab_size: int
  width: int
  length: int
  types: int = 2
  offset: int | None = None
  epsilon: float = 1e-12
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, tokens: jax.Array, types: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Embeds tokens.

    Args:
      tokens: int32 [B T].
      types: int32 [B T], None is 0 everywhere.

    Returns:
      [B T D], and the table of words [V D], which heads may share.

    Raises:
      InputError: more tokens than there are positions.
    """
    words = TokenEmbed(
      self.vocab_size, self.width, SCALE, self.dtype, name="words"
    )
    x = words(tokens)
    x = x + self._positions(tokens).astype(x.dtype)
    if types is None:
      types = jnp.zeros_like(tokens)
    x = x + TokenEmbed(self.types, self.width, SCALE, self.dtype, name="types")(
      types
    )
    x = layer_norm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
    x = rules.constrain(x, "batch", "length", "embed")
    return x, nn.meta.unbox(words.variables["params"]["table"])

  def _positions(self, tokens: jax.Array) -> jax.Array:
    table = LearnedSequence(self.length, SCALE, name="positions")
    count = tokens.shape[1]
    if self.offset is None:
      return table(count, self.width)[None]
    if count + self.offset >= self.length:
      raise errors.InputError(
        f"a text of {count} tokens, but of the {self.length} positions the "
        f"first {self.offset + 1} are no token's; shorten the text."
      )
    rows = rules.constrain(table(self.length, self.width), None, None)
    return jnp.take(rows, offset_positions(tokens, self.offset), axis=0)


class Pooler(nn.Module):
  """The first token after a dense layer and an activation.

  Attributes:
    dtype: of the computation.
    act: name of the activation, tanh in BERT.
    width: E; None is D.
  """

  dtype: Any = jnp.float32
  act: str = "tanh"
  width: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps tokens [B T D] to [B E]."""
    width = self.width or x.shape[-1]
    y = dense(width, name="dense", dtype=self.dtype)(x[:, 0])
    return rules.constrain(activation(self.act)(y), "batch", "embed")


class Transform(nn.Module):
  """A dense layer, the activation and a norm, before what predicts.

  Attributes:
    act: name of the activation, see `layers.mlp`.
    epsilon: of the norm.
    dtype: of the computation.
  """

  act: str = "gelu_exact"
  epsilon: float = 1e-12
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B T D] to [B T D]."""
    x = dense(x.shape[-1], name="dense", dtype=self.dtype)(x)
    x = activation(self.act)(x)
    return layer_norm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)


class MaskedWords(nn.Module):
  """Predicts words by the table that embeds them, with a bias of its own.

  Attributes:
    act, epsilon: see `Transform`.
    dtype: of the computation.
    tied: by that table; else by a kernel of its own, [D V].
  """

  act: str = "gelu_exact"
  epsilon: float = 1e-12
  dtype: Any = jnp.float32
  tied: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, words: jax.Array) -> jax.Array:
    """Maps tokens [B T D] and the table [V D] to logits [B T V]."""
    x = Transform(self.act, self.epsilon, self.dtype, name="transform")(x)
    bias = self.param(
      "bias",
      rules.with_axes(nn.initializers.zeros, ("vocab",)),
      (words.shape[0],),
    )
    if not self.tied:
      init = rules.with_axes(nn.initializers.normal(SCALE), ("embed", "vocab"))
      words = self.param("kernel", init, words.shape[::-1]).T
    logits = jnp.einsum("btd,vd->btv", x, words.astype(self.dtype))
    logits = logits + bias.astype(self.dtype)[None, None]
    return rules.constrain(logits, "batch", "length", "vocab")
