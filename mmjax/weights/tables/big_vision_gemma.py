"""Gemma and PaliGemma, 1 and 2, of Google's big_vision, in .npz.

"PaliGemma: a versatile 3B VLM for transfer", Beyer et al. 2024; "Gemma: open
models based on Gemini research and technology", 2024, and those that followed.
As in `big_vision`, names and shapes say what it is: the second Gemma is the one
whose branches end in norms. big_vision's has no layers that see a band only.
PaliGemma has `img/`, SigLIP's image encoder with a head that leads to the
language model's width, and `llm/`; a Gemma alone stands at the root or under
`llm/`. Its blocks are one stack, `layers/attn/...`
[depth ...], or tensors each, `layers/0/attn/...`.

Kernels are as in Google's Gemma: heads before the width, keys and values (with
as many heads as queries: all three) in one tensor, and so the gate and what it
gates.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Op, Rule
from mmjax.weights.tables import big_vision
from mmjax.weights.tables import big_vision_layers as layers

Shapes = Mapping[str, tuple[int, ...]]

TABLE = big_vision.GEMMA
# Of the second Gemma, whose branches also have norms at their ends, and what
# no tensor says of it.
SECOND = "post_attention_norm/scale"
CAPS = dict(softcap=50.0, logits_cap=30.0, norm_after=True)
# Width, heads and their width where scores are scaled by width / heads: 27B.
BY_WIDTH = (4608, 32, 128)
# What no tensor says; rotary positions have no end, and this is Gemma's.
LENGTH = 8192
THETA = 10_000.0
# Rows of Gemma's table in some files, and those that are tokens.
PADDED, TOKENS = 256_128, 256_000


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a PaliGemma or a Gemma, or None for any other.

  Raises:
    InputError: an image encoder that pools its patches; what
      `big_vision.image` refuses.
  """
  shapes = checkpoint.shapes
  for root in ("params/", ""):
    if f"{root}llm/{TABLE}" in shapes:
      if f"{root}img/embedding/kernel" in shapes:
        return _both(checkpoint, root)
      return _alone(checkpoint, f"{root}llm/")
    if f"{root}{TABLE}" in shapes:
      return _alone(checkpoint, root)
  return None


def _alone(checkpoint: Checkpoint, root: str) -> Recipe:
  model, rules = language(checkpoint, root)
  return Recipe(
    table="big_vision_gemma",
    model=model,
    inputs={"tokens": ((1, 2), "int32")},
    rules=rules,
    config=checkpoint.config,
    ignore=layers.IGNORE,
  )


def _both(checkpoint: Checkpoint, root: str) -> Recipe:
  image, inputs, image_rules = big_vision.image(checkpoint, f"{root}img/")
  if image["name"] != "vit" or image["pool"] != "gap":
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: {root}img/ is NaFlex, or has "
      "a class token or a pooling head; PaliGemma's image encoder, a ViT of "
      "which all patches are read, has none of them."
    )
  language_model, language_rules = language(checkpoint, f"{root}llm/")
  if "logits_cap" in language_model:
    # Its PaliGemma leaves out the cap of Gemma's logits, which moves no id.
    language_model["logits_cap"] = None
  return Recipe(
    table="big_vision_gemma",
    model=dict(
      name="paligemma", image=dict(image, pool="none"), language=language_model
    ),
    inputs={**inputs, "tokens": ((1, 2), "int32")},
    rules=[
      *rename.under("image/", "", image_rules),
      *layers.dense("projection", f"{root}img/head"),
      *rename.under("language/", "", language_rules),
    ],
    config=checkpoint.config,
    ignore=layers.IGNORE,
  )


