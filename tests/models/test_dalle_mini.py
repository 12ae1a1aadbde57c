import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors, tree
from mmjax.layers.generate import generate
from mmjax.models import dalle_mini

TOKENS = jnp.array([[5, 6, 7, 9], [8, 3, 1, 1]])
MASK = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]])
START = 48
FREE = dict(
  free_tokens=jnp.array([[0, 2], [0, 2]]), guidance=jnp.array([10.0, 3.0])
)


@pytest.mark.parametrize(
  "variant, millions", [("mini", 437.8), ("mega", 2587.5)]
)
def test_counts_are_the_published_ones(variant, millions):
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  model = dalle_mini.build(variant)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)
  count = tree.count(nn.unbox(shapes)["params"]) / 1e6
  assert count == pytest.approx(millions, abs=0.06)


@pytest.fixture(scope="module")
def tiny():
  model = dalle_mini.build(**dalle_mini.TINY)
  target = jnp.full((2, 8), START)
  variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), TOKENS, target))
  # Kernels far from 0: logits differ by more than rounding.
  variables = jax.tree.map(lambda x: x * 10 if x.ndim > 1 else x, variables)
  return model, variables, jax.jit(model.apply)


@pytest.mark.slow
def test_decodes_as_its_call_does_with_and_without_guidance(tiny):
  model, variables, apply = tiny
  prompt = jnp.full((2, 1), START)
  given = dict(tokens=TOKENS, mask=MASK)
  found = []
  for more, guidance in (({}, None), (FREE, FREE["guidance"])):
    ids = generate(model, variables, prompt, given | more, length=9)
    logits = apply(variables, TOKENS, ids[:, :-1], MASK)
    if guidance is not None:
      free = apply(variables, FREE["free_tokens"], ids[:, :-1])
      logits = free + guidance[:, None, None] * (logits - free)
    np.testing.assert_array_equal(logits.argmax(-1), ids[:, 1:])
    found.append(ids)
  # Guidance changes what is drawn, or the test would prove nothing of it.
  assert (found[0] != found[1]).any()


def test_padding_and_what_comes_later_are_not_read(tiny):
  _, variables, apply = tiny
  target = jnp.array([[START, 4, 12, 6, 3, 1, 0, 2]] * 2)
  logits = apply(variables, TOKENS, target, MASK)
  moved = apply(variables, TOKENS.at[1, 2:].set(11), target, MASK)
  np.testing.assert_allclose(logits, moved, atol=1e-4)
  later = apply(variables, TOKENS, target.at[:, 3].set(33), MASK)
  np.testing.assert_allclose(logits[:, :3], later[:, :3], atol=1e-4)
  # Negative control: from place 3 on it is read.
  assert np.abs(later - logits)[:, 3:].max() > 1e-2


def test_errors_name_the_field(tiny):
  model, variables, _ = tiny
  with pytest.raises(errors.InputError, match="variant = 'tiny'"):
    dalle_mini.build("tiny")
  with pytest.raises(errors.InputError, match="heads, mlp, vocab_size"):
    dalle_mini.build(width=8, depth=2)
  with pytest.raises(errors.InputError, match="remat = 'some'"):
    dalle_mini.build("mini", remat="some")
  with pytest.raises(errors.InputError, match="norms = 'postln'"):
    dalle_mini.build("mini", norms="postln")
  prompt = jnp.full((2, 1), START)
  with pytest.raises(errors.InputError, match="slots = 10: an image has 8"):
    generate(model, variables, prompt, dict(tokens=TOKENS), length=10)
  given = dict(tokens=TOKENS, guidance=jnp.ones((2,)))
  with pytest.raises(errors.InputError, match="guidance and free_tokens"):
    generate(model, variables, prompt, given, length=9)
