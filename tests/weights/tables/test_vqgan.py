"""VQGAN's table: both layouts, sizes from shapes, what is refused."""

import math
import pathlib
import re

import jax
import numpy as np
import pytest
from flax import serialization, traverse_util

from mmjax import build, errors, weights
from mmjax.weights import files, loading
from mmjax.weights.tables import vqgan

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"

F16 = dict(
  ch=128,
  ch_mult=(1, 1, 2, 2, 4),
  num_res_blocks=2,
  attention=(4,),
  z_channels=256,
  n_embed=16384,
  embed_dim=256,
)


def checkpoint(shapes, config=None):
  """A checkpoint whose tensors can be asked for their shapes only."""
  tensors = {
    name: files.Tensor(shape, np.dtype("float32"), lambda: 1 / 0)
    for name, shape in shapes.items()
  }
  return files.Checkpoint(pathlib.Path("there"), tensors, config or {})


def taming(
  *, ch, ch_mult, num_res_blocks, attention, z_channels, n_embed, embed_dim
):
  """Shapes of a checkpoint of taming-transformers."""
  found = {"quantize.embedding.weight": (n_embed, embed_dim)}

  def conv(name, given, made, size):
    found[f"{name}.weight"] = (made, given, size, size)
    found[f"{name}.bias"] = (made,)

  def norm(name, width):
    found[f"{name}.weight"] = found[f"{name}.bias"] = (width,)

  def block(name, given, made):
    norm(f"{name}.norm1", given)
    conv(f"{name}.conv1", given, made, 3)
    norm(f"{name}.norm2", made)
    conv(f"{name}.conv2", made, made, 3)
    if given != made:
      conv(f"{name}.nin_shortcut", given, made, 1)

  def attend(name, width):
    norm(f"{name}.norm", width)
    for x in ("q", "k", "v", "proj_out"):
      conv(f"{name}.{x}", width, width, 1)

  def half(name, order, side, count, change, given):
    for i in order:
      made = ch * ch_mult[i]
      for j in range(count):
        block(f"{name}.{side}.{i}.block.{j}", given, made)
        given = made
        if i in attention:
          attend(f"{name}.{side}.{i}.attn.{j}", made)
      if i != order[-1]:
        conv(f"{name}.{side}.{i}.{change}.conv", made, made, 3)
    wide = ch * ch_mult[-1]
    block(f"{name}.mid.block_1", wide, wide)
    attend(f"{name}.mid.attn_1", wide)
    block(f"{name}.mid.block_2", wide, wide)

  levels = list(range(len(ch_mult)))
  wide = ch * ch_mult[-1]
  conv("encoder.conv_in", 3, ch, 3)
  half("encoder", levels, "down", num_res_blocks, "downsample", ch)
  norm("encoder.norm_out", wide)
  conv("encoder.conv_out", wide, z_channels, 3)
  conv("quant_conv", z_channels, embed_dim, 1)
  conv("post_quant_conv", embed_dim, z_channels, 1)
  conv("decoder.conv_in", z_channels, wide, 3)
  half("decoder", levels[::-1], "up", num_res_blocks + 1, "upsample", wide)
  norm("decoder.norm_out", ch * ch_mult[0])
  conv("decoder.conv_out", ch * ch_mult[0], 3, 3)
  return found


def flax(shapes):
  """The same checkpoint with the names and layouts of vqgan-jax."""
  found = {}
  for name, shape in shapes.items():
    module, _, leaf = name.rpartition(".")
    if leaf == "weight":
      leaf = {1: "scale", 2: "embedding", 4: "kernel"}[len(shape)]
    if len(shape) == 4:
      shape = (*shape[2:], shape[1], shape[0])
    module = re.sub(r"\.(\d+)", r"_\1", module).replace(".", "/")
    found[f"{module}/{leaf}"] = shape
  return found


def check(found):
  """Returns the recipe, and the count of the model that it names."""
  recipe = vqgan.build(found)
  model = build.build("models", **recipe.model)
  declared = loading._declared(model, recipe)
  loading._check(recipe, found, loading.rules.unbox(declared))
  leaves = jax.tree.leaves(declared)
  return recipe, sum(math.prod(x.shape) for x in leaves)


@pytest.mark.parametrize("layout", [dict, flax])
def test_f16_has_the_published_count_and_every_tensor_its_place(layout):
  recipe, count = check(checkpoint(layout(taming(**F16))))
  assert count == 76_073_859
  assert recipe.model == dict(
    name="vqgan",
    width=128,
    multiples=(1, 1, 2, 2, 4),
    blocks=2,
    attention=(4,),
    latent=256,
    codes=16384,
    code_width=256,
    channels=3,
    out_channels=3,
    dropout=0.0,
  )


