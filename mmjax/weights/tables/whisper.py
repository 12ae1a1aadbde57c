"""Whisper: the hub's, OpenAI's own files, and CTranslate2's.

The hub's stand under `model.`, or bare; with "encoder." alone it is the audio
encoder. OpenAI's .pt says the sizes in "dims". CTranslate2 packs projections,
and says the heads in scalars of its file (`weights/ctranslate2.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmjax import errors
from mmjax.weights import audio_front, ctranslate2, recipe, rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import hub, whisper_speech

_QUERY, _KEY, _VALUE = "query", "key", "value"
# Names of a block's parts: norms, attention and its projections, MLP.
_HUB = (
  "self_attn_layer_norm",
  "encoder_attn_layer_norm",
  "final_layer_norm",
  "self_attn",
  "encoder_attn",
  ("q_proj", "k_proj", "v_proj", "out_proj"),
  ("fc1", "fc2"),
)
_OPENAI = (
  "attn_ln",
  "cross_attn_ln",
  "mlp_ln",
  "attn",
  "cross_attn",
  ("query", "key", "value", "out"),
  ("mlp.0", "mlp.2"),
)


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a Whisper, or None for any other checkpoint."""
  config = checkpoint.config
  if config.get("model_type") == "whisper":
    return _hub(checkpoint)
  section = config.get(ctranslate2.SECTION)
  if section is not None and section.get("spec") == "WhisperSpec":
    return _ctranslate2(checkpoint, section)
  if "encoder.blocks.0.attn_ln.weight" in checkpoint.tensors:
    return _openai(checkpoint)
  return None


def _hub(checkpoint: Checkpoint) -> Recipe:
  config = recipe.Config(checkpoint.config, checkpoint.path)
  if not config.get("tie_word_embeddings", True):
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: config.json "
      "tie_word_embeddings = False: our Whisper's logits are by the table of "
      "its tokens; tie them."
    )
  names = checkpoint.shapes
  model: dict[str, Any] = dict(
    name="whisper",
    mels=config["num_mel_bins"],
    width=config["d_model"],
    depth=config["encoder_layers"],
    heads=config["encoder_attention_heads"],
    mlp=config["encoder_ffn_dim"],
    audio_length=config["max_source_positions"],
    act=hub.act({"hidden_act": config.get("activation_function", "gelu")}),
  )
  if names and not any("decoder." in name for name in names):
    return _encoder(checkpoint, model)
  model |= dict(
    vocab_size=config["vocab_size"],
    decoder_depth=config["decoder_layers"],
    decoder_heads=config["decoder_attention_heads"],
    decoder_mlp=config["decoder_ffn_dim"],
    length=config["max_target_positions"],
    **whisper_speech.of_hub(checkpoint.generation, config),
  )
  prefix = "model." if any(n.startswith("model.") for n in names) else ""
  if not names:
    prefix = "model."
  rules = [
    *_encoder_rules(f"{prefix}encoder.", model["heads"]),
    *_decoder_rules(f"{prefix}decoder.", model["decoder_heads"]),
  ]
  return _whole(checkpoint, model, rules, (r"^proj_out\.weight$",))


def _encoder(checkpoint: Checkpoint, model: dict[str, Any]) -> Recipe:
  """An encoder without its decoder."""
  prefix = next(
    (
      n.removesuffix("conv1.weight")
      for n in checkpoint.shapes
      if n.endswith("conv1.weight")
    ),
    "encoder.",
  )
  rules = [
    Rule(r.ours.removeprefix("encoder/"), r.theirs, r.op)
    for r in _encoder_rules(prefix, model["heads"])
  ]
  return Recipe(
    table="whisper",
    model={**model, "part": "encoder"},
    inputs={"audio": ((16, model["mels"]), "float32")},
    rules=rules,
    config=checkpoint.config,
    preprocess=audio_front.audio_spec(checkpoint.preprocessor),
  )


def _openai(checkpoint: Checkpoint) -> Recipe:
  dims = recipe.Config(checkpoint.config, checkpoint.path)
  if dims["n_audio_state"] != dims["n_text_state"]:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: n_audio_state = "
      f"{dims['n_audio_state']} and n_text_state = {dims['n_text_state']} must "
      "be one width."
    )
  width = dims["n_audio_state"]
  model = dict(
    name="whisper",
    mels=dims["n_mels"],
    vocab_size=dims["n_vocab"],
    width=width,
    depth=dims["n_audio_layer"],
    heads=dims["n_audio_head"],
    mlp=4 * width,
    decoder_depth=dims["n_text_layer"],
    decoder_heads=dims["n_text_head"],
    audio_length=dims["n_audio_ctx"],
    length=dims["n_text_ctx"],
    **whisper_speech.of_vocabulary(dims["n_vocab"]),
  )
  for part, name in (("encoder", "mlp"), ("decoder", "decoder_mlp")):
    shape = checkpoint.shapes.get(f"{part}.blocks.0.mlp.0.weight")
    if shape is not None:
      model[name] = shape[0]
  rules = [
    *_encoder_rules("encoder.", model["heads"], "blocks", _OPENAI),
    *_decoder_rules("decoder.", model["decoder_heads"], "blocks", _OPENAI),
  ]
  return _whole(checkpoint, model, rules, (r"^decoder\.mask$",))