def language(
  checkpoint: Checkpoint, root: str
) -> tuple[dict[str, Any], list[Rule]]:
  """Returns keywords and rules of a Gemma.

  Args:
    checkpoint: that holds it.
    root: what its names begin with, "params/llm/".

  Raises:
    InputError: a tensor that the sizes are read from is not there.
  """
  shapes = checkpoint.shapes
  stacked = not any(n.startswith(f"{root}layers/0/") for n in shapes)
  block = f"{root}layers/" if stacked else f"{root}layers/{{n}}/"
  first = block.replace("{n}", "0")
  second = f"{first}{SECOND}" in shapes

  def shape(name: str) -> tuple[int, ...]:
    if name not in shapes:
      near = errors.nearest(name, shapes)
      raise errors.InputError(
        f"weights path = {str(checkpoint.path)!r}: it has {root}{TABLE}, as a "
        f"Gemma, but no {name} (nearest: {near}); fetch it anew."
      )
    return shapes[name]

  vocab, width = shape(f"{root}{TABLE}")
  mlp, _ = shape(f"{first}mlp/linear")[-2:]
  heads, head_dim, _ = shape(f"{first}attn/attn_vec_einsum/w")[-3:]
  packed = f"{first}attn/qkv_einsum/w" in shapes
  kv_heads = heads if packed else int(shape(f"{first}attn/kv_einsum/w")[-3])
  depth = shapes[f"{first}mlp/linear"][0] if stacked else 0
  while not stacked and f"{root}layers/{depth}/mlp/linear" in shapes:
    depth += 1
  padding = dict(vocab_size=TOKENS, pad_vocab=PADDED)
  model = dict(
    name="decoder_lm",
    **(padding if vocab == PADDED else dict(vocab_size=vocab)),
    width=width,
    depth=depth,
    heads=heads,
    kv_heads=kv_heads,
    head_dim=head_dim,
    mlp=mlp,
    length=LENGTH,
    posemb="rotary",
    theta=THETA,
    act="gelu",
    gated=True,
    norm="rms_plus_one",
    epsilon=1e-6,
    biases="",
    mlp_bias=False,
    embed_scale=True,
    **(CAPS if second else {}),
  )
  if second and (width, heads, head_dim) == BY_WIDTH:
    model["scale"] = (width / heads) ** -0.5
  # Some of Google's files have it as [2 F D].
  gate = shape(f"{first}mlp/gating_einsum")[-2:]
  turned = gate == (mlp, width) and mlp != width
  rules = [
    Rule("embedding/table", f"{root}{TABLE}"),
    Rule("final_norm/scale", f"{root}final_norm/scale"),
    *rename.under("decoder/blocks/", block, _block(packed, turned, second)),
  ]
  return model, rules


def _block(packed: bool, turned: bool, second: bool) -> list[Rule]:
  """Returns the rules of the blocks, stacked or not: axes count from the last.

  Args:
    packed: queries, too, are in one tensor with keys and values.
    turned: the gate has its hidden axis first.
    second: it is Gemma 2's.
  """
  names, attention = ("query", "key", "value"), "attn/qkv_einsum/w"
  rules = [
    Rule("norm1/scale", "pre_attention_norm/scale"),
    Rule("norm2/scale", "pre_ffw_norm/scale"),
    Rule("attention/out/kernel", "attn/attn_vec_einsum/w"),
    Rule("mlp/down/kernel", "mlp/linear"),
  ]
  if second:
    rules += [
      Rule("norm1_after/scale", SECOND),
      Rule("norm2_after/scale", "post_ffw_norm/scale"),
    ]
  if not packed:
    names, attention = ("key", "value"), "attn/kv_einsum/w"
    rules.append(
      Rule("attention/query/kernel", "attn/q_einsum/w", _swapped(-3, -2))
    )
  rules += [
    Rule(
      f"attention/{name}/kernel",
      attention,
      rename.chain(_without(-4), _swapped(-3, -2)),
      (i, i + 1, -4),
    )
    for i, name in enumerate(names)
  ]
  alone = _without(-3)
  gate = rename.chain(alone, _swapped(-2, -1)) if turned else alone
  return rules + [
    Rule(f"mlp/{name}/kernel", "mlp/gating_einsum", gate, (i, i + 1, -3))
    for i, name in enumerate(("gate", "up"))
  ]


def _swapped(a: int, b: int) -> Op:
  """Swaps two axes."""
  return Op(lambda x: x.swapaxes(a, b), lambda x: x.swapaxes(a, b))


def _without(axis: int) -> Op:
  """Takes an axis of one away, counted from the last of theirs."""
  return Op(lambda x: np.squeeze(x, axis), lambda x: np.expand_dims(x, axis))
