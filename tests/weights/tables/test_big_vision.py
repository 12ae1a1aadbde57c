import json
import math
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from mmjax import build, errors, weights
from mmjax.weights import files, loading
from mmjax.weights.tables import big_vision

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"


def blocks(width, heads, mlp):
  """Shapes of a block, by the names of big_vision."""
  attention = "MultiHeadDotProductAttention_0"
  out = {
    f"LayerNorm_{i}/{x}": (width,) for i in "01" for x in ("scale", "bias")
  }
  for name in ("query", "key", "value"):
    out[f"{attention}/{name}/kernel"] = (width, heads, width // heads)
    out[f"{attention}/{name}/bias"] = (heads, width // heads)
  return out | {
    f"{attention}/out/kernel": (heads, width // heads, width),
    f"{attention}/out/bias": (width,),
    "MlpBlock_0/Dense_0/kernel": (width, mlp),
    "MlpBlock_0/Dense_0/bias": (mlp,),
    "MlpBlock_0/Dense_1/kernel": (mlp, width),
    "MlpBlock_0/Dense_1/bias": (width,),
  }


def siglip(width, heads, mlp, depth, patch, count, vocab, scan):
  """Shapes of a SigLIP; its MAP head is a block with one norm, and a probe."""
  block, out = blocks(width, heads, mlp), {"t": (1,), "b": (1,)}
  for stack in ("img/Transformer", "txt/Encoder_0"):
    for name, shape in block.items():
      if scan:
        out[f"{stack}/encoderblock/{name}"] = (depth, *shape)
      else:
        for n in range(depth):
          out[f"{stack}/encoderblock_{n}/{name}"] = shape
    out |= {f"{stack}/encoder_norm/{x}": (width,) for x in ("scale", "bias")}
  for name, shape in block.items():
    if "LayerNorm_1" not in name:
      out[f"img/MAPHead_0/{name}"] = shape
  return {
    f"params/{k}": v
    for k, v in {
      **out,
      "img/MAPHead_0/probe": (1, 1, width),
      "img/embedding/kernel": (patch, patch, 3, width),
      "img/embedding/bias": (width,),
      "img/pos_embedding": (1, count, width),
      "txt/Embed_0/embedding": (vocab, width),
      "txt/pos_embedding": (1, 64, width),
      "txt/head/kernel": (width, width),
      "txt/head/bias": (width,),
    }.items()
  }


def checkpoint(shapes, config=None):
  tensors = {
    k: files.Tensor(v, np.dtype("float32"), lambda: 1 / 0)
    for k, v in shapes.items()
  }
  return files.Checkpoint(pathlib.Path("x.npz"), tensors, config or {})


B16 = (768, 12, 3072, 12, 16, 196, 32_000)
SO14 = (1152, 16, 4304, 27, 14, 27 * 27, 32_000)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
  "sizes, published", [(B16, 203_155_970), (SO14, 877_960_498)]
)
def test_published_counts_and_every_tensor_has_its_place(
  sizes, published, scan
):
  found = checkpoint(siglip(*sizes, scan) | {"opt/count": (), "params/b": (1,)})
  recipe = loading.recognise(found)
  assert recipe.table == "big_vision"
  model = build.build("models", **recipe.model)
  shapes = loading._declared(model, recipe)
  loading._check(recipe, found, loading.rules.unbox(shapes))
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == published
  # Google's GELU is the one with tanh, whose error would be seen nowhere else.
  assert model.image.act == model.text.act == "gelu"
  assert model.image.epsilon == model.text.epsilon == 1e-6


def as_big_vision(hub):
  """Lays a SigLIP of the hub out in big_vision's names and shapes."""
  out = {}

  def dense(ours, theirs):
    out[f"{ours}/kernel"] = hub[f"{theirs}.weight"].T
    out[f"{ours}/bias"] = hub[f"{theirs}.bias"]

  def norm(ours, theirs):
    out[f"{ours}/scale"] = hub[f"{theirs}.weight"]
    out[f"{ours}/bias"] = hub[f"{theirs}.bias"]

  def heads(ours, qkv, last, N):
    for name, (weight, bias) in zip(
      ("query", "key", "value"), qkv, strict=True
    ):
      D = weight.shape[1]
      out[f"{ours}/{name}/kernel"] = weight.T.reshape(D, N, D // N)
      out[f"{ours}/{name}/bias"] = bias.reshape(N, D // N)
    D = hub[f"{last}.bias"].size
    out[f"{ours}/out/kernel"] = hub[f"{last}.weight"].T.reshape(N, D // N, D)
    out[f"{ours}/out/bias"] = hub[f"{last}.bias"]

  for side, tower, stack, N in (
    ("vision_model", "img", "Transformer", 3),
    ("text_model", "txt", "Encoder_0", 4),
  ):
    for n in range(2):
      layer = f"{side}.encoder.layers.{n}"
      block = f"{tower}/{stack}/encoderblock_{n}"
      norm(f"{block}/LayerNorm_0", f"{layer}.layer_norm1")
      norm(f"{block}/LayerNorm_1", f"{layer}.layer_norm2")
      dense(f"{block}/MlpBlock_0/Dense_0", f"{layer}.mlp.fc1")
      dense(f"{block}/MlpBlock_0/Dense_1", f"{layer}.mlp.fc2")
      names = [f"{layer}.self_attn.{x}_proj" for x in "qkv"]
      qkv = [(hub[f"{x}.weight"], hub[f"{x}.bias"]) for x in names]
      attention = f"{block}/MultiHeadDotProductAttention_0"
      heads(attention, qkv, f"{layer}.self_attn.out_proj", N)
  head, ours = "vision_model.head", "img/MAPHead_0"
  qkv = zip(
    np.split(hub[f"{head}.attention.in_proj_weight"], 3),
    np.split(hub[f"{head}.attention.in_proj_bias"], 3),
    strict=True,
  )
  heads(
    f"{ours}/MultiHeadDotProductAttention_0",
    list(qkv),
    f"{head}.attention.out_proj",
    3,
  )
  norm(f"{ours}/LayerNorm_0", f"{head}.layernorm")
  dense(f"{ours}/MlpBlock_0/Dense_0", f"{head}.mlp.fc1")
  dense(f"{ours}/MlpBlock_0/Dense_1", f"{head}.mlp.fc2")
  out[f"{ours}/probe"] = hub[f"{head}.probe"]
  norm("img/Transformer/encoder_norm", "vision_model.post_layernorm")
  norm("txt/Encoder_0/encoder_norm", "text_model.final_layer_norm")
  dense("txt/head", "text_model.head")
  patches = hub["vision_model.embeddings.patch_embedding.weight"]
  text = "text_model.embeddings"
  return {
    **out,
    "img/embedding/kernel": patches.transpose(2, 3, 1, 0),
    "img/embedding/bias": hub["vision_model.embeddings.patch_embedding.bias"],
    "img/pos_embedding": hub[
      "vision_model.embeddings.position_embedding.weight"
    ][None],
    "txt/Embed_0/embedding": hub[f"{text}.token_embedding.weight"],
    "txt/pos_embedding": hub[f"{text}.position_embedding.weight"][None],
    "t": hub["logit_scale"],
    "b": hub["logit_bias"],
  }


def test_the_hubs_siglip_renamed_is_the_same_model_bitwise(tmp_path):
  with np.load(GOLDEN / "siglip.npz") as case:
    config = json.loads(str(case["config"]))
    hub = {
      k.removeprefix("tensor/"): case[k]
      for k in case.files
      if k.startswith("tensor/")
    }
  (tmp_path / "config.json").write_text(json.dumps(config))
  save_file(hub, tmp_path / "model.safetensors")
  want = weights.load(tmp_path)
  renamed = {f"params/{k}": v for k, v in as_big_vision(hub).items()}
  np.savez(tmp_path / "webli.npz", **renamed)
  got = weights.load(tmp_path / "webli.npz")
  jax.tree.map(np.testing.assert_array_equal, got.variables, want.variables)
  # They only stretch positions for images of other sizes otherwise.
  stretch = got.model.image.clone(interpolate=want.model.image.interpolate)
  assert got.model.clone(image=stretch) == want.model


def test_a_text_without_siglips_bias_needs_its_pool():
  shapes = siglip(16, 2, 20, 2, 4, 9, 11, True)
  del shapes["params/b"]
  with pytest.raises(
    errors.InputError, match=r"no b, so is no SigLIP.*text_pool"
  ):
    big_vision.build(checkpoint(shapes))
  with pytest.raises(errors.InputError, match="text_pool = 'max'"):
    big_vision.build(checkpoint(shapes, {"text_pool": "max"}))
  recipe = big_vision.build(checkpoint(shapes, {"text_pool": "first"}))
  assert recipe.model["text"]["pool"] == "cls"
  assert recipe.model["bias_init"] is None


def test_what_is_not_known_is_named():
  shapes = siglip(16, 2, 20, 2, 4, 9, 11, False)
  with pytest.raises(errors.InputError, match=r"8 positions.*no square"):
    big_vision.build(
      checkpoint(shapes | {"params/img/pos_embedding": (1, 8, 16)})
    )
  with pytest.raises(errors.InputError, match="patches of 4 by 2 pixels"):
    kernel = {"params/img/embedding/kernel": (4, 2, 3, 16)}
    big_vision.build(checkpoint(shapes | kernel))
  bert = {k: v for k, v in shapes.items() if "txt/Encoder_0" not in k}
  with pytest.raises(errors.InputError, match="no params/txt/BertEncoder_0"):
    big_vision.build(checkpoint(bert))
  assert big_vision.build(checkpoint({"a": (1,)})) is None


def test_a_class_token_has_no_position_and_the_old_files_are_vits(recorded):
  loaded, _, _ = recorded("big_vision_lit")
  assert loaded.model.image.pool == "tok"
  assert not loaded.model.image.token_posemb
  assert set(loaded.variables["params"]["image"]["posemb"]) == {"grid"}
  old = {
    "Transformer/encoder_norm/scale": (8,),
    "Transformer/posembed_input/pos_embedding": (1, 10, 8),
  }
  assert big_vision.build(checkpoint(old)) is None


def naflex(width, patch, side):
  """Shapes of a SigLIP whose image encoder is NaFlex."""
  return siglip(width, 2, 20, 2, 4, 9, 11, True) | {
    "params/img/embedding/kernel": (patch * patch * 3, width),
    "params/img/pos_embedding": (side, side, width),
  }


def test_naflex_is_told_by_its_patches():
  recipe = loading.recognise(checkpoint(naflex(16, 5, 7)))
  image = recipe.model["image"]
  assert (image["name"], image["patch"], image["side"]) == ("naflex", 5, 7)
  assert image["pool"] == "map"
  assert set(recipe.inputs) == {"image", "image_mask", "image_shapes", "text"}


@pytest.mark.parametrize(
  "change, message",
  [
    ({"img/embedding/kernel": (47, 16)}, r"\(47, 16\).*no square of pixels"),
    ({"img/pos_embedding": (1, 9, 16)}, r"\(1, 9, 16\), which is no square"),
    ({"img/pos_embedding": (3, 3, 8)}, r"\(3, 3, 8\), which is no square"),
    ({"img/pos_embedding": ()}, "pos_embedding missing"),
    ({"img/patchln_pre/scale": (48,)}, "patchln_pre"),
  ],
)
def test_what_naflex_is_not_is_named(change, message):
  change = {f"params/{k}": v for k, v in change.items()}
  with pytest.raises(errors.InputError, match=message):
    big_vision.build(checkpoint(naflex(16, 4, 3) | change))


def test_naflex_alone_with_a_head_is_projected(tmp_path, rng):
  with np.load(GOLDEN / "big_vision_naflex.npz") as case:
    found = {
      k.removeprefix("tensor/params/img/"): case[k]
      for k in case.files
      if k.startswith("tensor/params/img/")
    }
    image, mask, shapes = (
      case[f"input/image{x}"] for x in ("", "_mask", "_shapes")
    )
  np.savez(tmp_path / "bare.npz", **found)
  kernel = rng.normal(size=(24, 5)).astype(np.float32)
  bias = rng.normal(size=5).astype(np.float32)
  found |= {"head/kernel": kernel, "head/bias": bias}
  np.savez(tmp_path / "head.npz", **found)
  out = []
  for name in ("bare", "head"):
    loaded = weights.load(tmp_path / f"{name}.npz")
    call = jax.jit(loaded.model.apply)
    out.append(np.asarray(call(loaded.variables, image, mask, shapes)[0]))
  np.testing.assert_allclose(out[1], out[0] @ kernel + bias, atol=1e-4)
  written = np.load(weights.export(loaded, tmp_path, format="npz"))
  assert set(written.files) == set(found)
  for name, x in found.items():
    np.testing.assert_array_equal(written[name], x, name)
