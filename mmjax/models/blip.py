"""BLIP: captions, answers and image-text matching by cross-attention.

"BLIP: bootstrapping language-image pre-training", Li et al. 2022. A ViT reads
the image; BERT-like blocks with cross-attention to it read or write text:

  caption    a causal decoder over the image
  answer     an encoder of the question over the image, and a causal decoder
             over the question
  retrieval  an encoder of the text, without the image for an embedding and
             with it to judge whether the two match
  contrastive  an encoder of the text alone, to be compared with the image
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.build import build as build_plugin
from mmjax.layers.bert import Pooler
from mmjax.layers.block import Cache, Spec, make_cache
from mmjax.layers.cross_bert import CrossBert
from mmjax.layers.mlp import activation
from mmjax.layers.pool import unit
from mmjax.ops import masks
from mmjax.parallel import rules

TASKS = ("caption", "answer", "retrieval", "contrastive")
WRITES = ("caption", "answer")
LOG_T = 2.6592  # of the scale of the logits at the start, 1 / 0.07
_TEXT = dict(width=768, depth=12, heads=12, mlp=3072)
VARIANTS: dict[str, dict[str, Any]] = {
  "B/16": dict(image=dict(name="vit", variant="B/16"), **_TEXT),
  # The text blocks stay those of BERT-base.
  "L/16": dict(image=dict(name="vit", variant="L/16"), **_TEXT),
}

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(
  image=dict(name="vit", width=32, depth=2, heads=4, mlp=64, patch=8),
  task="answer",
  vocab_size=64,
  width=32,
  depth=2,
  heads=4,
  mlp=64,
  length=8,
)
TINY_INPUTS = dict(
  image=((16, 16, 3), "float32"),
  tokens=((8,), "int32"),
  decoder_tokens=((6,), "int32"),
)


class Blip(nn.Module):
  """An image encoder and text blocks; see `build` for the attributes."""

  image: nn.Module
  task: str
  vocab_size: int
  length: int
  spec: Spec
  width: int
  depth: int
  embed_dim: int = 256
  tied: bool = True
  scan: bool | None = None
  remat: str = "none"
  dtype: Any = jnp.float32

  def setup(self):
    def text(head: bool) -> CrossBert:
      return CrossBert(
        self.vocab_size,
        self.length,
        self.spec,
        self.width,
        self.depth,
        head,
        self.scan,
        self.remat,
        self.dtype,
        self.tied,
      )

    def dense(features: int, axis: str | None) -> nn.Dense:
      return nn.Dense(
        features,
        use_bias=self.task != "contrastive",
        dtype=self.dtype,
        kernel_init=rules.with_axes(
          nn.initializers.lecun_normal(), ("embed", axis)
        ),
        bias_init=rules.with_axes(nn.initializers.zeros, (axis,)),
      )

    if self.task != "caption":
      self.encoder = text(False)
    if self.task in WRITES:
      self.decoder = text(True)
      return
    self.image_projection = dense(self.embed_dim, "joint")
    self.text_projection = dense(self.embed_dim, "joint")
    if self.task == "retrieval":
      self.match = dense(2, None)
    else:
      self.pooler = Pooler(self.dtype)
      start = nn.initializers.constant(LOG_T)
      self.log_t = self.param("log_t", rules.with_axes(start, ()), ())

  def __call__(
    self,
    image: jax.Array,
    tokens: jax.Array,
    mask: jax.Array | None = None,
    decoder_tokens: jax.Array | None = None,
    decoder_mask: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Reads images with texts.

    Args:
      image: [B Y X C], see `models.vit`.
      tokens: int32 [B T]: the caption, the question, the text.
      mask: [B T], 0 where there is no token; None is all.
      decoder_tokens: int32 [B A], the answer; only of task "answer". They
        read all places of the question, padding too, as in the reference.
      decoder_mask: [B A].
      train: dropout on; needs the rng "dropout" if any rate is above 0.

    Returns:
      "caption" and "answer": logits [B T V] or [B A V] of the token after
      each; "retrieval": logits [B 2] of no match and match; "contrastive":
      logits [B B] of each image with each text. And {"image": what the image
      encoder says, [B M D]}, with "text" [B T D] where there is an encoder, and
      with the embeddings of length 1 "image_embedding" and "text_embedding"
      [B E] for retrieval and contrastive.

    Raises:
      InputError: task "answer" without decoder_tokens.
    """
    first, found = self.image(image, train=train)
    seen = found["tokens"]
    out = {"image": seen}
    keys = None if mask is None else masks.Keys(mask)
    if self.task == "contrastive":
      out["text"] = alone = self.encoder(tokens, keys, train=train)
      out |= self._embedded(first, self.pooler(alone))
      a, b = out["image_embedding"], out["text_embedding"]
      return jnp.exp(self.log_t) * a @ b.T, out
    if self.task == "caption":
      x = self._written(tokens, mask, seen, train)
      return self.decoder.logits(x), out
    x = self.encoder(tokens, keys, memory=seen, train=train)
    out["text"] = x
    if self.task == "answer":
      if decoder_tokens is None:
        raise errors.InputError(
          "models.blip decoder_tokens: not given; give the answer so far, or "
          "its start alone."
        )
      x = self._written(decoder_tokens, decoder_mask, x, train)
      return self.decoder.logits(x), out
    alone = self.encoder(tokens, keys, train=train)
    out |= self._embedded(seen[:, 0], alone[:, 0])
    return self.match(x[:, 0]), out

  def _embedded(
    self, image: jax.Array, text: jax.Array
  ) -> dict[str, jax.Array]:
    """Returns the embeddings of features [B D], by name."""
    return {
      "image_embedding": unit(self.image_projection(image)),
      "text_embedding": unit(self.text_projection(text)),
    }

  def see(self, image: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps images to what is attended to [B M D], the class token first."""
    return self.image(image, train=train)[1]["tokens"]

  def _written(self, tokens, mask, memory, train):
    causal: masks.Mask = masks.Causal()
    if mask is not None:
      causal = causal & masks.Keys(mask)
    return self.decoder(tokens, causal, memory=memory, train=train)

  def start(
    self,
    prompt: jax.Array,
    *,
    slots: int,
    image: jax.Array,
    tokens: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache]:
    """Computes a prompt, for `layers.generate`.

    Args:
      prompt: int32 [B P], the first of them the start of a text.
      slots: the longest text, prompt included.
      image: as in `__call__`.
      tokens, mask: the question, of task "answer". The decoder reads all of
        its places, as in the reference and in the original.

    Returns:
      Logits [B V] and the cache.

    Raises:
      InputError: a model without a decoder, more slots than positions, or no
        question to answer.
    """
    if self.task not in WRITES or slots > self.length:
      raise errors.InputError(
        f"models.blip task = {self.task!r} of length = {self.length} cannot "
        f"write {slots} tokens; take a model that writes, or a shorter text."
      )
    memory = self.see(image)
    if self.task == "answer":
      if tokens is None:
        raise errors.InputError(
          "models.blip tokens: not given; an answer needs its question."
        )
      keys = None if mask is None else masks.Keys(mask)
      memory = self.encoder(tokens, keys, memory=memory)
    cache = make_cache(
      self.spec,
      self.depth,
      width=self.width,
      batch=prompt.shape[0],
      slots=slots,
      memory=memory.shape[1],
      dtype=self.dtype,
    )
    return self._step(cache, prompt, jnp.int32(0), memory)

  def step(
    self, cache: Cache, tokens: jax.Array, slot: jax.Array
  ) -> tuple[jax.Array, Cache]:
    """Continues by tokens int32 [B T] from a slot on; see `start`."""
    return self._step(cache, tokens, slot, None)

  def _step(self, cache, tokens, slot, memory):
    B, T = tokens.shape
    seen = masks.cached(B, cache.own.k.shape[2], slot, T)
    x, cache = self.decoder(tokens, seen, memory=memory, cache=cache, slot=slot)
    return self.decoder.logits(x[:, -1:])[:, 0], cache


def build(
  variant: str | None = None,
  *,
  image: Mapping[str, Any] | None = None,
  task: str = "caption",
  vocab_size: int = 30524,
  width: int | None = None,
  depth: int | None = None,
  heads: int | None = None,
  mlp: int | None = None,
  length: int = 512,
  embed_dim: int = 256,
  tied: bool = True,
  act: str = "gelu_exact",
  epsilon: float = 1e-12,
  dropout: float = 0.0,
  scan: bool | None = None,
  remat: str = "none",
  dtype: str = "float32",
) -> Blip:
  """Builds a BLIP.

  Args:
    variant: of `VARIANTS`, or None. What is given beside it goes before it.
    image: name and keywords of the image encoder.
    task: "caption", "answer", "retrieval", "contrastive".
    vocab_size: V. width: D of the text. depth: its blocks. heads: N. mlp: F.
    length: the longest text. embed_dim: E, of the last two tasks.
    tied: the head of words is the table of embeddings.
    act, epsilon, dropout: of the text blocks.
    scan, remat: see `layers.transformer.Stack`.
    dtype: of the computation, also of an image encoder that does not say its.

  Raises:
    InputError: an unknown name, or a size that is not given.
  """
  sizes: dict[str, Any] = dict(
    image=image, width=width, depth=depth, heads=heads, mlp=mlp
  )
  if variant is not None:
    if variant not in VARIANTS:
      raise errors.unknown("models.blip variant", variant, VARIANTS)
    known = VARIANTS[variant]
    sizes = {k: known[k] if v is None else v for k, v in sizes.items()}
  missing = [name for name, value in sizes.items() if value is None]
  if missing:
    raise errors.InputError(
      f"models.blip: {', '.join(missing)} not given; give them, or a variant "
      "such as 'B/16'."
    )
  if task not in TASKS:
    raise errors.unknown("models.blip task", task, TASKS)
  activation(act)
  tower = {"dtype": dtype, "pool": "tok", "act": "gelu_exact", **sizes["image"]}
  return Blip(
    image=build_plugin("models", **tower),
    task=task,
    vocab_size=vocab_size,
    length=length,
    spec=Spec(
      sizes["heads"],
      sizes["mlp"],
      act=act,
      epsilon=epsilon,
      order="post",
      cross=task != "contrastive",
      dropout=dropout,
    ),
    width=sizes["width"],
    depth=sizes["depth"],
    embed_dim=embed_dim,
    tied=tied,
    scan=scan,
    remat=remat,
    dtype=jnp.dtype(dtype),
  )
