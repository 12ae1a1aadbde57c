"""Every leaf has one rule in each library's names; keys have no bias."""

import pytest

from mmjax.weights.tables import whisper_rules as rules

WAYS = {
  "hub": [*rules.encoder("model.encoder.", 2), *rules.decoder("d.", 3)],
  "openai": [
    *rules.encoder("encoder.", 2, rules.OPENAI),
    *rules.decoder("decoder.", 3, rules.OPENAI),
  ],
  "ctranslate2": rules.packed(6, 2, 3),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_leaves_are_the_same(name):
  leaves = [rule.ours for rule in WAYS[name]]
  assert len(leaves) == len(set(leaves))
  assert set(leaves) == {rule.ours for rule in WAYS["hub"]}
  assert not any("key/bias" in leaf for leaf in leaves)
  assert sum("cross/key/kernel" in leaf for leaf in leaves) == 1


@pytest.mark.parametrize(
  "name, ours, theirs, piece",
  [
    (
      "hub",
      "decoder/layers/blocks/norm_cross/bias",
      "d.layers.{n}.encoder_attn_layer_norm.bias",
      None,
    ),
    ("openai", "encoder/norm/scale", "encoder.ln_post.weight", None),
    ("openai", "decoder/posemb/table", "decoder.positional_embedding", None),
    (
      "openai",
      "decoder/layers/blocks/cross/out/kernel",
      "decoder.blocks.{n}.cross_attn.out.weight",
      None,
    ),
    (
      "ctranslate2",
      "encoder/layers/blocks/attention/value/bias",
      "encoder/layer_{n}/self_attention/linear_0/bias",
      (12, 18, 0),
    ),
    (
      "ctranslate2",
      "decoder/layers/blocks/cross/key/kernel",
      "decoder/layer_{n}/attention/linear_1/weight",
      (0, 6, 0),
    ),
    (
      "ctranslate2",
      "decoder/layers/blocks/cross/out/bias",
      "decoder/layer_{n}/attention/linear_2/bias",
      None,
    ),
  ],
)
def test_names(name, ours, theirs, piece):
  [rule] = [rule for rule in WAYS[name] if rule.ours == ours]
  assert rule.theirs == theirs and rule.piece == piece
