import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors, tree
from mmjax.layers.generate import generate
from mmjax.models import bart

TOKENS = jnp.array([[5, 6, 7, 9], [8, 3, 1, 1]])
MASK = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]])
TARGET = jnp.array([[2, 4, 12, 6, 3], [2, 7, 7, 5, 9]])


@pytest.mark.parametrize(
  "variant, vocab, count",
  [("base", 50265, 139_420_416), ("large", 50265, 406_291_456)],
)
def test_counts_are_the_published_ones(variant, vocab, count):
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  model = bart.build(variant, vocab_size=vocab)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)
  assert tree.count(nn.unbox(shapes)["params"]) == count


@pytest.fixture(scope="module")
def tiny():
  model = bart.build(**bart.TINY | dict(bias=True))
  variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), TOKENS, TARGET))
  # Embeddings far from 0: logits differ by more than rounding.
  table = variables["params"]["embedding"]["table"]
  variables["params"]["embedding"]["table"] = 20 * table
  return model, variables, jax.jit(model.apply)


@pytest.mark.slow
def test_padding_and_what_comes_later_are_not_read(tiny):
  _, variables, apply = tiny
  logits = apply(variables, TOKENS, TARGET, MASK)
  moved = apply(variables, TOKENS.at[1, 2:].set(11), TARGET, MASK)
  np.testing.assert_allclose(logits, moved, atol=1e-4)
  later = apply(variables, TOKENS, TARGET.at[:, 3].set(33), MASK)
  np.testing.assert_allclose(logits[:, :3], later[:, :3], atol=1e-4)
  # Negative control: without a mask, and from place 3 on, they are.
  assert np.abs(apply(variables, TOKENS, TARGET) - logits)[1].max() > 1e-2
  assert np.abs(later - logits)[:, 3:].max() > 1e-2


@pytest.mark.slow
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


def test_head_adds_a_constant(tiny):
  _, variables, apply = tiny
  bias = jnp.arange(64.0)
  got = apply(
    variables | {"constants": {"head_bias": bias}}, TOKENS, TARGET, MASK
  )
  want = apply(variables, TOKENS, TARGET, MASK) + bias[None, None]
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


def test_errors_name_the_field(tiny):
  model, variables, _ = tiny
  with pytest.raises(errors.InputError, match="variant = 'tiny'"):
    bart.build("tiny")
  with pytest.raises(errors.InputError, match="heads, mlp not given"):
    bart.build(width=8, depth=2)
  with pytest.raises(errors.InputError, match="length = 12"):
    jax.eval_shape(model.apply, variables, jnp.ones((1, 13), int), TARGET[:1])
  with pytest.raises(errors.InputError, match="slots = 13"):
    generate(model, variables, TARGET, dict(tokens=TOKENS), length=13)
