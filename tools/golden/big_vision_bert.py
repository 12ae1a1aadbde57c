"""LiT with BERT: of big_vision, and of vision_transformer as it is published.

What it takes to run this is said in `big_vision.py`; also chex, and github
google/flaxformer (399ea3a) and google-research/vision_transformer (c6de1e5) in
the folders FLAXFORMER and VISION_TRANSFORMER. What they import and do not need
to compute, TensorFlow, quantisation and reading of files, is left out.

BERT's sizes are flaxformer's own, so tiny ones are put in their place. Its
heads are then not of 64, and the config says how many there are. What LiT
published has the names of before Linen, which the reference converts: that it
does so is checked.
"""

import dataclasses
import importlib.machinery
import os
import sys
from unittest import mock

import numpy as np
from golden import big_vision
from make_golden import images, save

TEXT = np.array(
  [[3, 7, 9, 11, 0, 0, 0], [5, 49, 1, 6, 8, 30, 0], [12, 2, 8, 4, 21, 13, 17]],
  np.int32,
)
SIZES = dict(
  hidden_size=24,
  intermediate_dim=36,
  num_hidden_layers=2,
  num_attention_heads=4,
  vocab_size=50,
  max_length=9,
)
HEADS = {"text_heads": SIZES["num_attention_heads"]}
OLD = {
  "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
  "LayerNorm_1": "LayerNorm_2",
  "MlpBlock_0": "MlpBlock_3",
}


def make() -> None:
  """Records the cases."""
  aqt = "aqt.jax_legacy.jax"
  for name in (
    "aqt",
    "aqt.jax_legacy",
    aqt,
    f"{aqt}.flax_layers",
    f"{aqt}.quant_config",
    f"{aqt}.quantization",
    "tensorflow",
    "tensorflow.io",
    "vit_jax.checkpoint",
    "vit_jax.preprocess",
  ):
    spec = importlib.machinery.ModuleSpec(name, None)
    sys.modules.setdefault(name, mock.MagicMock(__spec__=spec))
  for name in ("FLAXFORMER", "VISION_TRANSFORMER"):
    sys.path.insert(0, os.environ[name])
  configs = importlib.import_module("flaxformer.architectures.bert.configs")
  base = configs.BertBaseConfig()
  configs.BertBaseConfig = lambda: dataclasses.replace(base, **SIZES)
  _big_vision()
  _published()


def _big_vision() -> None:
  """Trained by the sigmoid's loss, with a bias of the logits."""
  model = big_vision.models("proj.image_text.two_towers").Model(
    image=dict(
      width=24,
      depth=2,
      mlp_dim=40,
      num_heads=3,
      patch_size=(8, 8),
      pool_type="tok",
      scan=True,
    ),
    text=dict(config="base"),
    text_model="proj.flaxformer.bert",
    out_dim=(None, 24),
    temperature_init=10.0,
    bias_init=-2.71,
  )
  image = images((3, 24, 24, 3), seed=51)
  tensors = big_vision.drawn(model, image, TEXT)
  image_BD, text_BD, out = model.apply(big_vision.nested(tensors), image, TEXT)
  save(
    "big_vision_lit_bert",
    HEADS,
    tensors,
    {"image": image, "text": TEXT},
    {"0": image_BD, "1": text_BD, "2/0": out["t"][0], "2/1": out["b"][0]},
  )


def _published() -> None:
  """The names have no "params/", the positions one for the class token."""
  import ml_collections
  from flax import traverse_util
  from flax.training import checkpoints

  lit = importlib.import_module("vit_jax.models_lit")
  model = lit.LitModel(
    image=ml_collections.ConfigDict(
      dict(
        patches=dict(size=(8, 8)),
        hidden_size=24,
        transformer=dict(
          mlp_dim=40, num_heads=3, num_layers=2, dropout_rate=0.0
        ),
        classifier="token",
      )
    ),
    text_model="bert",
    text=ml_collections.ConfigDict(dict(config="base")),
    pp=ml_collections.ConfigDict(),
    out_dim=(20, 20),
    model_name="tiny",
  )
  image = images((3, 24, 24, 3), seed=52)
  given = dict(images=image, tokens=TEXT)
  new = big_vision.drawn(model, prefix="", **given)
  image_BD, text_BD, out = model.apply(big_vision.nested(new, ""), **given)
  tensors = {}
  for name, value in new.items():
    parts = name.split("/")
    if "encoderblock_" in name:
      parts = [OLD.get(part, part) for part in parts]
    tensors["/".join(parts)] = value
  converted = checkpoints.convert_pre_linen(
    traverse_util.unflatten_dict(tensors, sep="/")
  )
  assert traverse_util.flatten_dict(converted, sep="/").keys() == new.keys()
  save(
    "lit_published",
    HEADS,
    tensors,
    {"image": image, "text": TEXT},
    {"0": image_BD, "1": text_BD, "2/0": out["t"][0]},
  )
