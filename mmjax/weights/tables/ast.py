"""AST: of the model hub, with and without a head, and its authors' own files.

"AST: audio spectrogram transformer", Gong et al. 2021. Its authors' files
(github YuanGongND/ast) have timm's names under "module.v." or "v.", and no
config: one of ours may say {"model_args": {...}} with the arguments of their
constructor, of which "fstride", "tstride", "input_fdim" and "input_tdim" are
not told by tensors. The heads that their encoder was made with, DeiT's, are
not read: nothing trains them there.
"""

import re

from mmjax import errors
from mmjax.weights import audio_front, rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.tables import hub, hub_vit, timm_layers

MODEL_TYPES = ("audio-spectrogram-transformer",)
# What files may leave out.
DEFAULTS = dict(
  **hub_vit.DEFAULTS,
  frequency_stride=10,
  time_stride=10,
  max_length=1024,
  num_mel_bins=128,
)

# Arguments of its authors' constructor, and what it takes for them.
ARGUMENTS = dict(fstride=10, tstride=10, input_fdim=128, input_tdim=1024)
# What their tensors tell, or the model was trained from.
_TOLD = (
  "label_dim",
  "imagenet_pretrain",
  "audioset_pretrain",
  "model_size",
  "verbose",
)
PREFIXES = ("module.", "")


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of an AST, or None for any other checkpoint.

  Raises:
    InputError: a config or front end that we cannot follow.
  """
  kind = checkpoint.config.get("model_type")
  if kind is None:
    for prefix in PREFIXES:
      if timm_layers.marked(checkpoint.shapes, f"{prefix}v."):
        return _own(checkpoint, prefix)
  if kind not in MODEL_TYPES:
    return None
  config = hub_vit.fields(checkpoint, DEFAULTS)
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
  grid = _grid((bins, frames), patch, stride)
  classes = hub_vit.classes(shapes, "classifier.dense")
  rules = rename.under(
    "encoder/",
    prefix,
    [
      *hub_vit.embeddings("embeddings.", grid, width, ("cls", "distilled")),
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


def _grid(
  pixels: tuple[int, int], patch: int, stride: tuple[int, int]
) -> tuple[int, int]:
  """Returns rows and columns of patches of a spectrogram of mels x frames."""
  rows, columns = (
    (n - patch) // step + 1 for n, step in zip(pixels, stride, strict=True)
  )
  return rows, columns


def _own(checkpoint: Checkpoint, prefix: str) -> Recipe:
  """Returns the recipe of a file of AST's authors."""
  shapes, encoder = checkpoint.shapes, f"{prefix}v."
  given = timm_layers.arguments(
    checkpoint.config, ("num_heads", *ARGUMENTS), _TOLD
  )
  said = {**ARGUMENTS, **given}
  sizes = timm_layers.stack(
    checkpoint, f"{encoder}blocks.", heads=said.get("num_heads")
  )
  patch = shapes[f"{encoder}patch_embed.proj.weight"][-1]
  stride = said["fstride"], said["tstride"]
  bins, frames = said["input_fdim"], said["input_tdim"]
  grid = _grid((bins, frames), patch, stride)
  count = shapes[f"{encoder}pos_embed"][1] - 2
  if grid[0] * grid[1] != count:
    shown = ", ".join(f'"{name}": {said[name]}' for name in ARGUMENTS)
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: {encoder}pos_embed has {count} "
      f"positions of patches, but {{{shown}}} gives {grid[0]} x {grid[1]}; add "
      '{"model_args": {...}} with what it was trained with to its config.json.'
    )
  head, classes = f"{prefix}mlp_head.", None
  rules = rename.under(
    "encoder/",
    encoder,
    [
      *timm_layers.embeddings(
        {k.removeprefix(encoder): v for k, v in shapes.items()},
        {"cls": 1, "distilled": 1},
        grid,
        2,
      ),
      *hub.norm("norm", "norm"),
    ],
  )
  rules += timm_layers.blocks(
    shapes, sizes, ours="encoder/encoder/blocks/", theirs=f"{encoder}blocks."
  )
  if f"{head}1.weight" in shapes:
    classes = shapes[f"{head}1.weight"][0]
    timm_layers.agree(given, dict(label_dim=classes))
    rules += hub.norm("head_norm", f"{head}0")
    rules += hub.linear("head", f"{head}1")
  missing = {
    "audio": "AST's own files do not say the mean and deviation of its "
    "spectrograms; put the preprocessor_config.json of an ASTFeatureExtractor "
    "beside them."
  }
  spec = audio_front.audio_spec(checkpoint.preprocessor)
  return Recipe(
    table="ast",
    model=dict(
      name="audio_transformer",
      **sizes,
      patch=patch,
      stride=stride,
      act="gelu_exact",
      epsilon=1e-6,
      head_epsilon=1e-5,
      num_classes=classes,
    ),
    inputs={"audio": ((1, frames, bins), "float32")},
    rules=rules,
    config=checkpoint.config,
    preprocess=spec,
    missing={} if spec else missing,
    keep=(rf"^{re.escape(encoder)}head(_dist)?\.",),
  )