def test_levels_with_attention_are_those_that_have_it():
  sizes = {**F16, "ch": 32, "ch_mult": (1, 2, 1), "num_res_blocks": 1}
  for attention in ((), (1,), (0, 2)):
    recipe, _ = check(checkpoint(taming(**{**sizes, "attention": attention})))
    assert recipe.model["attention"] == attention


SMALL = taming(**{**F16, "ch": 32, "ch_mult": (1, 2), "attention": (1,)})


def test_losses_of_training_are_ignored():
  more = {
    **SMALL,
    "loss.discriminator.main.0.weight": (64, 3, 4, 4),
    "loss.perceptual_loss.lin0.model.1.weight": (1, 64, 1, 1),
  }
  assert check(checkpoint(more))[1] == check(checkpoint(SMALL))[1]
  with pytest.raises(errors.InputError, match=r"\(decoder\.extra\) not exp"):
    check(checkpoint({**SMALL, "decoder.extra": (1,)}))


def test_a_config_flat_or_as_tamings_yaml_has_it():
  dd = dict(
    double_z=False,
    z_channels=256,
    resolution=32,
    in_channels=3,
    out_ch=3,
    ch=32,
    ch_mult=[1, 2],
    num_res_blocks=2,
    attn_resolutions=[16],
    dropout=0.1,
  )
  params = dict(embed_dim=256, n_embed=16384, ddconfig=dd)
  flat = dict(embed_dim=256, n_embed=16384, **dd)
  whole = dict(model=dict(target="VQModel", params=params))
  for config in (flat, params, whole):
    recipe = vqgan.build(checkpoint(SMALL, config))
    assert recipe.model["dropout"] == 0.1
    assert recipe.config == config
  for field, value, words in (
    ("ch", 64, "ch = 64, but"),
    ("ch_mult", [1, 4], r"ch_mult = \(1, 4\), but"),
    ("num_res_blocks", 3, "num_res_blocks = 3"),
    ("attn_resolutions", [32], r"at levels \(0,\).*at levels \(1,\)"),
    ("double_z", True, "double_z = True; our"),
    ("resamp_with_conv", False, "resamp_with_conv = False; our"),
    ("give_pre_end", True, "give_pre_end = True; our"),
  ):
    bad = dict(params, ddconfig={**dd, field: value})
    with pytest.raises(errors.InputError, match=words):
      vqgan.build(checkpoint(SMALL, bad))
  with pytest.raises(errors.InputError, match="n_embed = 1024, but"):
    vqgan.build(checkpoint(SMALL, {**params, "n_embed": 1024}))


def test_gumbel_quantisation_has_logits_beside_its_codebook():
  gumbel = dict(SMALL)
  codes, width = gumbel.pop("quantize.embedding.weight")
  gumbel["quantize.embed.weight"] = (codes, width)
  with pytest.raises(errors.InputError, match=r"no tensor 'quantize\.proj"):
    vqgan.build(checkpoint(gumbel))
  gumbel["quantize.proj.weight"] = (codes, width, 1, 1)
  gumbel["quantize.proj.bias"] = (codes,)
  recipe, count = check(checkpoint(gumbel))
  assert recipe.model["quantiser"] == "gumbel"
  assert count == check(checkpoint(SMALL))[1] + width * codes + codes
  with pytest.raises(errors.InputError, match=r"remap = 'used\.npy'"):
    vqgan.build(checkpoint(gumbel, {"remap": "used.npy"}))


def test_torn_files_are_refused():
  torn = {n: s for n, s in SMALL.items() if "encoder.down.0.block.0" not in n}
  with pytest.raises(errors.InputError, match=r"encoder\.down\.0\.block\.0"):
    vqgan.build(checkpoint(torn))
  assert vqgan.build(checkpoint({"encoder.conv_in.weight": (1,)})) is None


def test_flaxs_msgpack_is_read(tmp_path):
  with np.load(GOLDEN / "vqgan_jax.npz") as file:
    flat = {
      k.removeprefix("tensor/"): file[k]
      for k in file.files
      if k.startswith("tensor/")
    }
  tree = traverse_util.unflatten_dict(flat, sep="/")
  path = tmp_path / "flax_model.msgpack"
  path.write_bytes(serialization.msgpack_serialize(tree))
  loaded = weights.load(tmp_path)
  kernel = flat["encoder/mid/attn_1/q/kernel"]
  ours = loaded.variables["params"]["encoder"]["mid_attn_1"]["attention"]
  np.testing.assert_array_equal(ours["query"]["kernel"][:, 0], kernel[0, 0])
  table = flat["quantize/embedding/embedding"]
  np.testing.assert_array_equal(
    loaded.variables["params"]["codebook"]["table"], table
  )
