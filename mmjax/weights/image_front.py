"""From a preprocessor_config.json for images to a spec of operations.

They are those of `data/hub_image_ops.py` and `data/hub_aspect_ops.py`. Nothing
is left out: a field or value that they do not follow is refused by name.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from mmjax import errors

Inputs = Mapping[str, tuple[tuple[int, ...], str]]

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
HALF = [0.5, 0.5, 0.5]

# Numbers that Pillow gives its filters.
METHODS = {
  0: "nearest",
  1: "lanczos",
  2: "bilinear",
  3: "bicubic",
  4: "box",
  5: "hamming",
}
# What each class does if the file does not say otherwise; `square` is what a
# size of one number means.
_ALL = dict(do_resize=True, do_rescale=True, do_normalize=True, resample=3)
CLASSES: dict[str, dict[str, Any]] = {
  "CLIPImageProcessor": dict(
    size={"shortest_edge": 224},
    square=False,
    do_center_crop=True,
    crop_size=224,
    image_mean=CLIP_MEAN,
    image_std=CLIP_STD,
  ),
  "SiglipImageProcessor": dict(
    size=[224, 224], square=False, image_mean=HALF, image_std=HALF
  ),
  "ViTImageProcessor": dict(
    size=224, resample=2, image_mean=HALF, image_std=HALF
  ),
  "BlipImageProcessor": dict(
    size=384,
    image_mean=CLIP_MEAN,
    image_std=CLIP_STD,
    size_divisor=None,  # in its files, but nothing reads it
  ),
  "DeiTImageProcessor": dict(
    size=256,
    do_center_crop=True,
    crop_size=224,
    image_mean=HALF,
    image_std=HALF,
  ),
  "BitImageProcessor": dict(
    size={"shortest_edge": 224},
    square=False,
    do_center_crop=True,
    crop_size=224,
    image_mean=CLIP_MEAN,
    image_std=CLIP_STD,
  ),
  "ConvNextImageProcessor": dict(
    size={"shortest_edge": 384},
    square=False,
    crop_pct=224 / 256,
    image_mean=HALF,
    image_std=HALF,
  ),
  "ViltImageProcessor": dict(
    size={"shortest_edge": 384},
    square=False,
    size_divisor=32,
    do_pad=True,
    image_mean=HALF,
    image_std=HALF,
  ),
  "Siglip2ImageProcessor": dict(
    resample=2,
    patch_size=16,
    max_num_patches=256,
    image_mean=HALF,
    image_std=HALF,
  ),
}
# Fields that others follow and these do not.
_NOT_OF = {
  "ViltImageProcessor": {"crop_size", "do_center_crop"},
  "Siglip2ImageProcessor": {"crop_size", "do_center_crop", "do_pad", "size"},
}
# The class of files that name none, by model_type.
OF_MODELS = {
  "bit": "BitImageProcessor",
  "blip": "BlipImageProcessor",
  "clip": "CLIPImageProcessor",
  "convnext": "ConvNextImageProcessor",
  "deit": "DeiTImageProcessor",
  "dinov2": "BitImageProcessor",
  "dinov2_with_registers": "BitImageProcessor",
  "paligemma": "SiglipImageProcessor",
  "resnet": "ConvNextImageProcessor",
  "siglip": "SiglipImageProcessor",
  "siglip2": "Siglip2ImageProcessor",
  "siglip2_vision_model": "Siglip2ImageProcessor",
  "vilt": "ViltImageProcessor",
  "vit": "ViTImageProcessor",
}
# Fields that say how arrays are handed over, or nothing.
_NEUTRAL = {
  "_valid_processor_keys",
  "data_format",
  "default_to_square",
  "device",
  "disable_grouping",
  "do_convert_rgb",  # ours are RGB always
  "feature_extractor_type",
  "image_processor_type",
  "image_seq_length",
  "input_data_format",
  "processor_class",
  "return_tensors",
}
_FIELDS = {
  *_ALL,
  "do_pad",
  "crop_size",
  "do_center_crop",
  "image_mean",
  "image_std",
  "rescale_factor",
  "size",
}
# After these there is nothing to pad.
_OF_ONE_SIZE = ("crop_or_pad", "resize_pillow")
# ViLT's longer side, of a shorter one of 800.
_LONGEST = 1333
# From this size on ConvNext's processor crops nothing.
_WARPED = 384


def image(
  preprocessor: Mapping[str, Any],
  model_type: str = "",
  inputs: Inputs | None = None,
) -> str:
  """Returns the spec that does what a preprocessor_config.json says.

  Args:
    preprocessor: what the file says.
    model_type: of config.json, for files that name no class.
    inputs: of the model, see `Recipe`; None of an encoder alone.

  Raises:
    InputError: there is no file, or a class, field or value in it that our
      operations do not follow.
  """
  if not preprocessor:
    raise errors.InputError(
      "there is no preprocessor_config.json beside the weights; fetch it."
    )
  kind = _class(preprocessor, model_type)
  # In the reference null stands for what the class does.
  said = {k: v for k, v in preprocessor.items() if v is not None}
  known = {*_FIELDS, *_NEUTRAL, *CLASSES[kind]} - {"square"}
  known -= _NOT_OF.get(kind, set())
  for name, value in said.items():
    if name not in known and value is not False:
      raise errors.InputError(
        f"preprocessor_config.json {name} = {value!r}: no operation of ours "
        f"does that for {kind}; known fields: {', '.join(sorted(_FIELDS))}."
      )
  chosen: dict[str, Any] = {**_ALL, **CLASSES[kind], **said}
  square = said.get("default_to_square", chosen.pop("square", True))
  steps = ["open_rgb"]
  if kind == "Siglip2ImageProcessor":
    return "|".join([*steps, *_patches(chosen, inputs)])
  if kind == "ViltImageProcessor":
    return "|".join([*steps, *_between(chosen)])
  if chosen["do_resize"]:
    steps += _resize(chosen, square, kind)
  if chosen.get("do_center_crop", False):
    steps.append(f"crop_or_pad({_size('crop_size', chosen, True)})")
  if chosen.get("do_pad", False) and not steps[-1].startswith(_OF_ONE_SIZE):
    raise errors.InputError(
      "preprocessor_config.json do_pad = True: images of several sizes would "
      "be padded to the largest of a batch, which no operation of ours does; "
      "give size a height and a width."
    )
  steps.append(_normalise(chosen))
  return "|".join([*steps, "keep('image')"])


def _class(preprocessor: Mapping[str, Any], model_type: str) -> str:
  said = preprocessor.get("image_processor_type") or preprocessor.get(
    "feature_extractor_type"
  )
  if said is None:
    if model_type not in OF_MODELS:
      raise errors.InputError(
        "preprocessor_config.json image_processor_type is not there, and of "
        f"model_type = {model_type!r} mmjax does not know it; add it. Known: "
        f"{', '.join(CLASSES)}."
      )
    return OF_MODELS[model_type]
  name = str(said).removesuffix("Fast").removesuffix("Pil")
  name = name.replace("FeatureExtractor", "ImageProcessor")
  if name not in CLASSES:
    raise errors.unknown(
      "preprocessor_config.json image_processor_type", said, CLASSES
    )
  return name


def _patches(
  chosen: Mapping[str, Any],
  inputs: Inputs | None,
) -> list[str]:
  """Returns the operations of SigLIP 2's NaFlex."""
  patch, most = (
    _whole(f, chosen[f]) for f in ("patch_size", "max_num_patches")
  )
  keys = {"mask": "mask", "shapes": "shapes"}
  if inputs is not None:
    keys = of_patches(inputs)
    size = inputs["image"][0][-1]
    if len(keys) != 2 or size != 3 * patch**2:
      raise errors.InputError(
        f"preprocessor_config.json patch_size = {patch!r}: of a "
        f"Siglip2ImageProcessor, but the model takes image [B "
        f"{' '.join(map(str, inputs['image'][0][1:]))}]; the file must be that "
        "of the model, NaFlex with this patch_size in its config.json."
      )
  names = f"{keys['mask']!r}, {keys['shapes']!r}"
  steps = [f"resize_to_patches_pillow({patch}, {most}, {_method(chosen)!r})"]
  return [
    *(steps if chosen["do_resize"] else []),
    _normalise(chosen),
    f"patches({patch}, {most}, {names})",
    f"keep('image', {names})",
  ]


