"""dalle-mini and its mega (model_type "dallebart"), Flax's `.msgpack`.

Layers are stacked [L ...] under `FlaxBartEncoderLayers` and
`FlaxBartDecoderLayers`; kernels are [in out]. Of the variants that its config
can say, the one of the published models is known: norms of NormFormer, gated
linear units, no biases, a norm at both ends.
"""

from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import hub

MODEL_TYPES = ("dallebart",)

# What files may leave out.
DEFAULTS = dict(
  encoder_vocab_size=50264,
  image_vocab_size=16384,
  image_length=256,
  max_text_length=64,
  encoder_layers=12,
  encoder_ffn_dim=4096,
  encoder_attention_heads=16,
  decoder_layers=12,
  decoder_ffn_dim=4096,
  decoder_attention_heads=16,
  activation_function="gelu",
  d_model=1024,
  scale_embedding=False,
)
FIXED = dict(
  use_bias=False,
  ln_type="layernorm",
  ln_positions="normformer",
  use_head_scale=False,
  use_cosine_attention=False,
  use_absolute_position_embeddings=True,
  use_swin_position_embeddings=False,
  use_deepnet_scaling=False,
  use_subln_init=False,
  use_glu=True,
  use_alibi=False,
  sinkhorn_iters=1,
  use_final_ln_encoder=True,
  use_final_ln_decoder=True,
  force_ln_scale=False,
  use_scan=True,
  tie_word_embeddings=False,
)


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a dalle-mini, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow.
  """
  found = checkpoint.config
  if found.get("model_type") not in MODEL_TYPES:
    return None
  hub.fixed(found, FIXED)
  config: dict[str, Any] = {**DEFAULTS, **found}
  for side in ("encoder", "decoder"):
    names = (f"{side}_attention_heads", "d_model")
    hub.check_heads(config[names[0]], config["d_model"], names)
  start, vocab = config.get("decoder_start_token_id"), "image_vocab_size"
  if start is not None and start != config[vocab]:
    raise errors.InputError(
      f"config.json decoder_start_token_id = {start}: an image begins with the "
      f"id after its own, {vocab} = {config[vocab]}; one of them is wrong."
    )
  return Recipe(
    table="dalle_mini",
    model=dict(
      name="dalle_mini",
      vocab_size=config["encoder_vocab_size"],
      image_vocab_size=config[vocab],
      width=config["d_model"],
      depth=config["encoder_layers"],
      decoder_depth=config["decoder_layers"],
      heads=config["encoder_attention_heads"],
      decoder_heads=config["decoder_attention_heads"],
      mlp=config["encoder_ffn_dim"],
      decoder_mlp=config["decoder_ffn_dim"],
      text_length=config["max_text_length"],
      length=config["image_length"],
      act=hub.act(config, field="activation_function"),
      scale_embedding=config["scale_embedding"],
    ),
    inputs={"tokens": ((1, 1), "int32"), "decoder_tokens": ((1, 1), "int32")},
    rules=[
      *_side("encoder", config, ("",)),
      *_side("decoder", config, ("", "cross")),
      Rule("head/kernel", "lm_head/kernel"),
    ],
    config=found,
    texts={"tokens": config["max_text_length"]},
  )


def _side(
  name: str, config: Mapping[str, Any], attentions: tuple[str, ...]
) -> list[Rule]:
  """Returns the rules of the encoder or the decoder."""
  theirs = f"model/{name}"
  blocks = f"{theirs}/layers/FlaxBart{name.capitalize()}Layers"
  width, heads = config["d_model"], config[f"{name}_attention_heads"]
  depth, size = config[f"{name}_layers"], width // heads
  whole = (depth, width, width)
  to = rename.reshape((depth, width, heads, size), whole)
  back = rename.reshape((depth, heads, size, width), whole)
  ours = f"{name}/blocks"
  found = [
    Rule(f"{name}_embedding/table", f"{theirs}/embed_tokens/embedding"),
    Rule(f"{name}_places/table", f"{theirs}/embed_positions/embedding"),
    Rule(f"{name}_norm/scale", f"{theirs}/layernorm_embedding/scale"),
    Rule(f"{name}_norm/bias", f"{theirs}/layernorm_embedding/bias"),
    Rule(f"{name}_final_norm/bias", f"{theirs}/final_ln/bias"),
    Rule(f"{ours}/norm2/bias", f"{blocks}/GLU_0/LayerNorm_0/bias"),
    Rule(f"{ours}/mlp/gate/kernel", f"{blocks}/GLU_0/Dense_0/kernel"),
    Rule(f"{ours}/mlp/up/kernel", f"{blocks}/GLU_0/Dense_1/kernel"),
    Rule(f"{ours}/mlp/norm/bias", f"{blocks}/GLU_0/LayerNorm_1/bias"),
    Rule(f"{ours}/mlp/down/kernel", f"{blocks}/GLU_0/Dense_2/kernel"),
  ]
  for i, kind in enumerate(attentions):
    norm = "norm_cross" if kind else "norm1"
    before, after = f"{blocks}/LayerNorm_{2 * i}", f"LayerNorm_{2 * i + 1}"
    projections = f"{blocks}/FlaxBartAttention_{i}"
    found += [
      Rule(f"{ours}/{norm}/bias", f"{before}/bias"),
      Rule(f"{ours}/{norm}_after/scale", f"{blocks}/{after}/scale"),
      Rule(f"{ours}/{norm}_after/bias", f"{blocks}/{after}/bias"),
      *(
        Rule(
          f"{ours}/{kind or 'attention'}/{x}/kernel",
          f"{projections}/{y}_proj/kernel",
          back if x == "out" else to,
        )
        for x, y in (
          ("query", "q"),
          ("key", "k"),
          ("value", "v"),
          ("out", "out"),
        )
      ),
    ]
  return found
