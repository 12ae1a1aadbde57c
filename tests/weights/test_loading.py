"""Loading is whole, honest, sharded, and holds one tensor at a time."""

import importlib.util
import json
import pathlib
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from mmjax import errors, weights
from mmjax.parallel import mesh, rules
from mmjax.weights import files, loading

_spec = importlib.util.spec_from_file_location(
  "tiny", pathlib.Path(__file__).with_name("tiny.py")
)
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)


def flat(tree):
  return traverse_util.flatten_dict(tree, sep="/")


def fails(path, *says):
  with pytest.raises(errors.InputError) as caught:
    weights.load(path)
  for text in says:
    assert text in str(caught.value), caught.value
  return str(caught.value)


def test_a_checkpoint_comes_in_whole(tmp_path):
  tensors = tiny.hub(tmp_path)
  model, variables, recipe = weights.load(tmp_path)
  leaves = flat(variables)
  assert sum(x.size for x in leaves.values()) == sum(
    x.size for x in tensors.values()
  )
  assert all(x.dtype == np.float32 for x in leaves.values())
  assert recipe.table == "vit" and recipe.config == tiny.CONFIG
  logits, _ = jax.jit(model.apply)(variables, np.zeros((2, 24, 16, 3), "f4"))
  assert logits.shape == (2, 5) and np.isfinite(logits).all()


def test_missing_and_unexpected_are_counted_with_the_nearest_name(tmp_path):
  tensors = tiny.hub(tmp_path)
  value = "vit.encoder.layer.1.attention.attention.value.weight"
  tensors["vit.encoder.layer.1.attention.attention.valu.weight"] = tensors.pop(
    value
  )
  tensors |= {f"x{i:02}": np.ones(1, np.float32) for i in range(11)}
  # What tables ignore is no surprise.
  tensors["vit.embeddings.mask_token"] = np.ones((2, 2), np.float32)
  tiny.hub(tmp_path, tensors)
  text = fails(
    tmp_path,
    f"1 tensors ({value}) missing",
    "(nearest: vit.encoder.layer.1.attention.attention.valu.weight)",
    "12 tensors (vit.encoder",
    "x08, ...) not expected",
  )
  assert "x09" not in text and "mask_token" not in text


def test_too_few_and_too_many_layers(tmp_path):
  tensors = tiny.hub(tmp_path)
  tiny.hub(tmp_path, tensors, num_hidden_layers=3)
  fails(tmp_path, "16 tensors (vit.encoder.layer.2.", ", ...) missing")
  tiny.hub(tmp_path, tensors, num_hidden_layers=1)
  fails(tmp_path, "16 tensors (vit.encoder.layer.1.", ", ...) not expected")


def test_a_stack_of_no_layers_has_no_tensors(tmp_path):
  tensors = tiny.hub(tmp_path)
  tiny.hub(tmp_path, tensors, num_hidden_layers=0)
  fails(tmp_path, "32 tensors (vit.encoder.layer.0.", ", ...) not expected")
  tensors = {k: v for k, v in tensors.items() if ".layer." not in k}
  tiny.hub(tmp_path, tensors, num_hidden_layers=0)
  loaded = weights.load(tmp_path)
  assert "encoder" not in loaded.variables["params"]
  path = weights.export(loaded, tmp_path / "again")
  again = flat(weights.load(path.parent).variables)
  assert again.keys() == flat(loaded.variables).keys()


def test_misshapen_tensors_are_listed(tmp_path):
  tensors = tiny.hub(tmp_path)
  up = "vit.encoder.layer.0.intermediate.dense.weight"
  tensors[up] = tensors[up][:-1]
  tensors["vit.layernorm.bias"] = tensors["vit.layernorm.bias"][None]
  tiny.hub(tmp_path, tensors)
  fails(
    tmp_path,
    "2 tensors (",
    f"{up} (23, 16) for encoder/blocks/mlp/up/kernel (16, 24)",
    "vit.layernorm.bias (1, 16) for norm/bias (16,)",
    "of another shape",
  )
  # A config of another model: every tensor would be listed, ten are.
  tiny.hub(tmp_path, image_size=[32, 16])
  tiny.hub(tmp_path, tiny.draw(tiny.shapes(tiny.CONFIG, 5)), hidden_size=32)
  fails(tmp_path, "of another shape", ", ...)")


def test_heads_that_do_not_divide_the_width(tmp_path):
  tiny.hub(tmp_path, num_attention_heads=3)
  fails(tmp_path, "width 16 is no multiple of heads = 3")


@pytest.mark.parametrize(
  "change", [{"num_attention_heads": "4"}, {"image_size": None}]
)
def test_a_value_of_another_type_is_told(tmp_path, change):
  tiny.hub(tmp_path)
  file = tmp_path / "config.json"
  file.write_text(json.dumps(tiny.CONFIG | change))
  fails(tmp_path, "model_type = 'vit'", "TypeError", "written as text")


def test_no_table_knows_it(tmp_path):
  save_file({"a": np.ones(1)}, tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text('{"model_type": "wombat"}')
  fails(tmp_path, "no table knows", "'wombat'", "1 tensors, the first a", "vit")
  fails(tmp_path / "model.safetensors", f"give {str(tmp_path)!r}")


@pytest.fixture
def layout():
  return rules.Layout(mesh.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))


