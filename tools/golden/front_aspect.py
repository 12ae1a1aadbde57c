"""Batches of images that keep their aspect: ViLT's and NaFlex's, by Pillow.

Recorded in tests/golden/front/aspect.npz:

  cases           JSON: [{"config": preprocessor_config.json, "inputs": names,
                  "stride": of the recorded pixels, or patches}]
  input/<name>    uint8 [Y X 3]
  output/<i>/<field>  of the batch of case i: pixel_values (ViLT's [B Y X 3]
                  with every stride-th pixel, NaFlex's [B P D] with every
                  stride-th patch) and what goes with them
"""

import importlib
import json

import numpy as np
from make_golden import FOLDER

# Rows and columns; some halves come out when sides are rounded.
SIZES = dict(
  wide=(23, 61),
  tall=(47, 20),
  square=(31, 31),
  tiny=(1, 2),
  long=(9, 88),
  half=(16, 23),
)


def make() -> None:
  """Records the cases."""
  rng = np.random.default_rng(3)
  inputs = {
    name: rng.integers(0, 256, (*size, 3), np.uint8)
    for name, size in SIZES.items()
  }
  cases, outputs = [], {}
  for name, keywords, names, stride in _cases():
    module = f"transformers.models.{name.lower()}.image_processing_pil_"
    found = importlib.import_module(module + name.lower())
    processor = getattr(found, f"{name}ImageProcessorPil")(**keywords)
    batch = processor(
      [inputs[n] for n in names],
      return_tensors="np",
      input_data_format="channels_last",
    )
    i = len(cases)
    config = processor.to_dict()
    cases.append(dict(config=config, inputs=list(names), stride=stride))
    for field, value in batch.items():
      value = np.asarray(value)
      if field == "pixel_values":
        if value.ndim == 4:
          value = value.transpose(0, 2, 3, 1)[:, ::stride, ::stride]
        else:
          value = value[:, ::stride]
      elif field == "pixel_mask":
        value = value.astype(np.uint8)
      outputs[f"output/{i}/{field}"] = np.ascontiguousarray(value)
  np.savez_compressed(
    FOLDER / "front" / "aspect.npz",
    allow_pickle=False,
    cases=np.array(json.dumps(cases)),
    **{f"input/{k}": v for k, v in inputs.items()},
    **outputs,
  )
  size = (FOLDER / "front" / "aspect.npz").stat().st_size
  print(f"front/aspect: {len(cases)} cases, {size / 1024:.0f} KiB")


def _cases():
  """Yields class, keywords, inputs, stride."""
  ragged = ("wide", "tall", "square")
  small = dict(size={"shortest_edge": 24})
  yield "Vilt", {}, ragged, 48
  yield "Vilt", dict(small, size_divisor=4), (*ragged, "half"), 1
  yield "Vilt", dict(small, size_divisor=7, resample=2), ragged, 1
  yield "Vilt", dict(small, size_divisor=1), ("long", "half", "tiny"), 2
  yield "Vilt", dict(do_resize=False, do_normalize=False), ragged, 1
  yield "Vilt", dict(small, size_divisor=4, do_pad=False), ("square",), 1
  yield "Siglip2", {}, ragged, 40
  flat = dict(patch_size=4, max_num_patches=12)
  yield "Siglip2", flat, tuple(SIZES), 1
  more = dict(patch_size=3, max_num_patches=50, resample=3)
  yield "Siglip2", dict(more, image_mean=[0.4, 0.5, 0.6]), ragged, 1
  yield "Siglip2", dict(patch_size=5, max_num_patches=1), ("wide", "long"), 1
  as_is = dict(patch_size=31, max_num_patches=2, do_resize=False)
  yield "Siglip2", as_is, ("square",), 1
