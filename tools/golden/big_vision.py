"""ViT, SigLIP, NaFlex and LiT of big_vision, computed by its own code.

It is no package. Fetch github google-research/big_vision (0127fb6), name its
folder in BIG_VISION, and run this where JAX, Flax and SciPy are, not PyTorch:

  BIG_VISION=~/big_vision python tools/make_golden.py big_vision

Its `utils`, which asks for TensorFlow and is not needed to compute, is left
out.
"""

import importlib
import os
import sys
import types
import zlib
from typing import Any

import numpy as np
from golden.siglip2 import IDS, SHAPES
from make_golden import images, save


def models(name: str) -> Any:
  """Returns a module of big_vision/models."""
  sys.path.insert(0, os.environ["BIG_VISION"])
  utils = types.ModuleType("big_vision.utils")
  sys.modules["big_vision.utils"] = utils
  importlib.import_module("big_vision").utils = utils
  return importlib.import_module(f"big_vision.models.{name}")


def drawn(
  model: Any, *args: Any, prefix: str = "params/", **given: Any
) -> dict[str, Any]:
  """Returns the parameters of a model by name, all drawn anew."""
  import jax
  from flax import traverse_util

  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *args, **given))
  flat = traverse_util.flatten_dict(shapes["params"], sep="/")
  found = {}
  for name, leaf in flat.items():
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    # The decoder of captions stacks its blocks on the second axis.
    second = "/EncDecBlock/" in name
    shape = (
      np.moveaxis(np.empty(leaf.shape), 1, 0).shape if second else leaf.shape
    )
    noise = rng.normal(size=shape)
    if name.endswith("kernel"):
      heads = name.split("/")[-2] in ("query", "key", "value")
      heads = heads and "BertEncoder_0" not in name  # whose heads are flat
      fan_in = shape[-3] if heads else np.prod(shape[-3:-1])
      noise = noise / fan_in**0.5
    else:
      noise = 0.3 * noise + name.endswith("scale")
    noise = np.moveaxis(noise, 0, 1) if second else noise
    # safetensors writes memory as it lies, whatever the strides.
    found[prefix + name] = noise.astype(np.float32, order="C")
  return found


def nested(tensors: dict[str, Any], prefix: str = "params/") -> dict[str, Any]:
  """Returns parameters as Flax wants them."""
  from flax import traverse_util

  named = {k.removeprefix(prefix): v for k, v in tensors.items()}
  return {"params": traverse_util.unflatten_dict(named, sep="/")}


def make() -> None:
  """Records the cases."""
  _naflex()
  towers = models("proj.image_text.two_towers")
  vit = models("vit")
  sizes = dict(width=24, depth=2, mlp_dim=40, num_heads=3)
  text = np.array(
    [[3, 7, 9, 1, 1, 1, 1], [5, 49, 0, 6, 8, 30, 1], [12, 2, 8, 4, 21, 13, 17]],
    np.int32,
  )
  image = images((3, 24, 24, 3), seed=7)
  for name, scan in (("siglip", False), ("lit", True)):
    model = towers.Model(
      image=dict(
        sizes,
        patch_size=(8, 8),
        pool_type="map" if name == "siglip" else "tok",
        scan=scan,
      ),
      text=dict(
        width=16,
        depth=3,
        mlp_dim=36,
        num_heads=4,
        vocab_size=50,
        pool_type="last" if name == "siglip" else "first",
        scan=scan,
      ),
      # SigLIP's image encoder is not projected.
      out_dim=(None, 24) if name == "siglip" else (20, 20),
      temperature_init=10.0,
      bias_init=-10.0 if name == "siglip" else None,
    )
    tensors = drawn(model, image, text)
    image_BD, text_BD, out = model.apply(nested(tensors), image, text)
    outputs = {"0": image_BD, "1": text_BD, "2/0": out["t"][0]}
    if name == "siglip":
      outputs["2/1"] = out["b"][0]
    config = {} if name == "siglip" else {"text_pool": "first"}
    save(
      f"big_vision_{name}",
      config,
      tensors,
      {"image": image, "text": text},
      outputs,
    )

  model = vit.Model(
    7, **sizes, patch_size=(8, 8), posemb="sincos2d", pool_type="gap", scan=True
  )
  oblong = images((3, 16, 32, 3), seed=8)
  tensors = drawn(model, oblong, prefix="")
  logits, out = model.apply(nested(tensors, ""), oblong)
  save(
    "big_vision_vit",
    {},
    tensors,
    {"image": oblong},
    {
      "0": logits,
      "1/pre_logits": out["pre_logits"],
      "1/tokens": out["encoded"],
    },
  )


def _naflex() -> None:
  """Images of a batch have grids larger and smaller than the learned one."""
  model = models("proj.image_text.two_towers").Model(
    image=dict(
      width=24,
      depth=2,
      mlp_dim=40,
      num_heads=3,
      pool_type="map",
      nposemb=5,
      scan=True,
    ),
    text=dict(
      width=16, depth=2, mlp_dim=36, num_heads=4, vocab_size=50, scan=True
    ),
    image_model="proj.image_text.naflex_vit",
    out_dim=(None, 24),
    temperature_init=10.0,
    bias_init=-10.0,
  )
  patches = images((4, 21, 48), seed=44)
  mask = (np.arange(21) < SHAPES.prod(1)[:, None]).astype(np.int32)
  place, columns = np.arange(21)[None], SHAPES[:, 1:]
  given = (patches, mask, mask * (place // columns), mask * (place % columns))
  tensors = drawn(model, given, IDS)
  image_BD, text_BD, out = model.apply(nested(tensors), given, IDS)
  save(
    "big_vision_naflex",
    {},
    tensors,
    {
      "image": patches,
      "image_mask": mask,
      "image_shapes": SHAPES,
      "text": IDS,
    },
    {"0": image_BD, "1": text_BD, "2/0": out["t"][0], "2/1": out["b"][0]},
  )
