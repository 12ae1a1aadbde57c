import numpy as np
import pytest

from mmjax.weights.tables import big_vision_layers as layers

STACK = "img/Transformer/"
LEAVES = {
  "LayerNorm_0/scale": (8,),
  "MultiHeadDotProductAttention_0/query/kernel": (8, 2, 4),
  "MlpBlock_0/Dense_0/kernel": (8, 12),
}


@pytest.mark.parametrize("stacked", [False, True])
def test_sizes_are_those_of_the_shapes(stacked):
  if stacked:
    shapes = {f"{STACK}encoderblock/{k}": (3, *v) for k, v in LEAVES.items()}
  else:
    shapes = {
      f"{STACK}encoderblock_{n}/{k}": v
      for n in range(3)
      for k, v in LEAVES.items()
    }
  sizes, rules = layers.encoder(shapes, STACK)
  assert sizes == dict(width=8, depth=3, heads=2, mlp=12)
  read = {name for rule in rules for name in rule.sources(3)}
  assert set(shapes) < read
  assert f"{STACK}encoder_norm/scale" in read


def test_blocks_of_before_linen_count_their_parts_together():
  old = {
    "LayerNorm_0/scale": (8,),
    "MultiHeadDotProductAttention_1/query/kernel": (8, 2, 4),
    "MlpBlock_3/Dense_0/kernel": (8, 12),
  }
  shapes = {f"{STACK}encoderblock_0/{k}": v for k, v in old.items()}
  sizes, rules = layers.encoder(shapes, STACK)
  assert sizes == dict(width=8, depth=1, heads=2, mlp=12)
  read = {rule.ours: rule.theirs for rule in rules}
  norm = read["encoder/blocks/norm2/scale"]
  assert norm == f"{STACK}encoderblock_{{n}}/LayerNorm_2/scale"


def test_a_head_has_a_probe_without_a_batch():
  rules = {rule.ours: rule for rule in layers.map_head("img/MAPHead_0/", 8)}
  probe = rules["pool/probe"]
  assert probe.theirs == "img/MAPHead_0/probe"
  theirs = np.arange(8.0).reshape(1, 1, 8)
  assert probe.op.ours(theirs).shape == (1, 8)
  np.testing.assert_array_equal(probe.op.theirs(probe.op.ours(theirs)), theirs)
  norms = {"pool/norm/scale", "pool/norm/bias"}
  assert norms < set(rules) and len(rules) == 1 + 8 + 2 + 4
