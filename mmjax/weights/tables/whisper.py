"""Whisper: the hub's, OpenAI's own files, and CTranslate2's.

The hub's stand under `model.`, or bare; with "encoder." alone it is the audio
encoder, perhaps with a head that classifies; with "decoder." alone the decoder.
OpenAI's .pt says the sizes in "dims". CTranslate2 packs projections, and says
the heads in scalars of its file (`weights/ctranslate2.py`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mmjax import errors
from mmjax.weights import audio_front, ctranslate2, recipe, rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import LINEAR, Rule
from mmjax.weights.tables import hub, whisper_rules, whisper_speech

# What the hub's files may leave out.
DEFAULTS = dict(
  vocab_size=51865,
  num_mel_bins=80,
  d_model=384,
  encoder_layers=4,
  encoder_attention_heads=6,
  encoder_ffn_dim=1536,
  decoder_layers=4,
  decoder_attention_heads=6,
  decoder_ffn_dim=1536,
  max_source_positions=1500,
  max_target_positions=448,
  activation_function="gelu",
  use_weighted_layer_sum=False,
  tie_word_embeddings=True,
)
HEAD = "proj_out.weight"


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
  config = recipe.Config({**DEFAULTS, **checkpoint.config}, checkpoint.path)
  names = checkpoint.shapes
  model: dict[str, Any] = dict(
    name="whisper",
    mels=config["num_mel_bins"],
    width=config["d_model"],
    depth=config["encoder_layers"],
    heads=config["encoder_attention_heads"],
    mlp=config["encoder_ffn_dim"],
    audio_length=config["max_source_positions"],
    act=hub.act(config, field="activation_function"),
  )
  if names and not any("decoder." in name for name in names):
    return _encoder(checkpoint, config, model)
  # A bare model has no head; the table stands for it, as where they are tied.
  tied = config["tie_word_embeddings"] or not any(
    name == HEAD or name.startswith("model.") for name in names
  )
  model |= dict(
    tied=bool(tied),
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
  encoder = whisper_rules.encoder(f"{prefix}encoder.", model["heads"])
  rules = whisper_rules.decoder(f"{prefix}decoder.", model["decoder_heads"])
  copies = ()
  if tied:
    # Of the table and its copy, the head, a file may hold either.
    table = f"{prefix}decoder.embed_tokens.weight"
    rules = hub.renamed(rules, table, hub.either(names, table, HEAD))
    copies = (r"^proj_out\.weight$",)
  else:
    rules.append(Rule("decoder/head/kernel", HEAD, LINEAR))
  if names and f"{prefix}encoder.conv1.weight" not in names:
    return _decoder(checkpoint, model, rules, copies)
  return _whole(checkpoint, model, [*encoder, *rules], copies)


def _decoder(
  checkpoint: Checkpoint,
  model: dict[str, Any],
  rules: Sequence[Rule],
  copies: Sequence[str],
) -> Recipe:
  """A decoder without its encoder, which reads what it is given."""
  memory = ((1, 1, model["width"]), "float32")
  return Recipe(
    table="whisper",
    model={**model, "part": "decoder"},
    inputs={"tokens": ((1, 1), "int32"), "memory": memory},
    rules=[
      dataclasses.replace(rule, ours=rule.ours.removeprefix("decoder/"))
      for rule in rules
    ],
    config=checkpoint.config,
    ignore=copies,
  )


def _encoder(
  checkpoint: Checkpoint, config: Mapping[str, Any], model: dict[str, Any]
) -> Recipe:
  """An encoder without its decoder, perhaps with a head that classifies."""
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
    for r in whisper_rules.encoder(prefix, model["heads"])
  ]
  model = {**model, "part": "encoder"}
  classes = checkpoint.shapes.get("classifier.weight")
  if classes is not None:
    mixed = bool(config["use_weighted_layer_sum"])
    model = dict(
      name="whisper_classifier",
      encoder=model,
      classes=classes[0],
      hidden=classes[1],
      mixed=mixed,
    )
    rules = [
      *rename.under("encoder/", "", rules),
      *hub.linear("projector", "projector"),
      *hub.linear("head", "classifier"),
    ]
    rules += [Rule("mix", "layer_weights")] if mixed else []
  mels = config["num_mel_bins"]
  return Recipe(
    table="whisper",
    model=model,
    inputs={"audio": ((1, 2, mels), "float32")},
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
  model: dict[str, Any] = dict(
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
    *whisper_rules.encoder("encoder.", model["heads"], whisper_rules.OPENAI),
    *whisper_rules.decoder(
      "decoder.", model["decoder_heads"], whisper_rules.OPENAI
    ),
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
  path = checkpoint.path
  tokenizers = {"text": dict(kind="hub", path=str(path))}
  return Recipe(
    table="whisper",
    model=model,
    inputs={
      "audio": ((1, 2, model["mels"]), "float32"),
      "decoder_tokens": ((1, 2), "int32"),
    },
    rules=rules,
    config=checkpoint.config,
    preprocess=spec,
    tokenizers=tokenizers if path.is_dir() else {},
    ignore=ignore,
  )


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
  model: dict[str, Any] = dict(
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
  rules = whisper_rules.packed(width, heads, decoder_heads)
  return _whole(checkpoint, model, rules)


def _shape(checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
  if name not in checkpoint.tensors:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: {name} is missing; fetch the "
      "file anew."
    )
  return checkpoint.tensors[name].shape