def _whole(
  checkpoint: Checkpoint,
  model: Mapping[str, Any],
  rules: Sequence[Rule],
  ignore: Sequence[str] = (),
) -> Recipe:
  spec = audio_front.audio_spec(checkpoint.preprocessor)
  if not spec and "model_type" not in checkpoint.config:
    # The other formats have no such file: the features are always the same.
    spec = audio_front.audio_spec(
      dict(
        feature_extractor_type="WhisperFeatureExtractor",
        feature_size=model["mels"],
      )
    )
  return Recipe(
    table="whisper",
    model=model,
    inputs={
      "audio": ((1, 16, model["mels"]), "float32"),
      "decoder_tokens": ((1, 2), "int32"),
    },
    rules=rules,
    config=checkpoint.config,
    preprocess=spec,
    texts={"decoder_tokens": model["length"]},
    ignore=ignore,
  )


def _encoder_rules(
  prefix: str, heads: int, blocks: str = "layers", names: Any = _HUB
) -> list[Rule]:
  last, table = (
    ("layer_norm", "embed_positions.weight")
    if blocks == "layers"
    else ("ln_post", "positional_embedding")
  )
  return [
    *_convolutions(prefix, "."),
    Rule("encoder/posemb", f"{prefix}{table}"),
    *_blocks("encoder", f"{prefix}{blocks}.{{n}}.", heads, names, False),
    *hub.norm("encoder/norm", f"{prefix}{last}"),
  ]


def _decoder_rules(
  prefix: str, heads: int, blocks: str = "layers", names: Any = _HUB
) -> list[Rule]:
  tokens, table, last = (
    ("embed_tokens", "embed_positions.weight", "layer_norm")
    if blocks == "layers"
    else ("token_embedding", "positional_embedding", "ln")
  )
  return [
    Rule("decoder/embedding/table", f"{prefix}{tokens}.weight"),
    Rule("decoder/posemb/table", f"{prefix}{table}"),
    *_blocks("decoder", f"{prefix}{blocks}.{{n}}.", heads, names, True),
    *hub.norm("decoder/norm", f"{prefix}{last}"),
  ]


def _convolutions(prefix: str, dot: str) -> list[Rule]:
  rules = []
  for conv in ("conv1", "conv2"):
    rules += [
      Rule(
        f"encoder/{conv}/kernel", f"{prefix}{conv}{dot}weight", rename.CONV1D
      ),
      Rule(f"encoder/{conv}/bias", f"{prefix}{conv}{dot}bias"),
    ]
  return rules


def _blocks(
  ours: str, theirs: str, heads: int, names: Any, cross: bool
) -> list[Rule]:
  norm1, norm_cross, norm2, attention, memory, parts, mlp = names
  ours = f"{ours}/layers/blocks"
  rules = [
    *hub.norm(f"{ours}/norm1", f"{theirs}{norm1}"),
    *hub.norm(f"{ours}/norm2", f"{theirs}{norm2}"),
    *_attention(f"{ours}/attention", f"{theirs}{attention}", parts, heads),
    *hub.linear(f"{ours}/mlp/up", f"{theirs}{mlp[0]}"),
    *hub.linear(f"{ours}/mlp/down", f"{theirs}{mlp[1]}"),
  ]
  if cross:
    rules += [
      *hub.norm(f"{ours}/norm_cross", f"{theirs}{norm_cross}"),
      *_attention(f"{ours}/cross", f"{theirs}{memory}", parts, heads),
    ]
  return rules


def _attention(
  ours: str, theirs: str, parts: Sequence[str], heads: int
) -> list[Rule]:
  """Four projections, of which that to keys has no bias."""
  op = rename.to_heads(heads)
  *qkv, out = parts
  rules = []
  for name, part in zip((_QUERY, _KEY, _VALUE), qkv, strict=True):
    rules.append(Rule(f"{ours}/{name}/kernel", f"{theirs}.{part}.weight", op))
    if name != _KEY:
      rules.append(Rule(f"{ours}/{name}/bias", f"{theirs}.{part}.bias", op))
  return [
    *rules,
    Rule(
      f"{ours}/out/kernel", f"{theirs}.{out}.weight", rename.from_heads(heads)
    ),
    Rule(f"{ours}/out/bias", f"{theirs}.{out}.bias"),
  ]


