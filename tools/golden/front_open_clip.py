"""Images as open_clip prepares them, and OpenAI's CLIP, by torchvision.

Needs torchvision 0.28 beside a clone of open_clip, see
`tools/reference_code.py`. Recorded in tests/golden/front/open_clip.npz, of the
pictures in images.npz:

  cases           JSON: [{"said": preprocess_cfg, "pixels": [Y, X],
                  "inputs": names}]
  output/<i>/<name>  pixels of case i, float32 [Y X 3]
"""

import io
import json

import numpy as np
import reference_code
from make_golden import FOLDER

NAMES = ("noise", "smooth", "emoji", "wide", "tall", "small", "png_grey")
CLIPA = dict(
  mean=[0.485, 0.456, 0.406],
  std=[0.229, 0.224, 0.225],
  interpolation="bilinear",
  resize_mode="squash",
)
SIGLIP = dict(
  mean=[0.5] * 3,
  std=[0.5] * 3,
  interpolation="bicubic",
  resize_mode="squash",
)
# Sizes that leave 1, 2 and 3 pixels beside the middle of some picture.
CASES = (
  ({}, (11, 11)),
  ({}, (14, 14)),
  (dict(interpolation="bilinear", resize_mode="shortest"), (13, 13)),
  (CLIPA, (15, 15)),
  (SIGLIP, (9, 16)),
)


def make() -> None:
  """Records the cases."""
  import torchvision  # before there are stand-ins for it
  from PIL import Image

  assert torchvision
  transform = reference_code.module("open_clip.transform")
  with np.load(FOLDER / "front" / "images.npz") as file:
    inputs = {name: file[f"input/{name}"] for name in NAMES}
  outputs = {}
  for i, (said, pixels) in enumerate(CASES):
    # A size of one number is what it makes of square models.
    size = pixels[0] if pixels[0] == pixels[1] else pixels
    run = transform.image_transform_v2(
      transform.PreprocessCfg(size=size, **said), is_train=False
    )
    for name, image in inputs.items():
      picture = (
        Image.open(io.BytesIO(image.tobytes()))
        if image.ndim == 1
        else Image.fromarray(image)
      )
      found = run(picture).numpy().transpose(1, 2, 0)
      outputs[f"output/{i}/{name}"] = np.ascontiguousarray(found)
  cases = [
    dict(said=said, pixels=pixels, inputs=NAMES) for said, pixels in CASES
  ]
  path = FOLDER / "front" / "open_clip.npz"
  np.savez_compressed(
    path, allow_pickle=False, cases=np.array(json.dumps(cases)), **outputs
  )
  size = path.stat().st_size
  print(f"front/open_clip: {len(cases)} cases, {size / 1024:.0f} KiB")
