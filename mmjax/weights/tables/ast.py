"""AST of the model hub, with and without a head.

"AST: audio spectrogram transformer", Gong et al. 2021.
"""

from mmjax import errors
from mmjax.weights import audio_front, recipe, rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.tables import hub, hub_vit

MODEL_TYPES = ("audio-spectrogram-transformer",)
# What files may leave out.
DEFAULTS = dict(
  patch_size=16,
  frequency_stride=10,
  time_stride=10,
  max_length=1024,
  num_mel_bins=128,
)


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of an AST, or None for any other checkpoint.

  Raises:
    InputError: a config or front end that we cannot follow.
  """
  if checkpoint.config.get("model_type") not in MODEL_TYPES:
    return None
  config = recipe.Config({**DEFAULTS, **checkpoint.config}, checkpoint.path)
  hub_vit.check(config)
  shapes = checkpoint.shapes
  prefix = hub_vit.prefix(shapes, "audio_spectrogram_transformer")
  heads, width = config["num_attention_heads"], config["hidden_size"]
  patch, qkv_bias = config["patch_size"], config.get("qkv_bias", True)
  bins, frames = config["num_mel_bins"], config["max_length"]
  if min(bins, frames) < patch:
    raise errors.InputError(
      f"config.json patch_size = {patch}: larger than num_mel_bins = {bins} or "
      f"max_length = {frames}."
    )
  stride = config["frequency_stride"], config["time_stride"]
  rows, columns = (
    (n - patch) // step + 1
    for n, step in zip((bins, frames), stride, strict=True)
  )
  classes = hub_vit.classes(shapes, "classifier.dense")
  rules = rename.under(
    "encoder/",
    prefix,
    [
      *hub_vit.embeddings(
        "embeddings.", (rows, columns), width, ("cls", "distilled")
      ),
      *hub_vit.blocks("encoder.layer.{n}.", heads, qkv_bias=qkv_bias),
      *hub.norm("norm", "layernorm"),
    ],
  )
  if classes is not None:
    rules += hub.norm("head_norm", "classifier.layernorm")
    rules += hub.linear("head", "classifier.dense")
  return Recipe(
    table="ast",
    model=dict(
      name="audio_transformer",
      **hub.sizes(config),
      patch=patch,
      stride=stride,
      qkv_bias=qkv_bias,
      num_classes=classes,
    ),
    inputs={"audio": ((1, frames, bins), "float32")},
    rules=rules,
    config=checkpoint.config,
    preprocess=audio_front.audio_spec(checkpoint.preprocessor),
  )
