"""BLIP's text encoder alone, over a memory such as an image, or without one.

"BLIP: bootstrapping language-image pre-training", Li et al. 2022: BERT without
types of tokens, whose blocks may attend to what an image encoder says.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers.bert import Pooler
from mmjax.layers.block import Spec
from mmjax.layers.cross_bert import CrossBert
from mmjax.layers.mlp import activation
from mmjax.ops import masks

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(vocab_size=64, width=32, depth=2, heads=4, mlp=64, length=8)
TINY_INPUTS = dict(tokens=((8,), "int32"), memory=((5, 24), "float32"))


class BlipText(nn.Module):
  """Text encoder; see `build` for the attributes."""

  vocab_size: int
  length: int
  spec: Spec
  width: int
  depth: int
  pooler: bool = True
  scan: bool | None = None
  remat: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    mask: jax.Array | None = None,
    memory: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Encodes texts.

    Args:
      tokens: int32 [B T].
      mask: int or bool [B T], 0 where there is no token; None is all.
      memory: [B M E], what the blocks attend to besides; None is nothing. Only
        of a model with cross-attention. All of its places are read, as in the
        reference, which has a mask of them but does not hand it on.
      train: dropout on; needs the rng "dropout" if its rate is above 0.

    Returns:
      The pooled first token [B D], or without a pooler that token; and
      {"tokens": [B T D]}.

    Raises:
      InputError: more tokens than there are positions, or a memory that no
        block attends to.
    """
    if memory is not None and not self.spec.cross:
      raise errors.InputError(
        "models.blip_text memory: given, but cross = False attends to none; "
        "leave it out, or take cross=True."
      )
    keys = None if mask is None else masks.Keys(mask)
    x = CrossBert(
      self.vocab_size,
      self.length,
      self.spec,
      self.width,
      self.depth,
      False,
      self.scan,
      self.remat,
      self.dtype,
      name="encoder",
    )(tokens, keys, memory=memory, train=train)
    pooled = x[:, 0]
    if self.pooler:
      pooled = Pooler(self.dtype, name="pooler")(x)
    return pooled, {"tokens": x}


def build(
  *,
  vocab_size: int,
  width: int = 768,
  depth: int = 12,
  heads: int = 12,
  mlp: int = 3072,
  length: int = 512,
  cross: bool = True,
  pooler: bool = True,
  act: str = "gelu_exact",
  epsilon: float = 1e-12,
  dropout: float = 0.0,
  scan: bool | None = None,
  remat: str = "none",
  dtype: str = "float32",
) -> BlipText:
  """Builds a text encoder; the sizes are BERT's of size base, as in BLIP.

  Args:
    vocab_size: V. width: D. depth: blocks. heads: N. mlp: F.
    length: the longest text.
    cross: blocks attend to a memory, where it is given.
    pooler: first tokens are pooled.
    act, epsilon, dropout: of the blocks.
    scan, remat: see `layers.transformer.Stack`.
    dtype: of the computation; parameters are float32.

  Raises:
    InputError: an unknown activation.
  """
  activation(act)
  spec = Spec(
    heads,
    mlp,
    act=act,
    epsilon=epsilon,
    order="post",
    cross=cross,
    dropout=dropout,
  )
  return BlipText(
    vocab_size,
    length,
    spec,
    width,
    depth,
    pooler=pooler,
    scan=scan,
    remat=remat,
    dtype=jnp.dtype(dtype),
  )
