"""An encoder of sound and a decoder of text that reads it, as in Whisper.

"Robust speech recognition via large-scale weak supervision", Radford et al.
2022. What their blocks are made of is said by a `block.Spec`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.layers.block import Cache, Spec
from mmjax.layers.embed import TokenEmbed, add_rows
from mmjax.layers.mlp import activation
from mmjax.layers.norm import layer_norm
from mmjax.layers.position import LearnedSequence, sincos1d
from mmjax.layers.transformer import Stack
from mmjax.ops import masks
from mmjax.parallel import rules


class Encoder(nn.Module):
  """Two convolutions over frames, the second of stride 2, and blocks.

  Attributes:
    spec: of the blocks.
    mels: F, bins of a frame.
    width: D.
    depth: number of blocks.
    audio_length: the longest encoded sound, half as many as frames.
    dtype, scan, remat: see `layers.transformer.Stack`.
  """

  spec: Spec
  mels: int
  width: int
  depth: int
  audio_length: int
  dtype: Any = jnp.float32
  scan: bool | None = None
  remat: str = "none"

  @nn.compact
  def __call__(
    self, audio: jax.Array, *, train: bool = False, every: bool = False
  ) -> Any:
    """Encodes sounds.

    Args:
      audio: float [B A F], log-mel frames, A at most twice `audio_length`.
      train: dropout on.
      every: what the blocks read and return is wanted.

    Returns:
      [B ceil(A/2) D]; with `every`, also what the first block reads and each
      but the last returns, [depth B ceil(A/2) D].

    Raises:
      InputError: F is not `mels`, or there are too many frames.
    """
    if audio.shape[2] != self.mels:
      raise errors.InputError(
        f"audio of {audio.shape[2]} mel bins, but the model hears mels = "
        f"{self.mels}; make the features [B A F] with whisper_mel({self.mels})."
      )
    x = rules.constrain(audio, "batch", None, None).astype(self.dtype)
    for i, stride in ((1, 1), (2, 2)):
      x = nn.Conv(
        self.width,
        (3,),
        strides=(stride,),
        padding=1,
        dtype=self.dtype,
        kernel_init=rules.with_axes(
          nn.initializers.lecun_normal(), ("kernel", "channels", "embed")
        ),
        bias_init=rules.with_axes(nn.initializers.zeros, ("norm",)),
        name=f"conv{i}",
      )(x)
      x = activation("gelu_exact")(x)
    if x.shape[1] > self.audio_length:
      raise errors.InputError(
        f"audio of {audio.shape[1]} frames, but the model has positions for "
        f"{2 * self.audio_length}; cut it, as whisper_mel(samples=...) does."
      )
    table = self.param(
      "posemb",
      rules.with_axes(
        lambda _, shape, kind=jnp.float32: jnp.asarray(sincos1d(*shape), kind),
        ("positions", "embed"),
      ),
      (self.audio_length, self.width),
    )
    x = add_rows(x, table[: x.shape[1]])
    x = rules.constrain(x, "batch", "length", "embed")
    x = nn.Dropout(self.spec.dropout)(x, deterministic=not train)
    first = x
    x = Stack(
      self.spec,
      self.depth,
      dtype=self.dtype,
      scan=self.scan,
      remat=self.remat,
      name="layers",
    )(x, None, not train, every=every)
    x, told = x if every else (x, None)
    norm = layer_norm(epsilon=self.spec.epsilon, dtype=self.dtype, name="norm")
    if told is None:
      return norm(x)
    return norm(x), jnp.concatenate([first[None], told[:-1]])


class Decoder(nn.Module):
  """Tokens, learned positions, causal blocks, and logits.

  Attributes:
    spec: of the blocks.
    vocab_size: V.
    width: D.
    depth: number of blocks.
    length: the longest text.
    tied: the head is the tokens' table.
    dtype, scan, remat: see `layers.transformer.Stack`.
  """

  spec: Spec
  vocab_size: int
  width: int
  depth: int
  length: int
  tied: bool = True
  dtype: Any = jnp.float32
  scan: bool | None = None
  remat: str = "none"

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    memory: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    cache: Cache | None = None,
    slot: jax.Array | None = None,
    train: bool = False,
  ) -> Any:
    """Computes the logits of the next tokens.

    Args:
      tokens: int32 [B T], T at most `length`.
      memory: [B M D], the encoder's output; None reads the cache.
      mask: bool or int [B T], 0 at tokens that are not seen; None sees all.
      cache: keys and values; the tokens are then those from `slot` on.
      slot: int32 scalar.
      train: dropout on.

    Returns:
      Logits [B T V], and features [B T D]; with a
      cache, also the new cache.
    """
    tokens = rules.constrain(tokens, "batch", None)
    batch, count = tokens.shape
    embed = TokenEmbed(
      self.vocab_size, self.width, dtype=self.dtype, name="embedding"
    )
    posemb = LearnedSequence(self.length, name="posemb")
    seen: masks.Mask = masks.Causal()
    first = None
    if cache is None:
      table = posemb(count, self.width)
    else:
      first = jnp.int32(0) if slot is None else slot
      table = jax.lax.dynamic_slice_in_dim(
        posemb(self.length, self.width), first, count
      )
      seen = masks.cached(batch, cache.own.k.shape[2], first, count)
    if mask is not None:
      seen = seen & masks.Keys(mask)
    x = add_rows(embed(tokens), table)
    x = rules.constrain(x, "batch", "length", "embed")
    x = nn.Dropout(self.spec.dropout)(x, deterministic=not train)
    x = Stack(
      self.spec,
      self.depth,
      dtype=self.dtype,
      scan=self.scan,
      remat=self.remat,
      name="layers",
    )(x, seen, not train, memory=memory, cache=cache, slot=first)
    x, cache = x if cache is not None else (x, None)
    x = layer_norm(epsilon=self.spec.epsilon, dtype=self.dtype, name="norm")(x)
    if self.tied:
      logits = embed.attend(x)
    else:
      init = nn.initializers.normal(self.width**-0.5)
      logits = nn.Dense(
        self.vocab_size,
        use_bias=False,
        dtype=self.dtype,
        kernel_init=rules.with_axes(init, ("embed", "vocab")),
        name="head",
      )(x)
    return (logits, x) if cache is None else (logits, x, cache)