def _between(chosen: Mapping[str, Any]) -> list[str]:
  """Returns the operations of ViLT."""
  size = _size("size", chosen, False)
  if not isinstance(size, int):
    raise _no_size("size", chosen["size"], "{'shortest_edge': n}")
  divisor = _whole("size_divisor", chosen["size_divisor"])
  longest = int(_LONGEST / 800 * size)
  steps = [
    f"resize_between_pillow({size}, {longest}, {divisor}, {_method(chosen)!r})"
  ]
  steps = [*(steps if chosen["do_resize"] else []), _normalise(chosen)]
  if not chosen["do_pad"]:
    return [*steps, "keep('image')"]
  return [*steps, "pad_pixels", "keep('image', 'pixel_mask')"]


def _whole(field: str, value: Any) -> int:
  if not isinstance(value, int) or isinstance(value, bool) or value < 1:
    raise errors.InputError(
      f"preprocessor_config.json {field} = {value!r}: must be a whole number, "
      "1 or more."
    )
  return value


def _method(chosen: Mapping[str, Any]) -> str:
  if chosen["resample"] not in METHODS:
    raise errors.unknown(
      "preprocessor_config.json resample", chosen["resample"], map(str, METHODS)
    )
  return METHODS[chosen["resample"]]


def _resize(chosen: Mapping[str, Any], square: bool, kind: str) -> list[str]:
  method = _method(chosen)
  size = _size("size", chosen, square)
  if kind != "ConvNextImageProcessor":
    op = "resize_small_pillow" if isinstance(size, int) else "resize_pillow"
    return [f"{op}({size}, {method!r})"]
  if not isinstance(size, int):
    raise _no_size("size", chosen["size"], "{'shortest_edge': n}")
  if size >= _WARPED:
    return [f"resize_pillow({size}, {method!r})"]
  larger = int(size / chosen["crop_pct"])
  return [f"resize_small_pillow({larger}, {method!r})", f"crop_or_pad({size})"]


