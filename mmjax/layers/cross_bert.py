"""BERT's blocks with attention to a memory: they read or write about it.

"BERT", Devlin et al. 2019, without token types; as in "ALBEF", Li et al. 2021,
and "BLIP", Li et al. 2022, cross-attention stands between self-attention and
MLP, and may be left out.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.layers.block import Cache, Spec
from mmjax.layers.embed import TokenEmbed, add_rows, word_logits
from mmjax.layers.mlp import activation
from mmjax.layers.norm import layer_norm
from mmjax.layers.position import LearnedSequence
from mmjax.layers.transformer import Stack
from mmjax.ops import masks
from mmjax.parallel import rules


class CrossBert(nn.Module):
  """BERT's embeddings, blocks and head, with attention to a memory.

  Attributes:
    vocab_size: V. length: the longest text.
    spec: of the blocks. width: D. depth: number of blocks.
    head: whether there are logits. tied: they are by the table of embeddings.
    scan, remat: see `layers.transformer.Stack`.
    dtype: of the computation.
  """

  vocab_size: int
  length: int
  spec: Spec
  width: int
  depth: int
  head: bool = True
  scan: bool | None = None
  remat: str = "none"
  dtype: Any = jnp.float32
  tied: bool = True

  def setup(self):
    epsilon, dtype = self.spec.epsilon, self.dtype
    self.embedding = TokenEmbed(self.vocab_size, self.width, dtype=self.dtype)
    self.posemb = LearnedSequence(self.length)
    self.embed_norm = layer_norm(epsilon=epsilon, dtype=dtype)
    self.drop = nn.Dropout(self.spec.dropout)
    self.blocks = Stack(
      self.spec,
      self.depth,
      dtype=self.dtype,
      scan=self.scan,
      remat=self.remat,
    )
    if self.head:
      self.transform = nn.Dense(
        self.width,
        dtype=self.dtype,
        kernel_init=rules.with_axes(
          nn.initializers.xavier_uniform(), ("embed", None)
        ),
        bias_init=rules.with_axes(nn.initializers.zeros, ("norm",)),
      )
      self.head_norm = layer_norm(epsilon=epsilon, dtype=dtype)
      self.bias = self.param(
        "bias",
        rules.with_axes(nn.initializers.zeros, ("vocab",)),
        (self.vocab_size,),
      )
      if not self.tied:
        self.words = self.param(
          "words",
          rules.with_axes(nn.initializers.normal(0.02), ("embed", "vocab")),
          (self.width, self.vocab_size),
        )

  def __call__(
    self,
    tokens: jax.Array,
    mask: masks.Mask | None,
    *,
    memory: jax.Array | None = None,
    memory_mask: masks.Mask | None = None,
    cache: Cache | None = None,
    slot: jax.Array | None = None,
    train: bool = False,
  ) -> Any:
    """Maps ids int32 [B T] to [B T D]; with a cache, also the new cache.

    Args:
      tokens: ids.
      mask: which token sees which.
      memory, memory_mask: what cross-attention reads; see
        `layers.block.Context`. Without a memory and a cache there is none.
      cache, slot: see `layers.transformer.Stack`.
      train: dropout on.

    Raises:
      InputError: more tokens than there are positions.
    """
    tokens = rules.constrain(tokens, "batch", None)
    T = tokens.shape[1]
    if slot is None:
      table = self.posemb(T, self.width)
    else:
      table = jax.lax.dynamic_slice_in_dim(
        self.posemb(self.length, self.width), slot, T
      )
    x = add_rows(self.embedding(tokens), table)
    x = rules.constrain(self.embed_norm(x), "batch", "length", "embed")
    x = self.drop(x, deterministic=not train)
    return self.blocks(
      x,
      mask,
      not train,
      memory=memory,
      memory_mask=memory_mask,
      cache=cache,
      slot=slot,
    )

  def logits(self, x: jax.Array) -> jax.Array:
    """Maps [B T D] to logits float32 [B T V]."""
    x = activation(self.spec.act)(self.transform(x))
    x = self.head_norm(rules.constrain(x, "batch", "length", "embed"))
    if self.tied:
      table = nn.meta.unbox(self.embedding.get_variable("params", "table"))
    else:
      table = self.words
    x = word_logits(x, table, self.tied, self.vocab_size)
    x = x + self.bias.astype(jnp.float32)[None, None]
    return rules.constrain(x, "batch", "length", "vocab")