@pytest.mark.parametrize("kind", [None, "bfloat16"])
def test_onto_a_mesh_of_eight(tmp_path, layout, kind):
  tiny.hub(tmp_path)
  model, here, _ = weights.load(tmp_path, dtype=kind)
  _, there, _ = weights.load(tmp_path, layout=layout, dtype=kind)
  places = flat(
    rules.shardings(
      layout,
      jax.eval_shape(
        model.init, jax.random.key(0), np.zeros((1, 24, 16, 3), "f4")
      ),
    )
  )
  here, there = flat(here), flat(there)
  assert here.keys() == there.keys() == places.keys()
  split = 0
  for name, x in there.items():
    assert x.sharding == places[name], name
    assert x.dtype == here[name].dtype == np.dtype(kind or "float32")
    np.testing.assert_array_equal(np.asarray(x), np.asarray(here[name]), name)
    for shard in x.addressable_shards:
      np.testing.assert_array_equal(
        np.asarray(shard.data), np.asarray(here[name])[shard.index]
      )
    split += not x.sharding.is_fully_replicated
  assert split > 5
  up = there["params/encoder/blocks/mlp/up/kernel"]
  assert up.sharding.shard_shape(up.shape) == (2, 8, 12)


def test_bfloat16_is_the_rounded_float32(tmp_path):
  tensors = tiny.hub(tmp_path)
  variables = flat(weights.load(tmp_path, dtype="bfloat16").variables)
  np.testing.assert_array_equal(
    np.asarray(variables["params/head/kernel"]),
    tensors["classifier.weight"].T.astype(ml_dtypes.bfloat16),
  )


@pytest.mark.parametrize("eight", [False, True])
def test_each_tensor_is_read_once(tmp_path, layout, eight, monkeypatch):
  tensors, seen = tiny.hub(tmp_path), []
  real = files._one_safetensor

  def counting(path, name):
    seen.append(name)
    return real(path, name)

  monkeypatch.setattr(files, "_one_safetensor", counting)
  weights.load(tmp_path, layout=layout if eight else None)
  positions = "vit.embeddings.position_embeddings"  # two leaves of ours
  assert sorted(seen) == sorted([*tensors, positions])


LARGE = dict(
  hidden_size=256,
  num_hidden_layers=4,
  intermediate_size=2048,
  hidden_act="relu",
)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
  """A folder with a ViT of 32 MiB in each format; bytes of its largest."""
  folder = tmp_path_factory.mktemp("large")
  tensors = tiny.hub(folder / "hf", classes=12000, **LARGE)
  weights.export(weights.load(folder / "hf"), folder / "npz", format="npz")
  return folder, max(x.nbytes for x in tensors.values())


@pytest.mark.parametrize("eight", [False, True])
@pytest.mark.parametrize("format", weights.FORMATS)
def test_the_host_holds_one_tensor_beside_the_result(
  large, layout, format, eight
):
  folder, largest = large
  keywords = dict(layout=layout if eight else None)
  tracemalloc.start()
  variables = weights.load(folder / format, **keywords).variables
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  # Devices that hold the same share one buffer.
  result = {
    s.data.unsafe_buffer_pointer(): s.data.nbytes
    for x in jax.tree.leaves(variables)
    for s in x.addressable_shards
  }
  beside = peak - sum(result.values())
  print(
    f"{format}, {8 if eight else 1} devices: result "
    f"{sum(result.values()) / 2**20:.1f} MiB, largest tensor "
    f"{largest / 2**20:.1f} MiB, peak beside the result {beside / largest:.3f} "
    "of it"
  )
  assert largest > 10 * 2**20
  assert 0.9 * largest < beside < 1.3 * largest


def test_jax_takes_shards_over_without_a_copy():
  array = loading._empty((1000, 7), np.float32)
  array[...] = 1
  address = array.ctypes.data
  assert address % 64 == 0
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  made = jax.make_array_from_callback(array.shape, place, lambda _: array)
  assert made.unsafe_buffer_pointer() == address


def test_an_unknown_format_is_refused(tmp_path):
  tiny.hub(tmp_path)
  with pytest.raises(errors.InputError, match=r"'onnx'.*hf, npz"):
    weights.export(weights.load(tmp_path), tmp_path / "out", format="onnx")
  assert not (tmp_path / "out").exists()


def test_trained_further_and_written_in_bfloat16(tmp_path):
  tiny.hub(tmp_path)
  loaded = weights.load(tmp_path, dtype="bfloat16")
  changed = jax.tree.map(lambda x: x * 2, loaded.variables)
  for format in weights.FORMATS:
    path = weights.export(
      loaded._replace(variables=changed), tmp_path / format, format=format
    )
    again = weights.load(path.parent, dtype="bfloat16")
    assert again.recipe.config == tiny.CONFIG
    jax.tree.map(np.testing.assert_array_equal, again.variables, changed)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_what_no_leaf_is_made_of_is_written_again(tmp_path, kind):
  token = np.arange(16, dtype=kind).reshape(1, 1, 16) / 3
  tensors = tiny.draw(tiny.shapes(tiny.CONFIG, 5))
  tensors["vit.embeddings.mask_token"] = token
  tiny.hub(tmp_path, tensors)
  loaded = weights.load(tmp_path, dtype="bfloat16")
  assert list(loaded.recipe.kept) == ["vit.embeddings.mask_token"]
  for format in weights.FORMATS:
    path = weights.export(loaded, tmp_path / format, format=format)
    found = files.open_checkpoint(path).tensors
    assert found.keys() == tensors.keys()
    again = found["vit.embeddings.mask_token"].read()
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, token.astype(np.float32))
  # A file without it comes back without it.
  del tensors["vit.embeddings.mask_token"]
  tiny.hub(tmp_path, tensors)
  path = weights.export(weights.load(tmp_path), tmp_path / "hf")
  assert files.open_checkpoint(path).tensors.keys() == tensors.keys()