def _ctranslate2(checkpoint: Checkpoint, section: Mapping[str, Any]) -> Recipe:
  shapes, scalars = checkpoint.shapes, section["scalars"]
  for name, wanted in whisper_speech.SCALARS.items():
    if scalars.get(name, wanted) != wanted:
      raise errors.InputError(
        f"weights path = {str(checkpoint.path)!r}: {name} = {scalars[name]!r}: "
        f"our Whisper computes with {wanted!r} only; convert another model."
      )
  said = recipe.Config(scalars, checkpoint.path)
  heads, decoder_heads = said["encoder/num_heads"], said["decoder/num_heads"]
  width, mels, _ = _shape(checkpoint, "encoder/conv1/weight")
  depths = [
    sum(
      n.startswith(f"{part}/layer_") and n.endswith("/ffn/linear_0/weight")
      for n in shapes
    )
    for part in ("encoder", "decoder")
  ]
  first = "layer_0/ffn/linear_0/weight"
  vocab = _shape(checkpoint, "decoder/embeddings/weight")[0]
  model = dict(
    name="whisper",
    mels=mels,
    vocab_size=vocab,
    width=width,
    depth=depths[0],
    heads=heads,
    mlp=_shape(checkpoint, f"encoder/{first}")[0],
    decoder_depth=depths[1],
    decoder_heads=decoder_heads,
    decoder_mlp=_shape(checkpoint, f"decoder/{first}")[0],
    audio_length=_shape(checkpoint, "encoder/position_encodings/encodings")[0],
    length=_shape(checkpoint, "decoder/position_encodings/encodings")[0],
    **whisper_speech.of_ctranslate2(vocab, checkpoint.config),
  )
  table = "position_encodings/encodings"
  rules = [
    *_convolutions("encoder/", "/"),
    Rule("encoder/posemb", f"encoder/{table}"),
    Rule("decoder/posemb/table", f"decoder/{table}"),
    Rule("decoder/embedding/table", "decoder/embeddings/weight"),
  ]
  for part, count in (("encoder", heads), ("decoder", decoder_heads)):
    ours, block = f"{part}/layers/blocks/", f"{part}/layer_{{n}}/"
    rules += [
      *_norm(f"{part}/norm", f"{part}/layer_norm"),
      *_norm(f"{ours}norm1", f"{block}self_attention/layer_norm"),
      *_norm(f"{ours}norm2", f"{block}ffn/layer_norm"),
      *_linear(f"{ours}mlp/up", f"{block}ffn/linear_0"),
      *_linear(f"{ours}mlp/down", f"{block}ffn/linear_1"),
      *_packed(
        f"{ours}attention", f"{block}self_attention", width, count, (3,)
      ),
    ]
    if part == "decoder":
      rules += [
        *_norm(f"{ours}norm_cross", f"{block}attention/layer_norm"),
        *_packed(f"{ours}cross", f"{block}attention", width, count, (1, 2)),
      ]
  return _whole(checkpoint, model, rules)


def _shape(checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
  if name not in checkpoint.tensors:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: {name} is missing; fetch the "
      "file anew."
    )
  return checkpoint.tensors[name].shape


def _norm(ours: str, theirs: str) -> list[Rule]:
  return [
    Rule(f"{ours}/scale", f"{theirs}/gamma"),
    Rule(f"{ours}/bias", f"{theirs}/beta"),
  ]


def _linear(ours: str, theirs: str) -> list[Rule]:
  return [
    Rule(f"{ours}/kernel", f"{theirs}/weight", rename.LINEAR),
    Rule(f"{ours}/bias", f"{theirs}/bias"),
  ]


def _packed(
  ours: str, theirs: str, width: int, heads: int, packs: Sequence[int]
) -> list[Rule]:
  """Query, key and value, side by side in linear_0, linear_1, ...

  The key's bias is 0; whatever it was, it would change no attention weight,
  for it adds the same to all scores of a query.
  """
  op, rules, names = rename.to_heads(heads), [], [_QUERY, _KEY, _VALUE]
  for number, size in enumerate(packs):
    for place in range(size):
      name = names.pop(0)
      piece = (place * width, (place + 1) * width, 0)
      for leaf, tensor in (("kernel", "weight"), ("bias", "bias")):
        if name == _KEY and leaf == "bias":
          continue
        named = f"{theirs}/linear_{number}/{tensor}"
        rules.append(Rule(f"{ours}/{name}/{leaf}", named, op, piece))
  last = f"{theirs}/linear_{len(packs)}"
  return [
    *rules,
    Rule(f"{ours}/out/kernel", f"{last}/weight", rename.from_heads(heads)),
    Rule(f"{ours}/out/bias", f"{last}/bias"),
  ]
