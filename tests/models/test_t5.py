import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors, tree
from mmjax.layers.generate import generate
from mmjax.models import t5

TOKENS = jnp.array([[5, 6, 7, 9], [8, 3, 0, 0]])
MASK = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]])
TARGET = jnp.array([[0, 4, 2, 6, 3], [0, 7, 7, 5, 9]])


@pytest.mark.parametrize(
  "variant, count",
  [
    ("small", 60_506_624),
    ("base", 222_903_552),
    ("large", 737_668_096),
    ("3b", 2_851_598_336),
    ("11b", 11_307_321_344),
    ("v1.1-small", 76_961_152),
    ("v1.1-base", 247_577_856),
    ("v1.1-large", 783_150_080),
    ("v1.1-xl", 2_849_757_184),
    ("v1.1-xxl", 11_135_332_352),
  ],
)
def test_counts_are_the_published_ones(variant, count):
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  model = t5.build(variant)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)
  assert tree.count(nn.unbox(shapes)) == count


@pytest.fixture(scope="module")
def tiny():
  model = t5.build(**t5.TINY)
  variables = jax.jit(model.init)(jax.random.key(0), TOKENS, TARGET)
  return model, nn.unbox(variables), jax.jit(model.apply)


@pytest.mark.slow
def test_padding_and_what_comes_later_are_not_read(tiny):
  _, variables, apply = tiny
  logits = apply(variables, TOKENS, TARGET, MASK)
  moved = apply(variables, TOKENS.at[1, 2:].set(11), TARGET, MASK)
  np.testing.assert_allclose(logits, moved, atol=1e-5)
  later = apply(variables, TOKENS, TARGET.at[:, 3].set(33), MASK)
  np.testing.assert_allclose(logits[:, :3], later[:, :3], atol=1e-5)
  # Negative control: without a mask, and from place 3 on, they are.
  assert np.abs(apply(variables, TOKENS, TARGET) - logits)[1].max() > 1e-3
  assert np.abs(later - logits)[:, 3:].max() > 1e-3


def test_decodes_as_its_call_does(tiny):
  model, variables, apply = tiny
  ids = generate(
    model,
    variables,
    TARGET[:, :2],
    dict(tokens=TOKENS, mask=MASK),
    length=9,
  )
  np.testing.assert_array_equal(ids[:, :2], TARGET[:, :2])
  logits = apply(variables, TOKENS, ids, MASK)
  np.testing.assert_array_equal(logits.argmax(-1)[:, 1:-1], ids[:, 2:])


def test_decodes_with_a_bias_of_each_layer(draw):
  model = t5.build(**t5.TINY | dict(width=16, mlp=8), layer_bias=True)
  variables = nn.unbox(draw(model, TOKENS, TARGET))
  want = model.apply(variables, TOKENS, TARGET, MASK)
  given = dict(slots=5, tokens=TOKENS, mask=MASK, method="start")
  logits, state = model.apply(variables, TARGET[:, :3], **given)
  np.testing.assert_allclose(logits, want[:, 2], atol=1e-5)
  rest = (state, TARGET[:, 3:], jnp.int32(3))
  logits, _ = model.apply(variables, *rest, method="step")
  np.testing.assert_allclose(logits, want[:, 4], atol=1e-5)
  # Negative control: the bias of the last layer counts.
  table = variables["params"]["decoder_bias"]["table"]
  variables["params"]["decoder_bias"]["table"] = table.at[1].set(table[0])
  other = model.apply(variables, TOKENS, TARGET, MASK)
  assert np.abs(other - want).max() > 1e-3


def test_encoder_alone_needs_no_decoder(tiny):
  model, variables, _ = tiny
  shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
  assert set(nn.unbox(shapes)["params"]) == {
    "embedding",
    "encoder",
    "encoder_bias",
    "encoder_norm",
  }
  part = {k: variables["params"][k] for k in nn.unbox(shapes)["params"]}
  features = jax.jit(model.apply)({"params": part}, TOKENS, None, MASK)
  encode = functools.partial(model.apply, method="encode")
  np.testing.assert_allclose(
    features, jax.jit(encode)(variables, TOKENS, MASK), atol=1e-6
  )


def test_errors_name_the_field():
  with pytest.raises(errors.InputError, match="variant = 'tiny'"):
    t5.build("tiny")
  with pytest.raises(errors.InputError, match="heads, head_dim, mlp not given"):
    t5.build(width=8, depth=2)
  with pytest.raises(errors.InputError, match="remat = 'some'"):
    t5.build("small", remat="some")
