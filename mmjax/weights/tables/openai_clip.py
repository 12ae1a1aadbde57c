"""CLIP in OpenAI's layout, which open_clip has too: with a ViT or a ResNet.

"Learning transferable visual models from natural language supervision",
Radford et al. 2021. The image tower is under `visual.`, the text tower at the
root, or under `text.` (open_clip's custom_text).

A state dict does not say which GELU it was trained with, nor how many heads it
has. Where open_clip's config (open_clip_config.json, or one of its model
configs as config.json) is there, it says both, and `quick_gelu` that it leaves
out is false. Without it the file is taken for one of OpenAI's: quick GELU, and
heads of 64 channels.
"""

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.weights import open_clip_front, rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import CONV2D, Rule
from mmjax.weights.tables import hub, open_clip_config, residual

HEAD_WIDTH = 64
STRIDE = 32  # of the ResNet
POOL = "visual.attnpool"
# In OpenAI's files: numbers, no parameters.
NUMBERS = ("input_resolution", "context_length", "vocab_size")
IGNORE = (*(f"^{n}$" for n in NUMBERS), r"attn_mask$")
_BLOCK = "transformer.resblocks."


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of such a CLIP, or None for any other checkpoint.

  Raises:
    InputError: a value of open_clip's config that we cannot follow, or that
      contradicts the tensors.
  """
  shapes = checkpoint.shapes
  if checkpoint.config.get("model_type") is not None:
    return None
  prefix = "text." if "text.token_embedding.weight" in shapes else ""
  has_vit = "visual.class_embedding" in shapes
  wanted = {
    "visual.conv1.weight",
    "visual.positional_embedding"
    if has_vit
    else f"{POOL}.positional_embedding",
    f"{prefix}token_embedding.weight",
    f"{prefix}text_projection",
    "logit_scale",
  }
  # With a decoder of text it is a CoCa.
  if wanted - set(shapes) or any(n.startswith("text_decoder.") for n in shapes):
    return None
  said = open_clip_config.read(checkpoint.config)
  act = _act(checkpoint, said)
  image, pixels, rules = (vit if has_vit else _resnet)(shapes, said, act)
  tower, length, text_rules = text(shapes, prefix, said, act)
  embed = shapes[f"{prefix}text_projection"][1]
  open_clip_config.agree(said, "embed_dim", embed)
  model: dict[str, Any] = dict(
    name="dual_encoder",
    image=image,
    text=tower,
    embed_dim=embed,
    # The ResNet's pool leads to the joint width itself.
    projected="both" if has_vit else "text",
  )
  rules = [
    *rename.under("image/", "visual.", rules),
    *rename.under("text/", prefix, text_rules),
    Rule("text_projection/kernel", f"{prefix}text_projection"),
    scalar("log_t", "logit_scale", shapes),
  ]
  if has_vit:
    rules.append(Rule("image_projection/kernel", "visual.proj"))
  if "logit_bias" in shapes:
    model["bias_init"] = -10.0
    rules.append(scalar("b", "logit_bias", shapes))
  channels = shapes["visual.conv1.weight"][1]
  return Recipe(
    table="openai_clip",
    model=model,
    inputs={
      "image": ((1, *pixels, channels), "float32"),
      "text": ((1, length), "int32"),
    },
    rules=rules,
    # What was decided stays with what is written.
    config=checkpoint.config or {"quick_gelu": act == "quick_gelu"},
    ignore=IGNORE,
    **open_clip_front.fields(checkpoint, pixels, length, tower["vocab_size"]),
    keep=(residual.BUFFERS,),
  )


def _act(checkpoint: Checkpoint, said: open_clip_config.Said | None) -> str:
  if said is not None:
    return said.act
  if "quick_gelu" in checkpoint.config:
    return "quick_gelu" if checkpoint.config["quick_gelu"] else "gelu_exact"
  if not any(n in checkpoint.tensors for n in NUMBERS):
    logging.getLogger(__name__).warning(
      "weights path = %r: no config says which GELU it has; taken for OpenAI's "
      "own, which have quick GELU. If open_clip trained it, put its "
      "open_clip_config.json beside it, or a config.json with "
      '{"quick_gelu": false}.',
      str(checkpoint.path),
    )
  return "quick_gelu"


def scalar(ours: str, theirs: str, shapes: Mapping[str, Any]) -> Rule:
  """Returns the rule of a number, which may be written [] or [1]."""
  return Rule(ours, theirs, rename.reshape((), shapes[theirs]))


def _side(count: int) -> int:
  """Returns the rows of a square of so many positions."""
  side = math.isqrt(count)
  if side * side != count:
    raise errors.InputError(
      f"the {count} positions of the image tower are no square, and no config "
      "says how many rows they have; put open_clip_config.json with "
      "vision_cfg.image_size = [rows, columns] beside the weights."
    )
  return side


def _depth(shapes: Mapping[str, Any], prefix: str) -> int:
  pattern = re.compile(re.escape(f"{prefix}{_BLOCK}") + r"\d+\.ln_1\.weight")
  return sum(pattern.fullmatch(n) is not None for n in shapes)


def _layers(heads: int, width: int) -> list[Rule]:
  """Returns the rules of the blocks of a tower."""
  ours, theirs = "encoder/blocks", f"{_BLOCK}{{n}}."
  return [
    *hub.norm(f"{ours}/norm1", f"{theirs}ln_1"),
    *hub.norm(f"{ours}/norm2", f"{theirs}ln_2"),
    *hub.packed_attention(f"{ours}/attention", f"{theirs}attn", heads, width),
    *hub.linear(f"{ours}/mlp/up", f"{theirs}mlp.c_fc"),
    *hub.linear(f"{ours}/mlp/down", f"{theirs}mlp.c_proj"),
  ]


def _sizes(
  shapes: Mapping[str, Any], prefix: str, width: int, heads: int, act: str
) -> dict[str, Any]:
  """Returns the keywords that both Transformers have."""
  if heads < 1 or width % heads:
    raise errors.InputError(
      f"{prefix or 'text'} tower: {heads} heads do not divide its width of "
      f"{width}; without open_clip_config.json there is one for each "
      f"{HEAD_WIDTH} channels, as in OpenAI's models."
    )
  up = f"{prefix}{_BLOCK}0.mlp.c_fc.weight"
  return dict(
    width=width,
    depth=_depth(shapes, prefix),
    heads=heads,
    mlp=shapes[up][0] if up in shapes else 4 * width,
    act=act,
    epsilon=1e-5,
  )


def vit(
  shapes: Mapping[str, Any], said: open_clip_config.Said | None, act: str
) -> tuple[dict[str, Any], tuple[int, int], list[Rule]]:
  """Returns keywords, pixels and rules of a ViT."""
  width, _, _, patch = shapes["visual.conv1.weight"]
  count = shapes["visual.positional_embedding"][0] - 1
  heads, model = width // HEAD_WIDTH, dict(pool="tok", pre_norm=True)
  if said is None:
    side = _side(count)
    pixels = (side * patch, side * patch)
  else:
    heads = width // said.head_width
    pixels, model = said.pixels, dict(said.image_tower)
    if any(n % patch for n in pixels):
      model["crop"] = True
    for field, found in (
      ("width", width),
      ("patch_size", patch),
      ("layers", _depth(shapes, "visual.")),
    ):
      open_clip_config.agree(said, f"vision_cfg.{field}", found)
  grid = (pixels[0] // patch, pixels[1] // patch)
  rules = [
    Rule("cls", "class_embedding", rename.reshape((1, width), (width,))),
    *hub.positions("positional_embedding", grid, width),
    Rule("embedding/kernel", "conv1.weight", CONV2D),
    *(hub.norm("pre_norm", "ln_pre") if model["pre_norm"] else ()),
    *_layers(heads, width),
    *hub.norm("norm", "ln_post"),
  ]
  if "layer_scale" in model:
    rules += [
      Rule(f"encoder/blocks/layer_scale{i}", f"{_BLOCK}{{n}}.ls_{i}.gamma")
      for i in (1, 2)
    ]
  sizes = _sizes(shapes, "visual.", width, heads, act)
  if said is not None:
    sizes["epsilon"] = said.image_epsilon
  return (
    dict(
      name="vit",
      **sizes,
      patch=patch,
      patch_bias=False,
      **model,
    ),
    pixels,
    rules,
  )


def _resnet(
  shapes: Mapping[str, Any], said: open_clip_config.Said | None, act: str
) -> tuple[dict[str, Any], tuple[int, int], list[Rule]]:
  """Returns keywords, pixels and rules of a ResNet."""
  del act  # of the text tower; this one has ReLU
  depths = residual.torch_depths(sorted(shapes), "visual.")
  stem = shapes["visual.conv3.weight"][0]
  count, width = shapes[f"{POOL}.positional_embedding"]
  heads = width // HEAD_WIDTH
  if said is None:
    side = _side(count - 1)
    pixels, grid = (side * STRIDE, side * STRIDE), (side, side)
  else:
    heads = width // said.head_width
    pixels = said.pixels
    grid = (pixels[0] // STRIDE, pixels[1] // STRIDE)
    open_clip_config.agree(said, "vision_cfg.width", stem)
    open_clip_config.agree(said, "vision_cfg.layers", depths)
  rules = []
  for i in (1, 2, 3):
    rules += residual.conv(f"stem{i}", f"conv{i}")
    rules += residual.batch_norm(f"stem_norm{i}", f"bn{i}")
  rules += residual.stages(
    depths,
    lambda i: f"layer{i + 1}.{{n}}.",
    *residual.torch_parts(3),
  )
  rules += rename.under(
    "pool/",
    "attnpool.",
    [
      *hub.positions("positional_embedding", grid, width),
      *hub.attention(
        "attention", ["q_proj", "k_proj", "v_proj"], "c_proj", heads
      ),
    ],
  )
  return (
    dict(
      name="clip_resnet",
      depths=depths,
      stem=stem,
      width=shapes[f"{POOL}.c_proj.weight"][0],
      heads=heads,
    ),
    pixels,
    rules,
  )


def text(
  shapes: Mapping[str, Any],
  prefix: str,
  said: open_clip_config.Said | None,
  act: str,
) -> tuple[dict[str, Any], int, list[Rule]]:
  """Returns keywords, length and rules of the text tower."""
  vocab, width = shapes[f"{prefix}token_embedding.weight"]
  length = shapes[f"{prefix}positional_embedding"][0]
  heads, pooled = width // HEAD_WIDTH, dict(causal=True, pool="eot")
  if said is not None:
    heads, pooled = said.text_heads, said.text_pool
    for field, found in (
      ("vocab_size", vocab),
      ("width", width),
      ("context_length", length),
      ("layers", _depth(shapes, prefix)),
    ):
      open_clip_config.agree(said, f"text_cfg.{field}", found)
  sizes = _sizes(shapes, prefix, width, heads, act)
  if said is not None:
    sizes["epsilon"] = said.text_epsilon
  return (
    dict(
      name="text_encoder",
      **sizes,
      vocab_size=vocab,
      length=length,
      # Padding comes after the token that is read, which never sees it.
      mask_pad=False,
      **pooled,
    ),
    length,
    [
      Rule("embedding/table", "token_embedding.weight"),
      Rule("posemb/table", "positional_embedding"),
      *_layers(heads, width),
      *hub.norm("norm", "ln_final"),
    ],
  )
