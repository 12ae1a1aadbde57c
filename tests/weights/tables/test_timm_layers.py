"""What timm's names have in common: heads, pieces, the attention's pool."""

import pathlib

import numpy as np
import pytest

from mmjax import errors
from mmjax.weights import files, rename
from mmjax.weights.tables import timm_layers

SHAPES = {
  "b.0.attn.qkv.weight": (12, 4),
  "b.0.attn.proj.weight": (4, 4),
  "b.0.mlp.fc1.weight": (10, 4),
  "b.0.mlp.fc2.weight": (4, 5),
}


def checkpoint(shapes):
  tensors = {
    k: files.Tensor(v, np.dtype("float32"), lambda: 1 / 0)
    for k, v in shapes.items()
  }
  return files.Checkpoint(pathlib.Path("there"), tensors, {})


def test_sizes_and_gates_are_read_off_the_shapes():
  sizes = timm_layers.stack(checkpoint(SHAPES), "b.", heads=2)
  assert sizes == dict(width=4, depth=1, heads=2, mlp=5)
  assert timm_layers.is_gated(SHAPES, 5, "b.0.")
  assert timm_layers.stack(
    checkpoint(SHAPES), "b.", known={(4, 1, 5): 4}
  ) == dict(sizes, heads=4)


def test_heads_and_a_missing_layer_are_named():
  with pytest.raises(errors.InputError, match=r'"decoder": \.\.\.'):
    timm_layers.stack(checkpoint(SHAPES), "b.", field="decoder")
  with pytest.raises(errors.InputError, match="num_heads = 3 does not"):
    timm_layers.stack(checkpoint(SHAPES), "b.", heads=3)
  part = {k: v for k, v in SHAPES.items() if "fc2" not in k}
  with pytest.raises(errors.InputError, match=r"no tensor 'b\.0\.mlp\.fc2"):
    timm_layers.stack(checkpoint(part), "b.", heads=2)


def test_gate_and_up_and_the_three_of_attention_are_pieces():
  rules = timm_layers.blocks(
    SHAPES, dict(width=4, heads=2, mlp=5), theirs="b.", ours=""
  )
  by_name = {rule.ours: rule for rule in rules}
  assert by_name["mlp/gate/kernel"].piece == (0, 5, 0)
  assert by_name["mlp/up/kernel"].piece == (5, 10, 0)
  packed = np.arange(48.0).reshape(12, 4)
  got = by_name["attention/key/kernel"].read(packed)
  np.testing.assert_array_equal(got[:, 1], packed[6:8].T)
  assert "attention/key/bias" not in by_name  # there is none in the file


def test_the_pool_splits_keys_from_values_and_comes_back():
  rng = np.random.default_rng(0)
  theirs = {
    "attn_pool.latent": (1, 1, 4),
    "attn_pool.q.weight": (4, 4),
    "attn_pool.q.bias": (4,),
    "attn_pool.kv.weight": (8, 4),
    "attn_pool.kv.bias": (8,),
    "attn_pool.proj.weight": (4, 4),
    "attn_pool.proj.bias": (4,),
    "attn_pool.norm.weight": (4,),
    "attn_pool.norm.bias": (4,),
    "attn_pool.mlp.fc1.weight": (6, 4),
    "attn_pool.mlp.fc1.bias": (6,),
    "attn_pool.mlp.fc2.weight": (4, 6),
    "attn_pool.mlp.fc2.bias": (4,),
  }
  tensors = {k: rng.normal(size=v) for k, v in theirs.items()}
  rules = timm_layers.attention_pool(theirs, 2)
  leaves = {rule.name: rule.read(tensors[rule.theirs]) for rule in rules}
  assert leaves["params/pool/probe"].shape == (1, 4)
  key, value = (
    leaves[f"params/pool/attention/{x}/kernel"] for x in ("key", "value")
  )
  np.testing.assert_array_equal(
    np.concatenate([key, value], 1).reshape(4, 8),
    tensors["attn_pool.kv.weight"].T,
  )
  written = rename.write(rules, leaves)
  assert written.keys() == tensors.keys()
  for name, x in tensors.items():
    np.testing.assert_array_equal(written[name], x, name)
