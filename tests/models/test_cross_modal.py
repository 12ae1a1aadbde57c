import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors, tree
from mmjax.models import cross_modal

TOKENS = jnp.array([[5, 6, 7, 0, 0], [8, 3, 9, 2, 1]])
SMALL = dict(text_depth=1, region_depth=1, cross_depth=1)


@pytest.fixture(scope="module")
def encode(draw):
  """Returns a function of the call's arguments, always the same weights."""
  model = cross_modal.build(**cross_modal.TINY | SMALL)
  features = jax.random.normal(jax.random.key(1), (2, 4, 12))
  boxes = jax.random.uniform(jax.random.key(2), (2, 4, 4))
  variables = nn.unbox(draw(model, TOKENS, features, boxes))
  apply = jax.jit(model.apply)

  def call(tokens=TOKENS, features=features, boxes=boxes, **masks):
    given = dict(mask=jnp.ones_like(tokens), region_mask=jnp.ones((2, 4)))
    return apply(variables, tokens, features, boxes, **given | masks)

  call.features, call.boxes = features, boxes
  return call


@pytest.mark.parametrize(
  "variant, published",
  [("lxmert", 207_936_768), ("lxmert-pretraining", 228_051_752)],
)
def test_published_parameter_counts(variant, published):
  model = cross_modal.build(variant, vocab_size=30522)
  shapes = jax.eval_shape(
    model.init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 20), jnp.int32),
    jax.ShapeDtypeStruct((1, 36, 2048), jnp.float32),
    jax.ShapeDtypeStruct((1, 36, 4), jnp.float32),
  )
  assert tree.count(nn.unbox(shapes)) == published


def test_what_comes_out(encode):
  pooled, out = encode()
  assert pooled.shape == (2, 32)
  assert {k: v.shape[1:] for k, v in out.items()} == {
    "tokens": (5, 32),
    "regions": (4, 32),
    "logits": (5, 64),
    "matched": (2,),
    "objects": (4, 6),
    "attributes": (4, 4),
    "features": (4, 12),
    "answers": (10,),
  }


def test_each_stream_sees_the_other(encode):
  _, a = encode()
  _, b = encode(tokens=TOKENS.at[0, 1].set(33))
  assert np.abs(a["regions"][0] - b["regions"][0]).max() > 1e-4
  np.testing.assert_allclose(a["regions"][1], b["regions"][1], atol=1e-6)
  for changed in (
    dict(features=encode.features.at[0, 2].set(1.0)),
    dict(boxes=encode.boxes.at[0, 2].set(0.5)),
  ):
    _, b = encode(**changed)
    assert np.abs(a["tokens"][0] - b["tokens"][0]).max() > 1e-4


def test_masks_hide_in_every_layer(encode):
  mask = jnp.array([[1, 0, 1, 1, 0], [1] * 5])
  region_mask = jnp.array([[0, 1, 1, 0], [1] * 4])
  given = dict(mask=mask, region_mask=region_mask)
  _, a = encode(**given)
  _, b = encode(
    tokens=TOKENS.at[0, 1].set(33).at[0, 4].set(44),
    features=encode.features.at[0, 0].set(9.0).at[0, 3].set(-9.0),
    **given,
  )
  for name, kept in (("tokens", mask[0]), ("regions", region_mask[0])):
    kept = np.asarray(kept, bool)
    x, y = a[name][0], b[name][0]
    np.testing.assert_allclose(x[kept], y[kept], atol=1e-6)
    assert np.abs(x[~kept] - y[~kept]).max() > 1e-3


def test_padding_is_masked_unless_the_caller_says(encode):
  pooled, _ = encode(mask=None)
  want, _ = encode(mask=TOKENS != 0)
  np.testing.assert_allclose(pooled, want, atol=1e-6)
  assert np.abs(encode()[0] - want).max() > 1e-4


def test_errors_name_the_field():
  for change, message in (
    (dict(variant="vilbert"), "variant = 'vilbert'"),
    (dict(features=None), "features not given"),
    (dict(remat="some"), "remat = 'some'"),
    (dict(act="xielu"), "activation = 'xielu'"),
  ):
    with pytest.raises(errors.InputError, match=message):
      cross_modal.build(**cross_modal.TINY | change)


def test_heads_of_a_variant_can_be_left_out():
  model = cross_modal.build(
    "lxmert-pretraining", vocab_size=64, masked_words=False, answers=3129
  )
  assert (model.masked_words, model.answers) == (False, 3129)
