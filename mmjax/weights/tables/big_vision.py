"""ViT, SigLIP and LiT of Google's big_vision, in .npz.

Files of github google-research/big_vision have no config: the names and shapes
of their tensors say what they are. Names may begin with "params/", and beside
them may stand an optimiser's, "opt/". Blocks are tensors each,
`Transformer/encoderblock_0/...`, or one stack, `Transformer/encoderblock/...`
[depth ...], of models that were trained with a scan. Kernels are laid out as
ours; the GELU is the one with tanh, the norms' epsilon 1e-6.

Two towers have `img/`, `txt/`, the logarithm of the temperature `t` [1] and,
in SigLIP, the bias `b` [1]. What the names cannot say, at which token a text
without SigLIP's bias is read, stands in a config.json beside the file:
{"text_pool": "last"}, "first" or "mean" in big_vision's words.

Files of before 2022 with `posembed_input` are those of `vit`.
"""

import math
from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import hub

Shapes = Mapping[str, tuple[int, ...]]

# Their name of a text's pool -> ours.
TEXT_POOLS = {"last": "last", "first": "cls", "mean": "mean", "gap": "mean"}
# The state of training.
IGNORE = (r"^opt/", r"^extra/")
# What an encoder without positions is declared with: any grid fits.
_SIDE = 14
_NORM = "LayerNorm_0/scale"


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a ViT or two towers, or None for any other.

  Raises:
    InputError: positions that are no square, a text encoder that we do not
      have, or whose pool nothing says.
  """
  shapes = checkpoint.shapes
  for root in ("params/", ""):
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
  model, given, rules = image(checkpoint, root)
  head = shapes.get(f"{root}head/kernel")
  if head is not None:
    rules += dense("head", f"{root}head")
  return Recipe(
    table="big_vision",
    model=dict(model, num_classes=None if head is None else head[1]),
    inputs={"image": given},
    rules=rules,
    config=checkpoint.config,
    ignore=IGNORE,
  )


def _two_towers(checkpoint: Checkpoint, root: str) -> Recipe:
  shapes = checkpoint.shapes
  image_model, given, image_rules = image(checkpoint, f"{root}img/")
  text_model, text_rules = _text(checkpoint, root)
  rules = [
    *rename.under("image/", "", image_rules),
    *rename.under("text/", "", text_rules),
    Rule("log_t", f"{root}t", rename.reshape((), (1,))),
  ]
  heads = {}
  for ours, theirs in (("image", "img"), ("text", "txt")):
    kernel = shapes.get(f"{root}{theirs}/head/kernel")
    if kernel is not None:
      heads[ours] = kernel[1]
      rules += dense(f"{ours}_projection", f"{root}{theirs}/head")
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
    inputs={"image": given, "text": ((1, text_model["length"]), "int32")},
    rules=rules,
    config=checkpoint.config,
    texts={"text": text_model["length"]},
    ignore=IGNORE,
  )


def image(
  checkpoint: Checkpoint, root: str
) -> tuple[dict[str, Any], tuple[tuple[int, ...], str], list[Rule]]:
  """Returns what is known of an image encoder, without its head.

  Args:
    checkpoint: that holds it.
    root: what its names begin with, "params/img/".

  Returns:
    Keywords of the model, shape and dtype of an image, and the rules.

  Raises:
    InputError: positions that are no square; patches of NaFlex.
  """
  shapes = checkpoint.shapes
  kernel = shapes[f"{root}embedding/kernel"]
  if len(kernel) != 4:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: {root}embedding/kernel is "
      f"{kernel}, as in NaFlex, whose .npz is not known; give the model in "
      "the hub's layout."
    )
  sizes, rules = encoder(shapes, f"{root}Transformer/")
  patch, _, channels, width = kernel
  rules += dense("embedding", f"{root}embedding")
  # Their convolution leaves out what fills no patch, as of 384 pixels by 14.
  model: dict[str, Any] = dict(
    name="vit", **sizes, patch=patch, pool="gap", crop=True
  )
  if f"{root}MAPHead_0/probe" in shapes:
    model["pool"] = "map"
    rules += _map_head(f"{root}MAPHead_0/", width)
  if f"{root}cls" in shapes:
    model.update(pool="tok", token_posemb=False)
    rules.append(
      Rule("cls", f"{root}cls", rename.reshape((1, width), (1, 1, width)))
    )
  side, table = _SIDE, f"{root}pos_embedding"
  if table in shapes:
    count = shapes[table][1]
    side = math.isqrt(count)
    if side * side != count:
      raise errors.InputError(
        f"weights path = {str(checkpoint.path)!r}: the {count} positions of "
        f"{table} are no square, and a .npz does not say how many rows they "
        "have; give the model in the hub's layout, where its config says it."
      )
    model["interpolate"] = "bilinear_corners"
    rules += hub.positions(table, (side, side), width, extra=0, batched=True)
  else:
    model["posemb"] = "sincos2d"
  pixels = side * patch
  return model, ((1, pixels, pixels, channels), "float32"), rules


def _text(
  checkpoint: Checkpoint, root: str
) -> tuple[dict[str, Any], list[Rule]]:
  shapes, base = checkpoint.shapes, f"{root}txt/"
  if f"{base}Encoder_0/encoder_norm/scale" not in shapes:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: its text encoder has no "
      f"{base}Encoder_0/encoder_norm/scale; only big_vision's own Transformer "
      "is known, not LiT's BERT."
    )
  sizes, rules = encoder(shapes, f"{base}Encoder_0/")
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
    rules += _map_head(f"{base}MAPHead_0/", width)
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


def encoder(shapes: Shapes, theirs: str) -> tuple[dict[str, int], list[Rule]]:
  """Returns sizes and rules of a stack of blocks and its last norm.

  Args:
    shapes: of the checkpoint.
    theirs: what its names begin with, "params/img/Transformer/".
  """
  stacked = f"{theirs}encoderblock/{_NORM}" in shapes
  block = (
    f"{theirs}encoderblock/" if stacked else f"{theirs}encoderblock_{{n}}/"
  )
  attention, mlp = "MultiHeadDotProductAttention_0/", "MlpBlock_0/"
  first = block.replace("{n}", "0")
  *layers, width, heads, _ = shapes[f"{first}{attention}query/kernel"]
  depth = layers[0] if stacked else 0
  while not stacked and block.replace("{n}", str(depth)) + _NORM in shapes:
    depth += 1
  ours = "encoder/blocks"
  rules = [
    *norm(f"{ours}/norm1", f"{block}LayerNorm_0"),
    *norm(f"{ours}/norm2", f"{block}LayerNorm_1"),
    *_mlp(f"{ours}/mlp", f"{block}{mlp}"),
    *_attention(f"{ours}/attention", f"{block}{attention}"),
    *norm("norm", f"{theirs}encoder_norm"),
  ]
  hidden = shapes[f"{first}{mlp}Dense_0/kernel"][-1]
  return dict(width=width, depth=depth, heads=heads, mlp=hidden), rules


def norm(ours: str, theirs: str, bias: bool = True) -> list[Rule]:
  """Returns the rules of a LayerNorm."""
  leaves = ("scale", "bias") if bias else ("scale",)
  return [Rule(f"{ours}/{x}", f"{theirs}/{x}") for x in leaves]


def dense(ours: str, theirs: str, bias: bool = True) -> list[Rule]:
  """Returns the rules of a dense layer or a convolution."""
  leaves = ("kernel", "bias") if bias else ("kernel",)
  return [Rule(f"{ours}/{x}", f"{theirs}/{x}") for x in leaves]


def _mlp(ours: str, theirs: str) -> list[Rule]:
  return [
    *dense(f"{ours}/up", f"{theirs}Dense_0"),
    *dense(f"{ours}/down", f"{theirs}Dense_1"),
  ]


def _attention(ours: str, theirs: str) -> list[Rule]:
  found = []
  for name in ("query", "key", "value", "out"):
    found += dense(f"{ours}/{name}", f"{theirs}{name}")
  return found


def _map_head(theirs: str, width: int) -> list[Rule]:
  probe = rename.reshape((1, width), (1, 1, width))
  return [
    Rule("pool/probe", f"{theirs}probe", probe),
    *_attention("pool/attention", f"{theirs}MultiHeadDotProductAttention_0/"),
    *norm("pool/norm", f"{theirs}LayerNorm_0"),
    *_mlp("pool/mlp", f"{theirs}MlpBlock_0/"),
  ]
