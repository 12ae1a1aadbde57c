"""SigLIP and fixed-size SigLIP 2, in the hub's layout (model_type "siglip").

"Sigmoid loss for language image pre-training", Zhai et al. 2023. Texts are
padded to full length, 64 tokens: the last one is read, and nothing is masked.
"""

from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import hub

MODEL_TYPES = ("siglip",)

# What files may leave out; those of the base size leave out nearly all.
IMAGE = dict(
  hidden_size=768,
  intermediate_size=3072,
  num_hidden_layers=12,
  num_attention_heads=12,
  num_channels=3,
  image_size=224,
  patch_size=16,
  hidden_act="gelu_pytorch_tanh",
  layer_norm_eps=1e-6,
  vision_use_head=True,
)
TEXT = dict(
  vocab_size=32000,
  hidden_size=768,
  intermediate_size=3072,
  num_hidden_layers=12,
  num_attention_heads=12,
  max_position_embeddings=64,
  hidden_act="gelu_pytorch_tanh",
  layer_norm_eps=1e-6,
)


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a SigLIP, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow.
  """
  config = checkpoint.config
  if config.get("model_type") not in MODEL_TYPES:
    return None
  image = hub.part(config, "vision_config", IMAGE)
  text = hub.part(config, "text_config", TEXT)
  if not image["vision_use_head"]:
    raise errors.InputError(
      "config.json vision_config.vision_use_head = False: without its pooling "
      "head the image encoder has no embedding to compare with a text's."
    )
  length = text["max_position_embeddings"]
  scalar = rename.reshape((), (1,))
  return Recipe(
    table="siglip",
    model=dict(
      name="dual_encoder",
      image=dict(
        name="vit",
        **hub.sizes(image, "vision_config", patches=True),
        pool="map",
      ),
      text=dict(
        name="text_encoder",
        **hub.sizes(text, "text_config"),
        vocab_size=text["vocab_size"],
        length=length,
        pool="last",
        mask_pad=False,
      ),
      # Where the sizes of the two differ, the text's head makes up for it.
      embed_dim=text.get("projection_size") or text["hidden_size"],
      projected="text",
      projection_bias=True,
      temperature_init=10.0,
      bias_init=-10.0,
    ),
    inputs={
      "image": hub.image_input(image),
      "text": ((1, length), "int32"),
    },
    rules=[
      *rename.under("image/", "vision_model.", _image(image)),
      *rename.under(
        "text/", "text_model.", hub.clip_text(text["num_attention_heads"])
      ),
      *hub.linear("text_projection", "text_model.head"),
      Rule("log_t", "logit_scale", scalar),
      Rule("b", "logit_bias", scalar),
    ],
    config=config,
    texts={"text": length},
    ignore=(r"\.position_ids$",),
  )


def _image(config: Mapping[str, Any]) -> list[Rule]:
  width, heads = config["hidden_size"], config["num_attention_heads"]
  return [
    *hub.positions(
      "embeddings.position_embedding.weight",
      hub.grid(config),
      width,
      extra=0,
    ),
    Rule(
      "embedding/kernel", "embeddings.patch_embedding.weight", rename.CONV2D
    ),
    Rule("embedding/bias", "embeddings.patch_embedding.bias"),
    *hub.clip_layers(heads),
    *hub.norm("norm", "post_layernorm"),
    Rule("pool/probe", "head.probe", rename.reshape((1, width), (1, 1, width))),
    *hub.packed_attention("pool/attention", "head.attention", heads, width),
    *hub.norm("pool/norm", "head.layernorm"),
    *hub.linear("pool/mlp/up", "head.mlp.fc1"),
    *hub.linear("pool/mlp/down", "head.mlp.fc2"),
  ]
