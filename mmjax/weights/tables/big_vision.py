"""ViT, SigLIP and LiT of Google's big_vision, in .npz.

Files of github google-research/big_vision have no config: the names and shapes
of their tensors say what they are. Names may begin with "params/", and beside
them may stand an optimiser's, "opt/". Blocks are tensors each,
`Transformer/encoderblock_0/...`, or one stack, `Transformer/encoderblock/...`
[depth ...], of models that were trained with a scan. Kernels are laid out as
ours; the GELU is the one with tanh, the norms' epsilon 1e-6.

Where patches are embedded by a matrix, the image encoder is SigLIP 2's NaFlex.

Two towers have `img/`, `txt/`, the logarithm of the temperature `t` [1] and,
in SigLIP, the bias `b` [1]. What the names cannot say, at which token a text
without SigLIP's bias is read, stands in a config.json beside the file:
{"text_pool": "last"}, "first" or "mean" in big_vision's words.

LiT's BERT is that of `big_vision_bert`, and LiT's published files (github
google-research/vision_transformer) have the names of before 2022. An image
encoder alone with `posembed_input` is `vit`'s.
"""

import math
from typing import Any

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import big_vision_bert as bert
from mmjax.weights.tables import big_vision_layers as layers
from mmjax.weights.tables import hub

Inputs = dict[str, tuple[tuple[int, ...], str]]

