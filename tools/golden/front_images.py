"""Images as the hub's processors prepare them, by their Pillow backend.

Recorded in tests/golden/front/images.npz:

  cases           JSON: [{"config": preprocessor_config.json, "inputs": names,
                  "stride": of the recorded pixels}]
  input/<name>    uint8 array, or the bytes of a file as uint8 [n]
  output/<i>/<name>  pixel_values of case i, float32 [Y X 3], every stride-th
"""

import io
import json

import numpy as np
from make_golden import FOLDER

ARRAYS = ("noise", "smooth", "emoji", "wide", "tall", "small")
FILES = ("png_rgb", "png_rgba", "png_grey", "png_la", "png_palette", "png_bit")
RGB = (*ARRAYS, "png_rgb")
OTHERS = ("rgba", "grey")
IMAGENET = dict(
  image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
)


def make() -> None:
  """Records the cases."""
  inputs, cases, outputs = _inputs(), [], {}
  for name, keywords, names, stride in _cases():
    processor = _processor(name)(**keywords)
    config = processor.to_dict()
    i = len(cases)
    cases.append(dict(config=config, inputs=list(names), stride=stride))
    for key in names:
      image = inputs[key]
      found = processor(_opened(image), return_tensors="np", **_layout(image))[
        "pixel_values"
      ][0]
      found = found.transpose(1, 2, 0)[::stride, ::stride]
      outputs[f"output/{i}/{key}"] = np.ascontiguousarray(found)
  folder = FOLDER / "front"
  folder.mkdir(exist_ok=True)
  np.savez_compressed(
    folder / "images.npz",
    allow_pickle=False,
    cases=np.array(json.dumps(cases)),
    **{f"input/{k}": v for k, v in inputs.items()},
    **outputs,
  )
  size = (folder / "images.npz").stat().st_size
  print(f"front/images: {len(cases)} cases, {size / 1024:.0f} KiB")


def _cases():
  """Yields class, keywords, inputs, stride."""
  every = (*RGB, *FILES[1:], *OTHERS)
  few = ("emoji",)
  # What the classes do by themselves, at full size.
  for name in ("CLIP", "Siglip", "ViT", "Blip", "DeiT", "Bit", "ConvNext"):
    yield name, {}, few, 24
  # Small, every pixel.
  yield "CLIP", dict(size={"shortest_edge": 14}, crop_size=11), every, 1
  yield (
    "CLIP",
    dict(
      size={"height": 11, "width": 17},
      crop_size={"height": 14, "width": 10},
      resample=1,
    ),
    RGB,
    1,
  )
  yield "Siglip", dict(size={"height": 9, "width": 16}), RGB, 1
  yield "ViT", dict(size={"height": 15, "width": 10}), RGB, 1
  yield "Blip", dict(size={"height": 12, "width": 12}), every, 1
  yield "DeiT", dict(size=15, crop_size=12, **IMAGENET), RGB, 1
  # DINOv2's, and ResNet's on both sides of 384.
  yield (
    "Bit",
    dict(size={"shortest_edge": 16}, crop_size=13, **IMAGENET),
    RGB,
    1,
  )
  yield (
    "ConvNext",
    dict(size={"shortest_edge": 13}, crop_pct=0.875, **IMAGENET),
    RGB,
    1,
  )
  for resample in (0, 4, 5):
    yield "ViT", dict(size=11, resample=resample), ("noise", "smooth"), 1
  yield "CLIP", dict(do_resize=False, crop_size=15), RGB, 1
  yield "Siglip", dict(size=11, do_normalize=False), RGB, 1
  yield "Siglip", dict(do_resize=False, do_rescale=False), ("small",), 1
  yield (
    "ViT",
    dict(size=11, rescale_factor=1 / 127.5, image_mean=1.0, image_std=1.0),
    ("noise",),
    1,
  )


def _processor(name: str):
  import importlib

  module = f"transformers.models.{name.lower()}.image_processing_pil_"
  found = importlib.import_module(module + name.lower())
  return getattr(found, f"{name}ImageProcessorPil")


def _inputs() -> dict[str, np.ndarray]:
  from mmjax.build import build

  rng = np.random.default_rng(0)
  y, x = np.mgrid[:61, :40]
  smooth = np.stack([4 * y, 6 * x, 127 + 127 * np.sin(y * x / 90)], -1)
  source = build("data.sources", name="emoji", split="test")
  image = np.asarray(_opened(np.frombuffer(source[78]["image"], np.uint8)))
  found = {
    "noise": rng.integers(0, 256, (27, 33, 3), np.uint8),
    "smooth": smooth.astype(np.uint8),
    "emoji": image[..., :3],
    "wide": rng.integers(0, 256, (7, 91, 3), np.uint8),
    "tall": smooth.astype(np.uint8)[:, 3:17],
    "small": rng.integers(0, 256, (9, 12, 3), np.uint8),
    "rgba": rng.integers(0, 256, (21, 34, 4), np.uint8),
    "grey": rng.integers(0, 256, (21, 34, 1), np.uint8),
  }
  return found | _files(rng)


def _files(rng: np.random.Generator) -> dict[str, np.ndarray]:
  from PIL import Image

  def noise(*shape):
    return Image.fromarray(rng.integers(0, 256, (19, 24, *shape), np.uint8))

  def data(image, **keywords):
    file = io.BytesIO()
    image.save(file, "PNG", **keywords)
    return np.frombuffer(file.getvalue(), np.uint8)

  return {
    "png_rgb": data(noise(3)),
    "png_rgba": data(noise(4)),
    "png_grey": data(noise()),
    "png_la": data(noise(2)),
    "png_palette": data(noise(3).quantize(16), transparency=3),
    "png_bit": data(noise().convert("1")),
  }


def _opened(image: np.ndarray):
  from PIL import Image

  return image if image.ndim > 1 else Image.open(io.BytesIO(image.tobytes()))


def _layout(image: np.ndarray) -> dict[str, str]:
  return {"input_data_format": "channels_last"} if image.ndim > 1 else {}
