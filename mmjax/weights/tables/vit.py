"""ViT and DeiT of the model hub, and Google's ViT in .npz.

Google's files (github google-research/vision_transformer, big_vision) stand in
`Transformer/encoderblock_0/...` with kernels laid out as ours.
"""

import math
from typing import Any

from mmjax import errors
from mmjax.weights import recipe, rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import SAME, Rule
from mmjax.weights.tables import hub, hub_vit

MODEL_TYPES = ("vit", "deit")
# What files may leave out.
DEFAULTS = dict(
  **hub_vit.DEFAULTS,
  encoder_stride=16,
  pooler_act="tanh",
  pooler_output_size=None,
)


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a ViT, or None for any other checkpoint."""
  if checkpoint.config.get("model_type") in MODEL_TYPES:
    return _hub(checkpoint)
  if "Transformer/encoder_norm/scale" in checkpoint.tensors:
    return _google(checkpoint)
  return None


def _hub(checkpoint: Checkpoint) -> Recipe:
  config = hub_vit.fields(checkpoint, DEFAULTS)
  shapes = checkpoint.shapes
  kind = config["model_type"]
  hub_vit.check(config)
  prefix = hub_vit.prefix(shapes, kind)
  heads, width = config["num_attention_heads"], config["hidden_size"]
  qkv_bias = config.get("qkv_bias", True)
  tokens = ("cls", "distilled") if kind == "deit" else ("cls",)
  # DeiT with a teacher has a head for each of the two tokens.
  pair = "distillation_classifier.weight" in shapes
  teacher = kind == "deit" and hub_vit.named(checkpoint, "WithTeacher")
  head = "cls_classifier" if pair else "classifier"
  classes = hub_vit.classes(shapes, head)
  rules = [
    *hub_vit.embeddings(
      f"{prefix}embeddings.", hub.grid(config), width, tokens
    ),
    *hub_vit.blocks(f"{prefix}encoder.layer.{{n}}.", heads, qkv_bias=qkv_bias),
    *hub.norm("norm", f"{prefix}layernorm"),
  ]
  encoder: dict[str, Any] = dict(
    **hub.sizes(config, patches=True),
    distilled=kind == "deit",
    qkv_bias=qkv_bias,
  )
  if "decoder.0.weight" in shapes:
    return _masked(checkpoint, config, encoder, f"{prefix}embeddings.", rules)
  if f"{prefix}pooler.dense.weight" in shapes:
    encoder.update(
      pooler=True,
      pooler_act=hub.act(config, field="pooler_act"),
      pooler_width=config["pooler_output_size"] or width,
    )
    rules += hub.linear("pooler/dense", f"{prefix}pooler.dense")
  if classes is not None:
    rules += hub.linear("head", head)
  if pair:
    rules += hub.linear("head_distilled", "distillation_classifier")
  return Recipe(
    table="vit",
    model=dict(
      name="vit",
      **encoder,
      num_classes=classes,
      pool="pair" if pair or teacher else "tok",
    ),
    inputs={"image": hub.image_input(config)},
    rules=rules,
    config=checkpoint.config,
    keep=(r"mask_token$",),
  )


def _masked(
  checkpoint: Checkpoint,
  config: recipe.Config,
  encoder: dict[str, Any],
  embeddings: str,
  rules: list[Rule],
) -> Recipe:
  """Returns the recipe of one that paints pixels: a mask token and a decoder.

  Args:
    checkpoint: that holds it.
    config: of it, with all its values.
    encoder: keywords of `models.vit`.
    embeddings: their prefix of the embeddings.
    rules: of the encoder, without its mask token.
  """
  width, channels = config["hidden_size"], config["num_channels"]
  square = config["encoder_stride"]
  op = rename.reshape((width,), (1, 1, width))
  image, kind = hub.image_input(config)
  rows, columns = hub.grid(config)
  return Recipe(
    table="vit",
    model=dict(
      name="masked_image", encoder=encoder, square=square, channels=channels
    ),
    inputs={
      "image": (image, kind),
      "hidden": ((1, rows * columns), "int32"),
    },
    rules=[
      *rename.under("encoder/", "", rules),
      Rule("encoder/mask/token", f"{embeddings}mask_token", op),
      # A 1x1 convolution [O D 1 1].
      Rule(
        "paint/kernel",
        "decoder.0.weight",
        rename.chain(
          rename.reshape((-1, width), (-1, width, 1, 1)), rename.LINEAR
        ),
      ),
      Rule("paint/bias", "decoder.0.bias"),
    ],
    config=checkpoint.config,
  )


def _google(checkpoint: Checkpoint) -> Recipe:
  shapes = checkpoint.shapes
  block = "Transformer/encoderblock_{n}/"
  first = block.replace("{n}", "0")
  depth = sum(n.endswith("/LayerNorm_0/scale") for n in shapes)
  theirs = "MultiHeadDotProductAttention_1/"
  mlp, second = "MlpBlock_3/", "LayerNorm_2/"
  if f"{first}{theirs}query/kernel" not in shapes:  # the newer generation
    theirs, mlp, second = (
      "MultiHeadDotProductAttention_0/",
      "MlpBlock_0/",
      "LayerNorm_1/",
    )
  width, heads, _ = shapes[f"{first}{theirs}query/kernel"]
  patch = shapes["embedding/kernel"][0]
  count = shapes["Transformer/posembed_input/pos_embedding"][1] - 1
  side = math.isqrt(count)
  if side * side != count:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: its {count} positions are no "
      "square, and a .npz without a config does not say how many rows they "
      "have; give it in the hub's layout, with image_size = [rows, columns]."
    )
  classes = shapes["head/kernel"][1] if "head/kernel" in shapes else None
  rules = [
    Rule("cls", "cls", rename.reshape((1, width), (1, 1, width))),
    *hub.positions(
      "Transformer/posembed_input/pos_embedding",
      (side, side),
      width,
      batched=True,
    ),
    Rule("embedding/kernel", "embedding/kernel"),
    Rule("embedding/bias", "embedding/bias"),
    *(
      Rule(f"norm/{x}", f"Transformer/encoder_norm/{x}")
      for x in ("scale", "bias")
    ),
  ]
  for ours, named, leaves in (
    ("norm1/", "LayerNorm_0/", ("scale", "bias")),
    ("norm2/", second, ("scale", "bias")),
    ("mlp/up/", f"{mlp}Dense_0/", ("kernel", "bias")),
    ("mlp/down/", f"{mlp}Dense_1/", ("kernel", "bias")),
    *(
      (f"attention/{x}/", f"{theirs}{x}/", ("kernel", "bias"))
      for x in ("query", "key", "value", "out")
    ),
  ):
    rules += [
      Rule(f"encoder/blocks/{ours}{x}", f"{block}{named}{x}", SAME)
      for x in leaves
    ]
  if classes is not None:
    rules += [Rule(f"head/{x}", f"head/{x}") for x in ("kernel", "bias")]
  return Recipe(
    table="vit",
    model=dict(
      name="vit",
      width=width,
      depth=depth,
      heads=heads,
      mlp=shapes[f"{first}{mlp}Dense_0/kernel"][1],
      patch=patch,
      num_classes=classes,
      pool="tok",
      interpolate="bilinear_corners",
    ),
    inputs={"image": ((1, side * patch, side * patch, 3), "float32")},
    rules=rules,
    config={},
  )
