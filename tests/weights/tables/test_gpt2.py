import math

import pytest

from mmjax import errors

# What the released config.json says, as far as it is read.
SMALL = dict(
  model_type="gpt2",
  activation_function="gelu_new",
  layer_norm_epsilon=1e-5,
  n_ctx=1024,
  n_embd=768,
  n_head=12,
  n_layer=12,
  n_positions=1024,
  vocab_size=50257,
)
GPT2 = dict(model_type="gpt2")


@pytest.mark.parametrize(
  "config, count",
  [
    (SMALL, 124_439_808),
    (GPT2 | dict(n_embd=1600, n_layer=48, n_head=25), 1_557_611_200),
    (SMALL | dict(tie_word_embeddings=False), 124_439_808 + 768 * 50257),
    (SMALL | dict(n_inner=768), 124_439_808 - 12 * 3 * 768 * (2 * 768 + 1)),
  ],
)
def test_parameter_counts(declared, config, count):
  recipe, leaves = declared(config)
  assert recipe.table == "gpt2"
  assert sum(math.prod(x.shape) for x in leaves.values()) == count


def test_query_key_and_value_are_cut_from_one_tensor(declared):
  recipe, _ = declared(SMALL)
  pieces = {
    rule.ours: rule.piece for rule in recipe.rules if "c_attn" in rule.theirs
  }
  block = "decoder/blocks/attention"
  assert pieces[f"{block}/query/kernel"] == (0, 768, 1)
  assert pieces[f"{block}/value/kernel"] == (1536, 2304, 1)
  assert pieces[f"{block}/key/bias"] == (768, 1536, 0)


def test_copies_and_masks_of_files_are_left_out(declared):
  recipe, _ = declared(SMALL)
  for name in (
    "lm_head.weight",
    "h.0.attn.bias",
    "transformer.h.11.attn.masked_bias",
  ):
    assert recipe.ignored(name), name
  assert not recipe.ignored("h.0.attn.c_attn.bias")
  recipe, _ = declared(SMALL | dict(tie_word_embeddings=False))
  assert not recipe.ignored("lm_head.weight")


def test_dropouts_and_scale_come_from_the_config(declared):
  changes = dict(attn_pdrop=0.3, scale_attn_weights=False)
  changes["scale_attn_by_inverse_layer_idx"] = True
  recipe, _ = declared(SMALL | changes)
  assert recipe.model["scale_falls"]
  assert recipe.model["attention_dropout"] == 0.3
  assert recipe.model["dropout"] == recipe.model["embed_dropout"] == 0.1
  assert recipe.model["scale"] == 1.0


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(add_cross_attention=True), "add_cross_attention = True"),
    (dict(n_head=7), "n_head = 7 does not divide n_embd = 768"),
    (dict(activation_function="gelu_neu"), "activation_function = 'gelu_neu'"),
  ],
)
def test_what_cannot_be_followed_is_named(declared, changes, message):
  with pytest.raises(errors.InputError, match=message):
    declared(SMALL | changes)
