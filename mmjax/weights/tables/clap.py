"""CLAP of the model hub (model_type "clap"), fused or not.

An audio or text encoder alone ("clap_audio_model", "clap_text_model") may have
its projection. "Large-scale contrastive language-audio pretraining with
feature fusion and keyword-to-caption augmentation", Wu et al. 2023.

Where no mask is given padding is masked, as the reference's processor does.
"""

from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.weights import audio_front, recipe, rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import bert_layers, hub, residual

# What files may leave out.
AUDIO = dict(
  window_size=8,
  num_mel_bins=64,
  spec_size=256,
  hidden_act="gelu",
  patch_size=4,
  patch_stride=[4, 4],
  projection_dim=512,
  depths=[2, 2, 6, 2],
  num_attention_heads=[4, 8, 16, 32],
  enable_fusion=False,
  fusion_type=None,
  patch_embeds_hidden_size=96,
  enable_patch_layer_norm=True,
  qkv_bias=True,
  mlp_ratio=4.0,
  aff_block_r=4,
  projection_hidden_act="relu",
  layer_norm_eps=1e-5,
)
TEXT = dict(
  vocab_size=50265,
  hidden_size=768,
  num_hidden_layers=12,
  num_attention_heads=12,
  intermediate_size=3072,
  hidden_act="gelu",
  max_position_embeddings=514,
  type_vocab_size=1,
  layer_norm_eps=1e-12,
  projection_dim=512,
  pad_token_id=1,
  projection_hidden_act="relu",
)
BOTH = dict(projection_dim=512, projection_hidden_act="relu")
# Other values have other layers, or none at all, in the reference.
FIXED = dict(flatten_patch_embeds=True, patch_embed_input_channels=1)
# Buffers, which the reference misses where a file has none.
KEEP = (
  r"(position_ids|token_type_ids|relative_position_index)$",
  residual.BUFFERS,
)
FRAMES = 1001  # of ten seconds
LONGEST = 77  # tokens of a text in training


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a CLAP, or None for any other checkpoint.

  Raises:
    InputError: a config value or front end that we cannot follow.
  """
  said = checkpoint.config
  kind = said.get("model_type")
  if kind == "clap_audio_model":
    audio = recipe.Config({**AUDIO, **said}, checkpoint.path)
    return _alone(checkpoint, audio, "audio")
  if kind == "clap_text_model":
    text = recipe.Config({**TEXT, **said}, checkpoint.path)
    return _alone(checkpoint, text, "text")
  if kind != "clap":
    return None
  config = {**BOTH, **said}
  audio = hub.part(config, "audio_config", AUDIO)
  text = hub.part(config, "text_config", TEXT)
  act = hub.act(config, field="projection_hidden_act")
  audio_model = _audio_model(audio, "audio_config")
  inputs, missing = _audio_inputs(audio)
  longest = _longest(text, "text_config")
  return Recipe(
    table="clap",
    model=dict(
      name="clap",
      audio=audio_model,
      text=_text_model(text, "text_config"),
      embed_dim=config["projection_dim"],
      act=act,
    ),
    inputs={**inputs, "text": ((1, longest), "int32")},
    rules=[
      *rename.under("audio/", "audio_model.audio_encoder.", _audio(audio)),
      *rename.under("text/", "text_model.", _text(text)),
      *_projection("audio_projection", "audio_projection"),
      *_projection("text_projection", "text_projection"),
      Rule("log_t_audio", "logit_scale_a"),
      Rule("log_t_text", "logit_scale_t"),
    ],
    config=said,
    preprocess=_prepared(checkpoint, audio),
    missing=missing,
    texts={"text": longest},
    keep=KEEP,
  )


def _alone(
  checkpoint: Checkpoint, config: Mapping[str, Any], side: str
) -> Recipe:
  """Returns the recipe of one encoder, with or without its projection."""
  inputs: dict[str, Any] = {}
  missing: dict[str, str] = {}
  preprocess: dict[str, str] = {}
  texts: dict[str, int] = {}
  if side == "audio":
    model, rules = _audio_model(config), _audio(config)
    inputs, missing = _audio_inputs(config)
    preprocess = _prepared(checkpoint, config)
    inner = "audio_encoder."
  else:
    model, rules = _text_model(config), _text(config)
    texts = {"tokens": _longest(config)}
    inputs = {"tokens": ((1, texts["tokens"]), "int32")}
    inner = ""
  prefix = hub.prefix(checkpoint, f"{side}_model.") + inner
  rules = rename.under("", prefix, rules)
  if f"{side}_projection.linear1.weight" in checkpoint.shapes:
    model = dict(
      name="projected",
      encoder=model,
      embed_dim=config["projection_dim"],
      use_bias=True,
      act=hub.act(config, field="projection_hidden_act"),
    )
    rules = rename.under("encoder/", "", rules)
    rules += _projection("projection", f"{side}_projection")
  return Recipe(
    table="clap",
    model=model,
    inputs=inputs,
    rules=rules,
    config=checkpoint.config,
    preprocess=preprocess,
    missing=missing,
    texts=texts,
    keep=KEEP,
  )


def _audio_model(config: Mapping[str, Any], part: str = "") -> dict[str, Any]:
  hub.fixed(config, FIXED, part)
  # All other types are one in the reference.
  if config["enable_fusion"] and config["fusion_type"] == "channel_map":
    where = f"{part}.fusion_type" if part else "fusion_type"
    raise errors.InputError(
      f"config.json {where} = 'channel_map': the reference cannot compute it "
      "either; null and 'aff_2d' are what released models have."
    )
  return dict(
    name="htsat",
    width=config["patch_embeds_hidden_size"],
    depths=tuple(config["depths"]),
    heads=tuple(config["num_attention_heads"]),
    mlp_ratio=config["mlp_ratio"],
    bins=config["num_mel_bins"],
    side=config["spec_size"],
    patch=_number(config, "patch_size", part),
    stride=_number(config, "patch_stride", part),
    window=config["window_size"],
    fused=config["enable_fusion"],
    reduction=config["aff_block_r"],
    patch_norm=config["enable_patch_layer_norm"],
    qkv_bias=config["qkv_bias"],
    act=hub.act(config, part),
    epsilon=config["layer_norm_eps"],
  )


def _number(config: Mapping[str, Any], name: str, part: str) -> int:
  """Returns a size, which may stand there once or for rows and columns."""
  value = config[name]
  sizes = {value} if isinstance(value, int) else set(value)
  if len(sizes) != 1:
    where = f"{part}.{name}" if part else name
    raise errors.InputError(
      f"config.json {where} = {value!r}: mmjax follows squares only."
    )
  return sizes.pop()


def _audio_inputs(
  config: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, str]]:
  """Returns what the audio encoder takes, and what has no spec of its own."""
  bins, side = config["num_mel_bins"], config["spec_size"]
  shape = (min(FRAMES, side * (side // bins)), bins)
  if not config["enable_fusion"]:
    return {"audio": ((1, *shape), "float32")}, {}
  return (
    {"audio": ((1, 4, *shape), "float32"), "is_longer": ((1,), "bool")},
    {"is_longer": "audio's spec gives it too; prepare audio."},
  )


def _prepared(
  checkpoint: Checkpoint, config: Mapping[str, Any]
) -> dict[str, str]:
  """Returns the spec of the front end, if there is one and it fits."""
  spec = audio_front.audio_spec(checkpoint.preprocessor)
  said = checkpoint.preprocessor
  said = said.get("feature_extractor", said)
  fused = said.get("truncation", "fusion") == "fusion"
  for field, given, fits in (
    ("enable_fusion", "truncation", fused == config["enable_fusion"]),
    (
      "num_mel_bins",
      "feature_size",
      said.get("feature_size", 64) == config["num_mel_bins"],
    ),
  ):
    if spec and not fits:
      raise errors.InputError(
        f"preprocessor_config.json {given} = {said.get(given)!r}, but "
        f"config.json {field} = {config[field]!r}; one of them is of another "
        "model."
      )
  return spec


def _text_model(config: Mapping[str, Any], part: str = "") -> dict[str, Any]:
  pad = config["pad_token_id"]
  if not isinstance(pad, int):
    where = f"{part}.pad_token_id" if part else "pad_token_id"
    raise errors.InputError(
      f"config.json {where} = {pad!r}: positions count tokens that are no "
      "padding; give its id, 1 in released models."
    )
  return dict(
    name="bert",
    **hub.sizes(config, part),
    vocab_size=config["vocab_size"],
    length=config["max_position_embeddings"],
    types=config["type_vocab_size"],
    offset=pad,
    pad_id=pad,
    pool="pooler",
  )


def _longest(config: Mapping[str, Any], part: str = "") -> int:
  pad = _text_model(config, part)["offset"]
  return min(LONGEST, config["max_position_embeddings"] - pad - 1)


def _text(config: Mapping[str, Any]) -> list[Rule]:
  heads = config["num_attention_heads"]
  return [
    *bert_layers.embeddings("embed", "embeddings"),
    *bert_layers.layers("encoder", "encoder.layer.{n}", heads),
    *hub.linear("pooler/dense", "pooler.dense"),
  ]


def _projection(ours: str, theirs: str) -> list[Rule]:
  return [
    *hub.linear(f"{ours}/up", f"{theirs}.linear1"),
    *hub.linear(f"{ours}/down", f"{theirs}.linear2"),
  ]


def _audio(config: Mapping[str, Any]) -> list[Rule]:
  """Returns the rules of HTS-AT."""
  rules = [
    *residual.batch_norm("mel_norm", "batch_norm"),
    *_convolution("embedding", "patch_embed.proj"),
    *hub.norm("norm", "norm"),
  ]
  if config["enable_patch_layer_norm"]:
    rules += hub.norm("embedding_norm", "patch_embed.norm")
  if config["enable_fusion"]:
    rules += _convolution("part_embedding", "patch_embed.mel_conv2d")
    # Their "global" begins with an average, without parameters.
    for ours, theirs, first in (
      ("near", "local_att", 0),
      ("far", "global_att", 1),
    ):
      for i in (1, 2):
        at = first + 3 * (i - 1)
        place = f"patch_embed.fusion_model.{theirs}"
        rules += _point(f"fusion/{ours}_dense{i}", f"{place}.{at}")
        rules += residual.batch_norm(
          f"fusion/{ours}_norm{i}", f"{place}.{at + 1}"
        )
  stages = list(config["num_attention_heads"])
  for i, heads in enumerate(stages):
    ours, theirs = f"stage{i}/blocks", f"layers.{i}.blocks.{{n}}"
    own = f"{theirs}.attention.self"
    attention = hub.attention(
      f"{ours}/window/attention",
      [f"{own}.{x}" for x in ("query", "key", "value")],
      f"{theirs}.attention.output.dense",
      heads,
    )
    if not config["qkv_bias"]:
      attention = [
        rule
        for rule in attention
        if not rule.ours.endswith("bias") or "/out/" in rule.ours
      ]
    rules += [
      *attention,
      Rule(f"{ours}/window/table", f"{own}.relative_position_bias_table"),
      *hub.norm(f"{ours}/norm1", f"{theirs}.layernorm_before"),
      *hub.norm(f"{ours}/norm2", f"{theirs}.layernorm_after"),
      *hub.linear(f"{ours}/mlp/up", f"{theirs}.intermediate.dense"),
      *hub.linear(f"{ours}/mlp/down", f"{theirs}.output.dense"),
    ]
    if i < len(stages) - 1:
      merge = f"layers.{i}.downsample"
      rules += hub.norm(f"merge{i}/norm", f"{merge}.norm")
      rules += hub.linear(f"merge{i}/dense", f"{merge}.reduction", bias=False)
  return rules


def _convolution(ours: str, theirs: str) -> list[Rule]:
  return [
    Rule(f"{ours}/kernel", f"{theirs}.weight", rename.CONV2D),
    Rule(f"{ours}/bias", f"{theirs}.bias"),
  ]


# A convolution of one pixel [out in 1 1] is a dense layer [in out].
_POINT = rename.Op(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])


def _point(ours: str, theirs: str) -> list[Rule]:
  return [
    Rule(f"{ours}/kernel", f"{theirs}.weight", _POINT),
    Rule(f"{ours}/bias", f"{theirs}.bias"),
  ]
