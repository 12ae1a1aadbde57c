"""Every recorded reference: its checkpoint is read, computed, written, read.

The files are made by tools/make_golden.py with PyTorch and transformers; how a
case is laid out is said there.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from mmjax import weights
from mmjax.layers.generate import generate

FOLDER = pathlib.Path(__file__).parent / "golden"
CASES = sorted(p.stem for p in FOLDER.glob("*.npz"))
TOLERANCE = 1e-4  # of the largest value


def read(name):
  """Returns the config, and the arrays by kind and name."""
  parts = {"tensor": {}, "input": {}, "output": {}, "generate": {}}
  with np.load(FOLDER / f"{name}.npz") as file:
    for key in file.files:
      kind, _, rest = key.partition("/")
      if kind in parts:
        parts[kind][rest] = file[key]
    return json.loads(str(file["config"])), parts


def hub(folder, config, tensors):
  """Lays a case out as the model hub does; config {} is none."""
  if config:
    (folder / "config.json").write_text(json.dumps(config))
  save_file(tensors, folder / "model.safetensors")
  return folder


def at(tree, path):
  if path == ".":
    return tree
  for key in path.split("/"):
    tree = tree[int(key) if key.isdecimal() else key]
  return tree


def flat(variables):
  return traverse_util.flatten_dict(variables, sep="/")


def same(a, b):
  """Bitwise, names and all."""
  a, b = flat(a), flat(b)
  assert a.keys() == b.keys()
  for name, x in a.items():
    assert x.dtype == b[name].dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(b[name]), name)


def decodes(name):
  """Does the case hold ids? Opening reads no array."""
  with np.load(FOLDER / f"{name}.npz") as file:
    return any(key.startswith("generate/") for key in file.files)


def until_end(ids, prompt, settings):
  """Returns rows of full length, with padding after the token that ends them.

  The reference fills rows of beam search up with that token, where the id of
  padding is 0.
  """
  out = np.full((len(ids), settings["length"]), settings.get("pad_id", 0))
  for row, found in zip(out, ids, strict=True):
    ends = np.isin(found[prompt:], settings["eos_ids"]).nonzero()[0]
    stop = prompt + ends[0] + 1 if ends.size else len(found)
    row[:stop] = found[:stop]
  return out


# These compile for long, and what decodes is that of other cases.
LONG = (
  "big_vision_paligemma2",
  "blip_answer",
  "blip_caption",
  "dalle_mini",
  "gemma2",
  "gemma_grouped",
  "gemma_one_kv",
  "gpt_neo",
  "gpt_neo_uneven",
  "paligemma2",
  "t5_v1_1",
  "whisper",
)


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow if name in LONG else ())
    for name in filter(decodes, CASES)
  ],
)
def test_decodes_to_the_ids_of_the_reference(name, tmp_path):
  config, parts = read(name)
  loaded = weights.load(hub(tmp_path, config, parts["tensor"]))
  ways = sorted({key.split("/")[0] for key in parts["generate"]})
  unlike = 0
  for way in ways:
    given = {
      key.split("/")[1]: value
      for key, value in parts["generate"].items()
      if key.startswith(f"{way}/")
    }
    settings = json.loads(str(given.pop("settings")))
    prompt, ids = given.pop("prompt"), given.pop("ids")
    got = generate(loaded.model, loaded.variables, prompt, given, **settings)
    want = until_end(ids, prompt.shape[1], settings)
    np.testing.assert_array_equal(got, want, err_msg=way)
    unlike += len(np.unique(want[:, prompt.shape[1] :], axis=0)) - 1
  # The comparison can fail: rows are not all alike.
  assert unlike


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference_and_comes_back(name, tmp_path):
  config, parts = read(name)
  loaded = weights.load(hub(tmp_path, config, parts["tensor"]))
  inputs = {k: jnp.asarray(v) for k, v in parts["input"].items()}
  out = jax.jit(loaded.model.apply)(loaded.variables, **inputs)
  assert parts["output"]
  for path, want in parts["output"].items():
    got = np.asarray(at(out, path))
    assert got.shape == want.shape, path
    assert np.isfinite(got).all(), path
    want = np.where(np.isnan(want), got, want)
    scale = np.abs(want).max()
    np.testing.assert_allclose(got, want, atol=TOLERANCE * scale, err_msg=path)
    # The comparison can fail: one image more or less is seen.
    if want.ndim:
      moved = np.roll(want, 1, 0)
      assert np.abs(got - moved).max() > 10 * TOLERANCE * scale

  for format in weights.FORMATS:
    path = weights.export(loaded, tmp_path / format, format=format)
    same(loaded.variables, weights.load(path.parent).variables)
  # What is written is what was read, tensor by tensor.
  written = np.load(tmp_path / "npz" / "model.npz")
  for tensor in set(written.files) & set(parts["tensor"]):
    np.testing.assert_array_equal(written[tensor], parts["tensor"][tensor])
  kept = set(filter(loaded.recipe.keeps, parts["tensor"]))
  assert kept <= set(written.files)


@pytest.mark.parametrize(
  ("name", "kept"),
  [
    ("clap", r"relative_position_index"),
    ("clap_fused", r"num_batches_tracked"),
    ("resnet_classifier", r"num_batches_tracked"),
    ("dinov2_encoder", r"mask_token"),
    ("siglip_classifier", r"vision_model.head.probe"),
    ("siglip2_naflex_classifier", r"vision_model.head.probe"),
  ],
)
def test_what_only_the_reference_reads_comes_back(name, kept, tmp_path):
  config, parts = read(name)
  loaded = weights.load(hub(tmp_path, config, parts["tensor"]))
  path = weights.export(loaded, tmp_path / "npz", format="npz")
  assert any(key.endswith(kept) for key in loaded.recipe.kept)
  with np.load(path) as written:
    for key, value in parts["tensor"].items():
      assert written[key].dtype.kind == value.dtype.kind
      np.testing.assert_array_equal(written[key], value, key)
