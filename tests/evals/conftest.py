"""A source in memory, and a task whose embeddings can be dictated."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data.image_ops import CorruptRecord
from mmjax.parallel import mesh, rules


class ListSource:
  """Examples in a list."""

  name = "list"

  def __init__(self, examples):
    self.examples = list(examples)

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, index):
    return self.examples[index]


class Damaged(ListSource):
  """A list of which some examples have bytes that are no image."""

  def __init__(self, examples, broken):
    super().__init__(examples)
    self.broken = set(broken)

  def __getitem__(self, index):
    example = super().__getitem__(index)
    return {**example, "image": b"RIFF"} if index in self.broken else example


def _image(example, rng):
  """A preprocessing of images that decodes nothing, and refuses bytes."""
  if isinstance(example["image"], bytes):
    raise CorruptRecord(f"image = {example['image']!r}: remove the record.")
  return {"image": example["image"]}


def _codes(example, rng):
  """A preprocessing of texts: code points, zero-padded."""
  codes = np.zeros(12, np.int32)
  codes[: len(example["text"])] = [ord(c) for c in example["text"][:12]]
  return {"text": codes}


@pytest.fixture
def house():
  """Namespace: ListSource, Damaged, task, text_pp, image_pp, layout(axes).

  The task embeds an image [D] linearly, by variables["matrix"], and a text
  that spells a number as that row of variables["texts"].
  """

  def embed_image(variables, batch):
    return batch["image"].astype(jnp.float32) @ variables["matrix"]

  def embed_text(variables, batch):
    tokens = batch["text"]
    digits = jnp.where(tokens > 0, tokens - 48, 0)
    number = digits[:, 0] * jnp.where(tokens[:, 1] > 0, 10, 1) + digits[:, 1]
    return variables["texts"][number]

  def layout(axes=None):
    axes = axes or {"data": 8}
    devices = jax.devices()[: math.prod(axes.values())]
    return rules.Layout(mesh.make_mesh(axes, devices=devices))

  return types.SimpleNamespace(
    ListSource=ListSource,
    Damaged=Damaged,
    task=types.SimpleNamespace(
      predict={"image": embed_image, "text": embed_text}
    ),
    text_pp=_codes,
    image_pp=_image,
    layout=layout,
  )