# Their name of a text's pool -> ours.
TEXT_POOLS = {"last": "last", "first": "cls", "mean": "mean", "gap": "mean"}
# Of Gemma and PaliGemma, which are `big_vision_gemma`'s.
GEMMA = "embedder/input_embedding"
# What an encoder without positions is declared with: any grid fits.
_SIDE = 14


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a ViT or two towers, or None for any other.

  Raises:
    InputError: positions that are no square, a text encoder that we do not
      have, or whose pool nothing says.
  """
  shapes = checkpoint.shapes
  for root in ("params/", ""):
    if f"{root}llm/{GEMMA}" in shapes:
      return None
    if f"{root}img/Transformer/encoder_norm/scale" in shapes:
      return _two_towers(checkpoint, root)
    end = f"{root}Transformer/"
    if f"{end}encoder_norm/scale" in shapes and (
      f"{end}posembed_input/pos_embedding" not in shapes
    ):
      return _image(checkpoint, root)
  return None


def _image(checkpoint: Checkpoint, root: str) -> Recipe:
  shapes = checkpoint.shapes
  model, inputs, rules = image(checkpoint, root)
  head = shapes.get(f"{root}head/kernel")
  if head is not None and model["name"] == "vit":
    model["num_classes"] = head[1]
    rules += layers.dense("head", f"{root}head")
  elif head is not None:
    model = dict(
      name="projected", encoder=model, embed_dim=head[1], use_bias=True
    )
    rules = [
      *rename.under("encoder/", "", rules),
      *layers.dense("projection", f"{root}head"),
    ]
  return Recipe(
    table="big_vision",
    model=model,
    inputs=inputs,
    rules=rules,
    config=checkpoint.config,
    ignore=layers.IGNORE,
  )


def _two_towers(checkpoint: Checkpoint, root: str) -> Recipe:
  shapes = checkpoint.shapes
  image_model, given, image_rules = image(checkpoint, f"{root}img/")
  if bert.marked(checkpoint, f"{root}txt/"):
    text_model, text_rules = bert.text(checkpoint, f"{root}txt/")
    length = min(bert.LENGTH, text_model["length"])
  else:
    text_model, text_rules = _text(checkpoint, root)
    length = text_model["length"]
  rules = [
    *rename.under("image/", "", image_rules),
    *rename.under("text/", "", text_rules),
    Rule("log_t", f"{root}t", rename.reshape((), (1,))),
  ]
  # The dual encoder's image and text have arguments of these names.
  inputs = {k if k == "image" else f"image_{k}": v for k, v in given.items()}
  heads = {}
  for ours, theirs in (("image", "img"), ("text", "txt")):
    kernel = shapes.get(f"{root}{theirs}/head/kernel")
    if kernel is not None:
      heads[ours] = kernel[1]
      rules += layers.dense(f"{ours}_projection", f"{root}{theirs}/head")
  bias = f"{root}b" in shapes
  if bias:
    rules.append(Rule("b", f"{root}b", rename.reshape((), (1,))))
  return Recipe(
    table="big_vision",
    model=dict(
      name="dual_encoder",
      image=image_model,
      text=text_model,
      embed_dim=next(iter(heads.values()), None),
      projected="both" if len(heads) != 1 else next(iter(heads)),
      projection_bias=True,
      temperature_init=10.0,
      bias_init=-10.0 if bias else None,
    ),
    inputs={**inputs, "text": ((1, length), "int32")},
    rules=rules,
    config=checkpoint.config,
    texts={"text": length},
    ignore=layers.IGNORE,
  )


def image(
  checkpoint: Checkpoint, root: str
) -> tuple[dict[str, Any], Inputs, list[Rule]]:
  """Returns what is known of an image encoder, without its head.

  Args:
    checkpoint: that holds it.
    root: what its names begin with, "params/img/".

  Returns:
    Keywords of the model; for each of its inputs a shape and a dtype; and the
    rules.

  Raises:
    InputError: patches or positions that are no square; a NaFlex with norms
      of patches.
  """
  shapes = checkpoint.shapes
  kernel = shapes[f"{root}embedding/kernel"]
  if len(kernel) == 2:
    return _naflex(checkpoint, root)
  patch, columns, channels, width = kernel
  if columns != patch:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: {root}embedding/kernel has "
      f"patches of {patch} by {columns} pixels; only squares can be loaded."
    )
  sizes, rules = layers.encoder(shapes, f"{root}Transformer/")
  rules += layers.dense("embedding", f"{root}embedding")
  # Their convolution leaves out what fills no patch, as of 384 pixels by 14.
  model: dict[str, Any] = dict(
    name="vit", **sizes, patch=patch, pool="gap", crop=True
  )
  if f"{root}MAPHead_0/probe" in shapes:
    model["pool"] = "map"
    rules += layers.map_head(f"{root}MAPHead_0/", width)
  tokens = int(f"{root}cls" in shapes)
  if tokens:
    model.update(pool="tok", token_posemb=False)
    rules.append(
      Rule("cls", f"{root}cls", rename.reshape((1, width), (1, 1, width)))
    )
  side, table = _SIDE, f"{root}pos_embedding"
  placed = 0
  if f"{root}Transformer/posembed_input/pos_embedding" in shapes:
    table, placed = f"{root}Transformer/posembed_input/pos_embedding", tokens
    model["token_posemb"] = placed > 0
  if table in shapes:
    count = shapes[table][1] - placed
    side = math.isqrt(count)
    if side * side != count:
      raise errors.InputError(
        f"weights path = {str(checkpoint.path)!r}: the {count} positions of "
        f"{table} are no square, and a .npz does not say how many rows they "
        "have; give the model in the hub's layout, where its config says it."
      )
    model["interpolate"] = "bilinear_corners"
    rules += hub.positions(
      table, (side, side), width, extra=placed, batched=True
    )
  else:
    model["posemb"] = "sincos2d"
  pixels = side * patch
  given = ((1, pixels, pixels, channels), "float32")
  return model, {"image": given}, rules


def _naflex(
  checkpoint: Checkpoint, root: str
) -> tuple[dict[str, Any], Inputs, list[Rule]]:
  """Returns what `image` does, of patches as rows of numbers."""
  shapes = checkpoint.shapes
  size, width = shapes[f"{root}embedding/kernel"]
  grid = shapes.get(f"{root}pos_embedding", ())
  patch = math.isqrt(size // 3)
  for wrong, what in (
    (
      f"{root}patchln_pre/scale" in shapes
      or f"{root}patchln_post/scale" in shapes,
      "patchln_pre or patchln_post, norms of NaFlex's patches",
    ),
    (
      patch * patch * 3 != size,
      f"{root}embedding/kernel {(size, width)}, whose first size is no "
      "square of pixels of 3 colours",
    ),
    (
      grid != (*grid[:1], *grid[:1], width),
      f"{root}pos_embedding {grid or 'missing'}, which is no square grid",
    ),
  ):
    if wrong:
      raise errors.InputError(
        f"weights path = {str(checkpoint.path)!r}: it has {what}; only NaFlex "
        "as SigLIP 2 has it can be loaded."
      )
  sizes, rules = layers.encoder(shapes, f"{root}Transformer/")
  flat = rename.reshape((patch, patch, 3, width), (size, width))
  rules += [
    Rule("embedding/kernel", f"{root}embedding/kernel", flat),
    Rule("embedding/bias", f"{root}embedding/bias"),
    Rule("posemb/grid", f"{root}pos_embedding"),
  ]
  pool = "gap"
  if f"{root}MAPHead_0/probe" in shapes:
    pool = "map"
    rules += layers.map_head(f"{root}MAPHead_0/", width)
  side = grid[0]
  model = dict(name="naflex", **sizes, patch=patch, side=side, pool=pool)
  inputs = {
    "image": ((1, side * side, size), "float32"),
    "mask": ((1, side * side), "int32"),
    "shapes": ((1, 2), "int32"),
  }
  return model, inputs, rules


def _text(
  checkpoint: Checkpoint, root: str
) -> tuple[dict[str, Any], list[Rule]]:
  shapes, base = checkpoint.shapes, f"{root}txt/"
  if f"{base}Encoder_0/encoder_norm/scale" not in shapes:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: its text encoder has no "
      f"{base}Encoder_0/encoder_norm/scale and no {base}BertEncoder_0; only "
      "big_vision's own Transformer and LiT's BERT are known."
    )
  sizes, rules = layers.encoder(shapes, f"{base}Encoder_0/")
  vocab, width = shapes[f"{base}Embed_0/embedding"]
  length = shapes[f"{base}pos_embedding"][1]
  rules += [
    Rule("embedding/table", f"{base}Embed_0/embedding"),
    Rule(
      "posemb/table",
      f"{base}pos_embedding",
      rename.reshape((length, width), (1, length, width)),
    ),
  ]
  if f"{base}MAPHead_0/probe" in shapes:
    pool = "map"
    rules += layers.map_head(f"{base}MAPHead_0/", width)
  else:
    pool = _text_pool(checkpoint, f"{root}b" in shapes)
  return (
    dict(
      name="text_encoder",
      **sizes,
      vocab_size=vocab,
      length=length,
      pool=pool,
      mask_pad=False,
    ),
    rules,
  )


def _text_pool(checkpoint: Checkpoint, siglip: bool) -> str:
  name = checkpoint.config.get("text_pool", "last" if siglip else None)
  if name is None:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: it has no b, so is no SigLIP, "
      "and nothing says at which token its texts are read; put a config.json "
      'that says {"text_pool": "last"} (or "first", "mean") beside it, and '
      "give the directory."
    )
  if name not in TEXT_POOLS:
    raise errors.unknown("config.json text_pool", name, TEXT_POOLS)
  return TEXT_POOLS[name]
