"""dalle-mini and its mega (model_type "dallebart"), Flax's `.msgpack`.

Layers are stacked [L ...] under `FlaxBartEncoderLayers` and
`FlaxBartDecoderLayers`, or are tensors each, `FlaxBartEncoderLayer_0`, ... of
models that were trained without a scan; kernels are [in out]. Norms, dense
layers and attentions of a layer are counted, each kind by itself.

Of the variants that a config can say, those are known that keep norms before
their branches: NormFormer (as published), CogView, plain; LayerNorm or RMSNorm,
with or without gates and biases. The id that begins an image is the one after
its own unless `decoder_start_token_id` says another.
"""

from collections.abc import Mapping, Sequence
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
  use_bias=False,
  use_glu=True,
  use_scan=True,
  ln_type="layernorm",
  ln_positions="normformer",
  force_ln_scale=False,
  use_final_ln_encoder=True,
)
FIXED = dict(
  use_head_scale=False,
  use_cosine_attention=False,
  use_absolute_position_embeddings=True,
  use_swin_position_embeddings=False,
  use_deepnet_scaling=False,
  use_alibi=False,
  sinkhorn_iters=1,
  use_final_ln_decoder=True,
  tie_word_embeddings=False,
)
# Their name of a norm -> ours, and the class that names its parameters.
NORMS = {"layernorm": ("layer", "LayerNorm"), "rmsnorm": ("rms", "RMSNorm")}
# Places of norms -> which of ours follow an attention's, and those of an MLP.
AFTER_ATTENTION = {"normformer": True, "preln": False, "cogview": True}
OF_MLP = {
  "normformer": ("norm2", "mlp/norm"),
  "preln": ("norm2",),
  "cogview": ("norm2", "norm2_after"),
}


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a dalle-mini, or None for any other checkpoint.

  Raises:
    InputError: a config value that we cannot follow.
  """
  found = checkpoint.config
  if found.get("model_type") not in MODEL_TYPES:
    return None
  hub.fixed(found, FIXED)
  given = {k: v for k, v in found.items() if v is not None}
  config: dict[str, Any] = {**DEFAULTS, **given}
  for side in ("encoder", "decoder"):
    names = (f"{side}_attention_heads", "d_model")
    hub.check_heads(config[names[0]], config["d_model"], names)
  for name, known in (("ln_type", NORMS), ("ln_positions", OF_MLP)):
    if config[name] not in known:
      raise errors.unknown(f"config.json {name}", config[name], known)
  vocab = config["image_vocab_size"]
  start = config.get("decoder_start_token_id", vocab)
  if not 0 <= start <= vocab:
    raise errors.InputError(
      f"config.json decoder_start_token_id = {start}: ids of images end with "
      f"the one after their own, image_vocab_size = {vocab}; one of them is "
      "wrong."
    )
  return Recipe(
    table="dalle_mini",
    model=dict(
      name="dalle_mini",
      vocab_size=config["encoder_vocab_size"],
      image_vocab_size=vocab,
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
      gated=config["use_glu"],
      bias=config["use_bias"],
      norm=NORMS[config["ln_type"]][0],
      norms=config["ln_positions"],
      norm_scale=config["force_ln_scale"],
      last_norm=config["use_final_ln_encoder"],
      scale_embedding=config["scale_embedding"],
    ),
    inputs={"tokens": ((1, 1), "int32"), "decoder_tokens": ((1, 1), "int32")},
    rules=[
      *_side("encoder", config, ("attention",)),
      *_side("decoder", config, ("attention", "cross")),
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
  layer = f"{theirs}/layers/FlaxBart{name.capitalize()}Layer"
  block = f"{layer}s" if config["use_scan"] else f"{layer}_{{n}}"
  found = [
    Rule(f"{name}_embedding/table", f"{theirs}/embed_tokens/embedding"),
    Rule(f"{name}_places/table", f"{theirs}/embed_positions/embedding"),
    *_norm(f"{name}_norm", f"{theirs}/layernorm_embedding", config, True),
  ]
  if name == "decoder" or config["use_final_ln_encoder"]:
    found += _norm(f"{name}_final_norm", f"{theirs}/final_ln", config, False)
  rules, norms = [], []
  for i, ours in enumerate(attentions):
    norm = "norm_cross" if ours == "cross" else "norm1"
    after = AFTER_ATTENTION[config["ln_positions"]]
    norms += [norm, f"{norm}_after"] if after else [norm]
    rules += _attention(ours, f"FlaxBartAttention_{i}", config, name)
  rules += _norms(norms, "", config)
  rules += _mlp(config)
  return found + rename.under(f"{name}/blocks/", f"{block}/", rules)


def _norm(
  ours: str, theirs: str, config: Mapping[str, Any], scaled: bool
) -> list[Rule]:
  """Returns the rules of a norm; before a dense layer few have a scale."""
  leaves = ["bias"] if config["ln_type"] == "layernorm" else []
  leaves += ["scale"] if scaled or config["force_ln_scale"] else []
  return [Rule(f"{ours}/{x}", f"{theirs}/{x}") for x in leaves]


def _norms(
  names: Sequence[str], theirs: str, config: Mapping[str, Any]
) -> list[Rule]:
  """Returns the rules of norms of ours as they follow in a module of theirs."""
  kind = NORMS[config["ln_type"]][1]
  rules = []
  for i, ours in enumerate(names):
    rules += _norm(ours, f"{theirs}{kind}_{i}", config, ours.endswith("_after"))
  return rules


def _mlp(config: Mapping[str, Any]) -> list[Rule]:
  """Returns the rules of an MLP and its norms."""
  gated = config["use_glu"]
  theirs = "GLU_0/" if gated else "FFN_0/"
  rules = _norms(OF_MLP[config["ln_positions"]], theirs, config)
  for i, ours in enumerate(("gate", "up", "down") if gated else ("up", "down")):
    rules += [
      Rule(f"mlp/{ours}/{leaf}", f"{theirs}Dense_{i}/{leaf}")
      for leaf in _leaves(config)
    ]
  return rules


def _attention(
  ours: str, theirs: str, config: Mapping[str, Any], side: str
) -> list[Rule]:
  """Returns the rules of an attention of a side; theirs has flat heads."""
  width, heads = config["d_model"], config[f"{side}_attention_heads"]
  split = (heads, width // heads)
  stack = (config[f"{side}_layers"],) if config["use_scan"] else ()

  def op(before: tuple[int, ...], flat: tuple[int, ...]) -> rename.Op:
    return rename.reshape((*stack, *before), (*stack, *flat))

  rules = []
  for name, letter in (("query", "q"), ("key", "k"), ("value", "v")):
    into = {
      "kernel": op((width, *split), (width, width)),
      "bias": op(split, (width,)),
    }
    rules += [
      Rule(f"{ours}/{name}/{x}", f"{theirs}/{letter}_proj/{x}", into[x])
      for x in _leaves(config)
    ]
  out = {"kernel": op((*split, width), (width, width)), "bias": rename.SAME}
  return rules + [
    Rule(f"{ours}/out/{x}", f"{theirs}/out_proj/{x}", out[x])
    for x in _leaves(config)
  ]


def _leaves(config: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the parameters of a dense layer."""
  return ("kernel", "bias") if config["use_bias"] else ("kernel",)