def _size(
  field: str, chosen: Mapping[str, Any], square: bool
) -> int | tuple[int, int]:
  """Returns (rows, columns), or an int, the length of the shorter side."""
  size = chosen.get(field)
  if isinstance(size, int):
    return (size, size) if square else size
  if isinstance(size, list | tuple) and len(size) == 2:
    return (size[0], size[1])
  if isinstance(size, Mapping):
    sides = {k: v for k, v in size.items() if v is not None}
    if sides.keys() == {"height", "width"}:
      return (sides["height"], sides["width"])
    if sides.keys() == {"shortest_edge"} and field == "size":
      return sides["shortest_edge"]
  raise _no_size(field, size, "{'height': n, 'width': n}")


def _no_size(field: str, size: Any, example: str) -> errors.InputError:
  return errors.InputError(
    f"preprocessor_config.json {field} = {size!r}: no operation of ours makes "
    f"images of that size; it may be {example}."
  )


def _normalise(chosen: Mapping[str, Any]) -> str:
  mean, std = 0.0, 1.0
  if chosen["do_normalize"]:
    mean, std = chosen["image_mean"], chosen["image_std"]
  factor = chosen.get("rescale_factor", 1 / 255)
  if not chosen["do_rescale"]:
    factor = 1.0
  more = "" if factor == 1 / 255 else f", {factor!r}"
  return f"normalise({mean!r}, {std!r}{more})"


def of_patches(inputs: Iterable[str]) -> dict[str, str]:
  """Returns NaFlex's arguments of "mask" and "shapes"; {} of other models."""
  found = {
    role: name
    for name in inputs
    for role in ("mask", "shapes")
    if name in (role, f"image_{role}")
  }
  return found if len(found) == 2 else {}
