"""Contrastive learning of two towers: CLIP, SigLIP, LiT."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import errors
from mmjax.build import build as build_plugin
from mmjax.losses import contrastive
from mmjax.parallel import rules
from mmjax.typing import Aux, Batch, Params

LOSSES = ("sigmoid", "softmax")

# What the contract tests build and feed: axes after the batch, and dtype.
TINY = dict(
  model=dict(
    name="dual_encoder",
    image=dict(name="vit", width=16, depth=1, heads=2, mlp=32, patch=4),
    text=dict(
      name="text_encoder",
      vocab_size=32,
      width=16,
      depth=1,
      heads=2,
      mlp=32,
      length=6,
    ),
    embed_dim=8,
    bias_init=-10.0,
  ),
)
TINY_INPUTS = dict(image=((8, 8, 3), "uint8"), text=((6,), "int32"))


@dataclasses.dataclass(frozen=True, eq=False)
class Contrastive:
  """A `typing.Task`; see `build` for the attributes."""

  model: nn.Module
  objective: str = "sigmoid"
  impl: str = "dense"
  chunk: int = 1024
  microbatches: int = 1
  dtype: Any = jnp.float32

  def init(self, rng: jax.Array, batch: Batch) -> Mapping[str, Any]:
    """Returns new variables, boxed with their logical axis names."""
    return self.model.init(rng, self._image(batch["image"]), batch["text"])

  def loss(
    self, params: Params, mutable: Params, batch: Batch, rngs: Any
  ) -> tuple[jax.Array, Aux]:
    """Returns the loss of a batch, {"image": [B Y X C], "text": [B T]}."""
    if self.microbatches == 1:
      image_BD, text_BD, scale, mutable = self._encode(
        params, mutable, batch, rngs
      )
    else:
      image_BD, text_BD, scale = self._encode_in_parts(
        params, mutable, batch, rngs
      )
    how = {"impl": self.impl, "chunk": self.chunk}
    if self.objective == "softmax":
      value, metrics = contrastive.softmax(image_BD, text_BD, scale.t, **how)
    else:
      value, metrics = contrastive.sigmoid(
        image_BD, text_BD, scale.t, scale.b, **how
      )
    return value, Aux(mutable, metrics)

  @property
  def predict(self) -> Mapping[str, Callable[[Any, Batch], Any]]:
    """Embeddings of length 1: "image" and "text", each [B D] in float32."""
    return {"image": self._embed_image, "text": self._embed_text}

  def _embed_image(self, variables: Any, batch: Batch) -> Any:
    image = self._image(batch["image"])
    return self.model.apply(variables, image=image)[0]

  def _embed_text(self, variables: Any, batch: Batch) -> Any:
    return self.model.apply(variables, text=batch["text"])[1]

  def _image(self, image: jax.Array) -> jax.Array:
    """Brings uint8 to [-1, 1] in the compute dtype, which holds 0-255."""
    if image.dtype == jnp.uint8:
      return image.astype(self.dtype) / 127.5 - 1
    return image.astype(self.dtype)

  def _encode(self, params, mutable, batch, rngs):
    (image_BD, text_BD, scale), updated = self.model.apply(
      {"params": params, **mutable},
      self._image(batch["image"]),
      batch["text"],
      train=True,
      rngs=rngs,
      mutable=list(mutable),
    )
    return image_BD, text_BD, scale, {**mutable, **updated}

  def _encode_in_parts(self, params, mutable, batch, rngs):
    """Embeds microbatches in turn; activations of only one live at a time.

    The loss sees the embeddings of all rows at once, so its gradient is that
    of the whole batch. The backward pass encodes each microbatch again.
    """
    parts = self.microbatches
    inputs = {name: batch[name] for name in ("image", "text")}
    self._check(inputs, mutable)

    def split(x):
      # Part j has rows j, j + parts, ...: every device keeps its own rows,
      # where a part of adjacent rows would live on a few devices.
      x = x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
      return rules.constrain(x, None, "batch", *[None] * (x.ndim - 2))

    def join(x):
      x = x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
      return rules.constrain(x, "batch", *[None] * (x.ndim - 1))

    @jax.checkpoint
    def encode(part, index):
      keys = jax.tree.map(lambda k: jax.random.fold_in(k, index), rngs)
      return self._encode(params, mutable, part, keys)[:3]

    image_PBD, text_PBD, scales = jax.lax.map(
      lambda args: encode(*args),
      (jax.tree.map(split, inputs), jnp.arange(parts)),
    )
    # The scale depends on no input, so that any part's is the batch's.
    scale = jax.tree.map(lambda x: x[0], scales)
    return join(image_PBD), join(text_PBD), scale

  def _check(self, inputs: Batch, mutable: Params) -> None:
    rows, layout = inputs["text"].shape[0], rules.current()
    shards = 1 if layout is None else layout.batch_shards
    if rows % (self.microbatches * shards):
      raise errors.InputError(
        f"task.microbatches = {self.microbatches}: the batch of {rows} cannot "
        f"be split into as many equal parts on {shards} devices; make "
        f"batch_size a multiple of {self.microbatches * shards}."
      )
    if jax.tree.leaves(mutable):
      raise errors.InputError(
        f"task.microbatches = {self.microbatches}: the model keeps statistics "
        f"of the batch ({', '.join(mutable)}), which parts would change; use "
        "microbatches=1 or a model without batch normalisation."
      )


def build(
  *,
  model: Mapping[str, Any],
  loss: str = "sigmoid",
  loss_impl: str = "dense",
  chunk: int = 1024,
  microbatches: int = 1,
  dtype: str = "float32",
) -> Contrastive:
  """Builds the task.

  Batches are {"image": uint8 [B Y X C] or float in [-1, 1], "text": int32
  [B T]}; row i of one belongs to row i of the other. Metrics are those of
  `losses/contrastive.py`.

  Args:
    model: name and keywords of the model, {"name": "dual_encoder", ...}; it
      is called as (image, text, train=) and returns embeddings of length 1
      and a scale (t, b).
    loss: "sigmoid" (SigLIP, Zhai et al. 2023) or "softmax" (CLIP, Radford et
      al. 2021).
    loss_impl: "dense", "chunked" or "ring", see `losses/contrastive.py`.
    chunk: texts at a time in the latter two.
    microbatches: encode the batch in so many parts, one after the other, to
      save memory; loss and gradient stay those of the whole batch.
    dtype: of the computation; the model's too, if it does not say its own.

  Raises:
    InputError: an unknown loss or form, microbatches or chunk below 1, a
      model that cannot be built.
  """
  if loss not in LOSSES:
    raise errors.unknown("tasks.contrastive loss", loss, LOSSES)
  if loss_impl not in contrastive.IMPLS:
    raise errors.unknown(
      "tasks.contrastive loss_impl", loss_impl, contrastive.IMPLS
    )
  for name, value in (("microbatches", microbatches), ("chunk", chunk)):
    if value < 1:
      raise errors.InputError(
        f"tasks.contrastive {name} = {value}: must be 1 or more."
      )
  if "name" not in model:
    raise errors.InputError(
      f"tasks.contrastive model = {dict(model)}: has no name; add "
      "name='dual_encoder'."
    )
  return Contrastive(
    model=build_plugin("models", **{"dtype": dtype, **model}),
    objective=loss,
    impl=loss_impl,
    chunk=chunk,
    microbatches=microbatches,
    dtype=jnp.dtype(dtype),
  )
