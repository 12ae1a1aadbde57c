import json
import logging
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from mmjax import build, errors, weights
from mmjax.models import clip_resnet
from mmjax.weights import files, loading


@pytest.mark.parametrize(
  "variant, pixels, text_width, published",
  [
    ("RN50", 224, 512, 102_007_137),
    ("RN101", 224, 512, 119_688_033),
    ("RN50x4", 288, 640, 178_300_601),
    ("RN50x16", 384, 768, 290_979_217),
    ("RN50x64", 448, 1024, 623_258_305),
  ],
)
def test_published_parameter_counts(variant, pixels, text_width, published):
  """From the shapes alone: depths, heads and pixels are found again."""
  size = clip_resnet.VARIANTS[variant]
  d, tensors = text_width, {}
  stem, channels = size["stem"], size["stem"]
  for i, (a, b) in enumerate(((3, stem // 2), (stem // 2,) * 2, (0, stem)), 1):
    tensors[f"visual.conv{i}.weight"] = (b, a or stem // 2, 3, 3)
    norm(tensors, f"visual.bn{i}", b)
  for i, depth in enumerate(size["depths"]):
    inner = stem * 2**i
    for n in range(depth):
      block = f"visual.layer{i + 1}.{n}."
      for j, shape in enumerate(
        (
          (inner, channels, 1, 1),
          (inner, inner, 3, 3),
          (4 * inner, inner, 1, 1),
        )
      ):
        tensors[f"{block}conv{j + 1}.weight"] = shape
        norm(tensors, f"{block}bn{j + 1}", shape[0])
      if not n:
        tensors[f"{block}downsample.0.weight"] = (4 * inner, channels, 1, 1)
        norm(tensors, f"{block}downsample.1", 4 * inner)
      channels = 4 * inner
  pool = "visual.attnpool."
  tensors[f"{pool}positional_embedding"] = ((pixels // 32) ** 2 + 1, channels)
  for x, out in (*((x, channels) for x in "qkv"), ("c", size["width"])):
    tensors[f"{pool}{x}_proj.weight"] = (out, channels)
    tensors[f"{pool}{x}_proj.bias"] = (out,)
  tensors |= {
    "token_embedding.weight": (49408, d),
    "positional_embedding": (77, d),
    "text_projection": (d, size["width"]),
    "logit_scale": (),
    "ln_final.weight": (d,),
    "ln_final.bias": (d,),
  }
  for n in range(12):
    block = f"transformer.resblocks.{n}."
    for name, shape in (
      ("attn.in_proj_weight", (3 * d, d)),
      ("attn.out_proj.weight", (d, d)),
      ("mlp.c_fc.weight", (4 * d, d)),
      ("mlp.c_proj.weight", (d, 4 * d)),
    ):
      tensors[block + name] = shape
      bias = name.replace("_weight", "_bias").replace(".weight", ".bias")
      tensors[block + bias] = shape[:1]
    for name in ("ln_1", "ln_2"):
      tensors[f"{block}{name}.weight"] = tensors[f"{block}{name}.bias"] = (d,)
  tensors |= {
    "input_resolution": (),
    "visual.bn1.num_batches_tracked": (),
  }
  empty = files.Checkpoint(
    pathlib.Path("x"),
    {k: files.Tensor(v, np.dtype("float32"), None) for k, v in tensors.items()},
    {},
  )
  recipe = loading.recognise(empty)
  assert recipe.model["image"]["heads"] == stem // 2
  assert recipe.model["text"]["heads"] == d // 64
  assert recipe.inputs["image"][0] == (1, pixels, pixels, 3)
  model = build.build("models", **recipe.model)
  inputs = {k: jnp.zeros(*v) for k, v in recipe.inputs.items()}
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs))
  loading._check(recipe, empty, nn.unbox(shapes))
  leaves = traverse_util.flatten_dict(nn.unbox(shapes["params"]), sep="/")
  assert sum(math.prod(x.shape) for x in leaves.values()) == published


def norm(tensors, name, channels):
  for leaf in ("weight", "bias", "running_mean", "running_var"):
    tensors[f"{name}.{leaf}"] = (channels,)


@pytest.mark.parametrize(
  "name",
  ["openai_clip_vit", pytest.param("openai_clip_rn", marks=pytest.mark.slow)],
)
def test_without_a_config_it_is_openais(recorded, caplog, name):
  with caplog.at_level(logging.WARNING):
    loaded, _, _ = recorded(name)
  assert not caplog.records
  text = loaded.recipe.model["text"]
  assert text["act"] == "quick_gelu" and text["heads"] == 1
  # A config may say that it is not.
  _, out, want = recorded(name, lambda config: config.update(quick_gelu=False))
  assert np.abs(out[1] - want["1"]).max() > 1e-3


def test_what_is_only_assumed_is_warned_of(recorded, caplog):
  def change(tensors):
    for name in ("input_resolution", "context_length", "vocab_size"):
      del tensors[name]

  with caplog.at_level(logging.WARNING):
    recorded("openai_clip_rn", tensors=change)
  (record,) = caplog.records
  assert "quick_gelu" in record.getMessage()


@pytest.mark.slow
@pytest.mark.parametrize(
  "name",
  ["open_clip_vit", pytest.param("open_clip_rn", marks=pytest.mark.slow)],
)
def test_the_config_of_open_clip_matters(recorded, name):
  def part(config):
    return config.get("model_cfg", config)

  for change, sides in (
    (lambda c: part(c).update(quick_gelu=True), (1,)),
    (lambda c: part(c)["vision_cfg"].update(head_width=4), (0,)),
    (lambda c: part(c)["text_cfg"].update(heads=2), (1,)),
    (lambda c: part(c)["text_cfg"].update(pool_type="last"), (1,)),
    (lambda c: part(c)["text_cfg"].update(no_causal_mask=True), (1,)),
    (lambda c: part(c)["text_cfg"].update(norm_kwargs={"eps": 0.1}), (1,)),
  ):
    _, out, want = recorded(name, change)
    for side in sides:
      assert np.abs(out[side] - want[str(side)]).max() > 1e-3


def test_open_clips_own_file_name(recorded, tmp_path):
  loaded, _, _ = recorded("open_clip_vit")
  config = json.loads((tmp_path / "config.json").read_text())
  (tmp_path / "config.json").rename(tmp_path / "open_clip_config.json")
  (tmp_path / "model.safetensors").rename(
    tmp_path / "open_clip_model.safetensors"
  )
  again = weights.load(tmp_path)
  assert again.recipe.config == config
  assert again.recipe.model == loaded.recipe.model


def test_a_bias_and_scales_that_are_vectors(recorded):
  def change(tensors):
    tensors["logit_scale"] = tensors["logit_scale"][None]
    tensors["logit_bias"] = np.array([-3.0], np.float32)

  _, out, want = recorded("open_clip_vit", tensors=change)
  np.testing.assert_allclose(out[2], (want["2/0"], -3), rtol=1e-5)


def test_a_config_of_other_weights_is_refused_by_name(recorded):
  for field, value in (
    ("embed_dim", 13),
    ("vision_cfg.width", 768),
    ("vision_cfg.patch_size", 16),
    ("vision_cfg.layers", 12),
    ("text_cfg.vocab_size", 49408),
    ("text_cfg.context_length", 77),
    ("text_cfg.layers", 3),
  ):

    def change(config, field=field, value=value):
      *part, name = field.split(".")
      config = config["model_cfg"]
      (config[part[0]] if part else config)[name] = value

    says = f"{field} = {value}: the tensors have"
    with pytest.raises(errors.InputError, match=says):
      recorded("open_clip_vit", change)
  with pytest.raises(errors.InputError, match=r"layers = \[1, 1, 1, 1\]"):
    recorded(
      "open_clip_rn",
      lambda config: config["vision_cfg"].update(layers=[1, 1, 1, 1]),
    )


def test_positions_that_are_no_square(recorded):
  def change(tensors):
    name = "visual.positional_embedding"
    tensors[name] = tensors[name][:-1]

  with pytest.raises(errors.InputError, match=r"vision_cfg\.image_size"):
    recorded("openai_clip_vit", tensors=change)


def test_a_single_file(recorded, tmp_path):
  """As a state dict comes, with no directory around it."""
  loaded, _, _ = recorded("openai_clip_rn")
  alone = tmp_path / "RN.safetensors"
  (tmp_path / "model.safetensors").rename(alone)
  assert weights.load(alone).recipe.model == loaded.recipe.model


def test_a_decoder_of_text_is_another_familys(recorded):
  def change(tensors):
    tensors["text_decoder.ln.weight"] = np.ones(3, np.float32)

  with pytest.raises(errors.InputError, match="no table knows"):
    recorded("openai_clip_rn", tensors=change)
