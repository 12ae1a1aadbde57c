"""How images and texts of OpenAI's CLIP and open_clip's models are prepared.

open_clip writes it into open_clip_config.json, beside the model, as
"preprocess_cfg"; OpenAI's files have no config, and all are prepared alike.
Fields: github mlfoundations/open_clip, src/open_clip/{transform,tokenizer}.py.
"""

from collections.abc import Mapping
from typing import Any, TypedDict

from mmjax import errors
from mmjax.weights.files import Checkpoint
from mmjax.weights.image_front import CLIP_MEAN, CLIP_STD

_METHODS = {"bicubic": "bicubic", "bilinear": "bilinear", "random": "bicubic"}
_DEFAULTS: dict[str, Any] = dict(
  mode="RGB",
  mean=CLIP_MEAN,
  std=CLIP_STD,
  interpolation="bicubic",
  resize_mode="shortest",
)
# By text_cfg's tokenizer_kwargs.clean, operations of `data/text_ops.py`.
_CLEANED = {
  "canonicalize": ["canonicalise('text')"],
  "lower": ["single_spaces('text')", "lower('text')"],
  "whitespace": ["single_spaces('text')"],
}
# The model's own size goes before theirs, and nothing is ever filled up.
_NEUTRAL = {"size", "fill_color"}


class Fields(TypedDict):
  """Of a `Recipe`."""

  preprocess: dict[str, str]
  missing: dict[str, str]
  tokenizers: dict[str, dict[str, str]]


def fields(
  checkpoint: Checkpoint,
  pixels: tuple[int, int],
  length: int,
  vocab_size: int | None,
) -> Fields:
  """Returns the fields of a `Recipe` that say how its inputs are prepared.

  Args:
    checkpoint: of such a model. A preprocessor_config.json of the hub beside
      it is read where there is no preprocess_cfg.
    pixels: rows and columns that the model takes.
    length: of its texts, in tokens.
    vocab_size: of its text tower; None is not known.
  """
  config = checkpoint.config
  makers = {"text": lambda: _text(checkpoint, length, vocab_size)}
  if config.get("preprocess_cfg") is not None or not checkpoint.preprocessor:
    makers["image"] = lambda: _image(config, pixels)
  specs: dict[str, str] = {}
  missing: dict[str, str] = {}
  for key, make in makers.items():
    try:
      specs[key] = make()
    except errors.InputError as e:
      missing[key] = str(e)
  hub = {"kind": "hub", "path": str(checkpoint.path)}
  return Fields(
    preprocess=specs,
    missing=missing,
    tokenizers={"text": hub} if "text" in specs else {},
  )


def _image(config: Mapping[str, Any], pixels: tuple[int, int]) -> str:
  said = config.get("preprocess_cfg")
  if said is None and "vision_cfg" in config.get("model_cfg", config):
    raise errors.InputError(
      "open_clip_config.json has no preprocess_cfg beside its model_cfg; add "
      "what open_clip's pretrained.py says of these weights: mean, std, "
      "interpolation and resize_mode."
    )
  return image(said or {}, pixels)


def _text(checkpoint: Checkpoint, length: int, vocab_size: int | None) -> str:
  if not checkpoint.path.is_dir():
    raise errors.InputError(
      "a file of weights holds no vocabulary; put it into a folder with its "
      "tokenizer's files, of OpenAI's CLIP those of the hub's "
      "openai/clip-vit-base-patch32."
    )
  model = checkpoint.config.get("model_cfg", checkpoint.config)
  return text(model.get("text_cfg", {}), length, vocab_size)


def text(
  said: Mapping[str, Any], length: int, vocab_size: int | None = None
) -> str:
  """Returns the spec that does what a text_cfg says of the tokenizer.

  That of OpenAI's CLIP pads with 0, those of the hub as their files say.
  Damaged encodings and HTML's escapes are left as they are.

  Args:
    said: the text_cfg, {} of OpenAI's models.
    length: in tokens.
    vocab_size: of the model; None is any.

  Raises:
    InputError: a way to tokenize that our operations do not follow.
  """
  hub = said.get("hf_tokenizer_name") or said.get("hf_model_name")
  options = dict(said.get("tokenizer_kwargs") or {})
  if said.get("tokenizer_mode"):
    raise errors.InputError(
      f"text_cfg tokenizer_mode = {said['tokenizer_mode']!r}: no operation of "
      "ours does that."
    )
  cleaned = options.pop("clean", "whitespace" if hub else "lower")
  if cleaned not in _CLEANED:
    raise errors.unknown("text_cfg tokenizer_kwargs.clean", cleaned, _CLEANED)
  end = not options.pop("strip_sep_token", False)
  if options:
    name, value = next(iter(options.items()))
    raise errors.InputError(
      f"text_cfg tokenizer_kwargs.{name} = {value!r}: no operation of ours "
      "does that; known are clean and strip_sep_token."
    )
  if not end and "bert-" not in str(hub):
    raise errors.InputError(
      f"text_cfg tokenizer_kwargs.strip_sep_token = True: of {hub!r} mmjax does "
      "not know the separator; of BERT it does."
    )
  arguments = [
    f"length={length}",
    *([] if hub else ["pad=0"]),
    *([] if vocab_size is None else [f"vocab_size={vocab_size}"]),
    *([] if end else ["end=False"]),
  ]
  tokenized = f"tokenize_as_trained('text', 'text', {', '.join(arguments)})"
  return "|".join([*_CLEANED[cleaned], tokenized, "keep('text')"])


def image(said: Mapping[str, Any], pixels: tuple[int, int]) -> str:
  """Returns the spec that does what a preprocess_cfg says.

  Transparent images are laid on white; the reference drops their alpha.

  Args:
    said: the preprocess_cfg.
    pixels: rows and columns that the model takes.

  Raises:
    InputError: a field or value that our operations do not follow.
  """
  unknown = sorted(set(said) - set(_DEFAULTS) - _NEUTRAL)
  if unknown:
    raise errors.unknown("preprocess_cfg", unknown[0], _DEFAULTS)
  # In the reference null stands for the default.
  chosen = _DEFAULTS | {k: v for k, v in said.items() if v is not None}
  for field, known in (
    ("mode", ("RGB",)),
    ("interpolation", _METHODS),
    ("resize_mode", ("shortest", "squash")),
  ):
    if chosen[field] not in known:
      raise errors.unknown(f"preprocess_cfg {field}", chosen[field], known)
  method = _METHODS[chosen["interpolation"]]
  if chosen["resize_mode"] == "squash":
    steps = [f"resize_pillow({pixels}, {method!r})"]
  elif pixels[0] != pixels[1]:
    raise errors.InputError(
      f"preprocess_cfg resize_mode = 'shortest': for images of {pixels[0]} x "
      f"{pixels[1]} pixels no operation of ours does that; of squares it does."
    )
  else:
    steps = [
      f"resize_small_pillow({pixels[0]}, {method!r})",
      f"crop_or_pad({pixels[0]}, rounded=True)",
    ]
  normalise = f"normalise({chosen['mean']!r}, {chosen['std']!r})"
  return "|".join(["open_rgb", *steps, normalise, "keep('image')"])
