"""ViT's table: published counts, both of Google's generations, honest."""

import importlib.util
import math
import pathlib

import jax
import numpy as np
import pytest
from flax import traverse_util

from mmjax import build, errors, weights
from mmjax.weights import files, loading, rename
from mmjax.weights.tables import vit

_spec = importlib.util.spec_from_file_location(
  "tiny", pathlib.Path(__file__).parents[1] / "tiny.py"
)
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)


def checkpoint(shapes, config=None):
  """A checkpoint whose tensors can be asked for their shapes only."""
  tensors = {
    name: files.Tensor(shape, np.dtype("float32"), lambda: 1 / 0)
    for name, shape in shapes.items()
  }
  return files.Checkpoint(pathlib.Path("there"), tensors, config or {})


def flat(tree):
  return traverse_util.flatten_dict(tree, sep="/")


# What google/vit-base-patch16-224 has in its config.json.
BASE = dict(
  architectures=["ViTForImageClassification"],
  attention_probs_dropout_prob=0.0,
  hidden_act="gelu",
  hidden_dropout_prob=0.0,
  hidden_size=768,
  image_size=224,
  initializer_range=0.02,
  intermediate_size=3072,
  layer_norm_eps=1e-12,
  model_type="vit",
  num_attention_heads=12,
  num_channels=3,
  num_hidden_layers=12,
  patch_size=16,
  qkv_bias=True,
)


def test_base_has_the_published_count_and_every_tensor_its_place():
  shapes = tiny.shapes({**BASE, "image_size": (224, 224)}, 1000)
  found = checkpoint(shapes, BASE)
  recipe = vit.build(found)
  model = build.build("models", **recipe.model)
  declared = loading._declared(model, recipe)
  loading._check(recipe, found, loading.rules.unbox(declared))
  leaves = jax.tree.leaves(declared)
  assert sum(math.prod(x.shape) for x in leaves) == 86_567_656
  assert model.act == "gelu_exact" and model.epsilon == 1e-12
  assert recipe.inputs == {"image": ((1, 224, 224, 3), "float32")}


def test_a_bare_encoder_has_no_prefix_and_no_head():
  shapes = {
    name.removeprefix("vit."): shape
    for name, shape in tiny.shapes(tiny.CONFIG, 5).items()
    if not name.startswith("classifier")
  }
  shapes["pooler.dense.weight"] = (16, 16)
  recipe = vit.build(checkpoint(shapes, tiny.CONFIG))
  assert recipe.model["num_classes"] is None
  assert {r.theirs for r in recipe.rules} >= {"embeddings.cls_token"}
  assert recipe.model["pooler"]


def test_other_checkpoints_are_not_its_own():
  assert vit.build(checkpoint({"a": (1,)}, {"model_type": "bert"})) is None
  assert vit.build(checkpoint({"a": (1,)})) is None


def test_an_unknown_activation_is_named_and_defaults_stand_in():
  shapes = tiny.shapes(tiny.CONFIG, 5)
  with pytest.raises(
    errors.InputError, match=r"hidden_act = 'xielu'.*quick_gelu"
  ):
    vit.build(checkpoint(shapes, {**tiny.CONFIG, "hidden_act": "xielu"}))
  lacks = {k: v for k, v in tiny.CONFIG.items() if k != "layer_norm_eps"}
  lacks["patch_size"] = [tiny.CONFIG["patch_size"]] * 2
  model = vit.build(checkpoint(shapes, lacks)).model
  assert model["epsilon"] == 1e-12
  assert model["patch"] == tiny.CONFIG["patch_size"]


def test_oblong_images_keep_rows_and_columns_apart(tmp_path):
  size = (8, 32)
  tensors = tiny.hub(tmp_path, image_size=size)
  loaded = weights.load(tmp_path)
  rows, columns = size[0] // 8, size[1] // 8
  grid = loaded.variables["params"]["posemb"]["grid"]
  assert grid.shape == (rows, columns, 16)
  # Patches are counted row by row, after the class token's.
  np.testing.assert_array_equal(
    grid[rows - 1, 0],
    tensors["vit.embeddings.position_embeddings"][0, 1 + (rows - 1) * columns],
  )
  image = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("f4")
  apply = jax.jit(loaded.model.apply)
  logits, _ = apply(loaded.variables, image)
  for format in weights.FORMATS:
    path = weights.export(loaded, tmp_path / format, format=format)
    again = weights.load(path.parent)
    assert again.model == loaded.model
    jax.tree.map(
      np.testing.assert_array_equal, again.variables, loaded.variables
    )
    np.testing.assert_array_equal(apply(again.variables, image)[0], logits)


@pytest.mark.parametrize("old", [True, False])
def test_both_generations_of_google_by_names_written_out(tmp_path, old):
  tensors = tiny.draw(tiny.google(old=old))
  np.savez(tmp_path / "ViT.npz", **tensors)
  loaded = weights.load(tmp_path / "ViT.npz")
  model, params = loaded.model, loaded.variables["params"]
  assert (model.width, model.depth, model.heads, model.mlp) == (8, 2, 2, 12)
  assert (model.patch, model.num_classes) == (4, 5)
  assert (model.act, model.epsilon, model.pool) == ("gelu", 1e-6, "tok")
  second = "LayerNorm_2" if old else "LayerNorm_1"
  np.testing.assert_array_equal(
    params["encoder"]["blocks"]["norm2"]["bias"][1],
    tensors[f"Transformer/encoderblock_1/{second}/bias"],
  )
  image = jax.ShapeDtypeStruct((1, 12, 12, 3), "float32")
  logits, _ = jax.eval_shape(model.apply, loaded.variables, image)
  assert logits.shape == (1, 5)
  # It has no config: its names say what it is, in either format.
  for format in weights.FORMATS:
    path = weights.export(loaded, tmp_path / format, format=format)
    assert not (path.parent / "config.json").exists()
    opened = files.open_checkpoint(path.parent)
    assert opened.shapes == {k: v.shape for k, v in tensors.items()}
    for name, tensor in opened.tensors.items():
      np.testing.assert_array_equal(tensor.read(), tensors[name])
    again = weights.load(path.parent).variables
    jax.tree.map(np.testing.assert_array_equal, again, loaded.variables)


@pytest.mark.parametrize("old", [True, False])
def test_a_random_model_goes_out_and_comes_back_by_the_rules(tmp_path, old):
  recipe = vit.build(checkpoint(tiny.google(old=old, side=2, depth=3)))
  model = build.build("models", **recipe.model)
  declared = flat(loading.rules.unbox(loading._declared(model, recipe)))
  leaves = tiny.draw({name: x.shape for name, x in declared.items()})
  written = rename.write(recipe.rules, leaves)
  assert {k: v.shape for k, v in written.items()} == tiny.google(
    old=old, side=2, depth=3
  )
  np.savez(tmp_path / "x.npz", **written)
  again = flat(weights.load(tmp_path / "x.npz").variables)
  assert again.keys() == leaves.keys()
  for name, x in leaves.items():
    np.testing.assert_array_equal(again[name], x)


def test_positions_of_google_that_are_no_square():
  shapes = tiny.google()
  shapes["Transformer/posembed_input/pos_embedding"] = (1, 1 + 6, 8)
  with pytest.raises(errors.InputError, match="6 positions are no square"):
    vit.build(checkpoint(shapes))


def test_deit_has_two_tokens_and_with_a_teacher_two_heads(recorded):
  loaded, _, _ = recorded("deit_teacher")
  assert (loaded.model.pool, loaded.model.distilled) == ("pair", True)
  assert loaded.variables["params"]["posemb"]["extra"].shape == (2, 16)
  loaded, _, _ = recorded("deit_other_size")
  assert (loaded.model.pool, loaded.model.distilled) == ("tok", True)


def test_deit_with_a_teacher_and_no_labels_is_the_mean_of_two(recorded):
  def without(tensors):
    for name in list(tensors):
      if "classifier" in name:
        del tensors[name]

  _, out, want = recorded("deit_teacher", tensors=without)
  mean = want["1/tokens"][:, :2].mean(1)
  np.testing.assert_allclose(out[0], mean, atol=1e-5)


def test_images_of_any_size_only_as_the_reference_stretches(recorded):
  loaded, out, want = recorded("vit_other_size")
  assert loaded.model.interpolate == "bicubic" and not loaded.model.qkv_bias
  model = loaded.model.clone(interpolate="bicubic_antialias")
  image = np.random.default_rng(1).normal(size=(2, 43, 18, 3)).astype("f4")
  other, _ = jax.jit(model.apply)(loaded.variables, image)
  scale = np.abs(want["0"]).max()
  assert np.abs(out[0] - want["0"]).max() < 1e-5 * scale
  assert np.abs(other - want["0"]).max() > 1e-3 * scale
