"""PaliGemma: the published count, what sees what, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax import build, errors
from mmjax.models import paligemma


@pytest.mark.parametrize(
  "variant, published", [("3b", 2_923_466_480), ("2-3b", 3_032_242_416)]
)
def test_published_count(variant, published):
  model = paligemma.build(variant)
  image = jnp.zeros((1, 224, 224, 3))
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), image, jnp.zeros((1, 2), jnp.int32))
  )
  assert sum(x.size for x in jax.tree.leaves(shapes)) == published


@pytest.fixture(scope="module")
def tiny():
  model = build.build("models", name="paligemma", **paligemma.TINY)
  rng = np.random.default_rng(0)
  image = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
  tokens = rng.integers(1, 64, (2, 6)).astype(np.int32)
  params = nn.unbox(jax.jit(model.init)(jax.random.key(0), image, tokens))
  return model, params, image, tokens


SUFFIX = np.array([[0, 0, 0, 1, 1, 1]] * 2)


@pytest.fixture(scope="module")
def whole(tiny):
  """Returns a function of tokens: three are the prompt, three its suffix."""
  model, params, image, _ = tiny
  return jax.jit(lambda t: model.apply(params, image, t, None, SUFFIX)[0])


def test_a_prompt_is_seen_whole_and_a_suffix_only_backwards(tiny, whole):
  *_, tokens = tiny
  want = whole(tokens)
  for place, first in ((2, 0), (4, 4)):
    changed = tokens.copy()
    changed[:, place] = 63 - changed[:, place]
    moved = np.abs(whole(changed) - want).max((0, 2))
    assert (moved[first:] > 1e-4).all()
    assert (moved[:first] < 1e-5).all()


def test_padding_moves_nothing_and_steps_are_the_whole(tiny, whole):
  model, params, image, tokens = tiny
  want = whole(tokens)
  prompt = np.pad(tokens[:, :3], ((0, 0), (2, 0)))
  mask = np.array([[0, 0, 1, 1, 1]] * 2)
  start = functools.partial(model.apply, slots=8, method="start")
  got, state = jax.jit(start)(params, prompt, image=image, mask=mask)
  np.testing.assert_allclose(got, want[:, 2], atol=1e-4)
  step = jax.jit(functools.partial(model.apply, method="step"))
  for i in (3, 4, 5):
    got, state = step(params, state, tokens[:, i : i + 1], jnp.int32(i + 2))
    np.testing.assert_allclose(got, want[:, i], atol=1e-4)


def test_what_cannot_work_is_refused(tiny):
  model, params, image, tokens = tiny
  with pytest.raises(errors.InputError, match="slots = 3"):
    model.apply(params, tokens, slots=3, image=image, method="start")
  for keywords, word in (
    (dict(variant="2b"), "variant"),
    (dict(), "image"),
    (dict(variant="3b", language=dict(width=8)), "language"),
    (dict(variant="3b", language=paligemma.TINY["image"]), "decoder_lm"),
  ):
    with pytest.raises(errors.InputError, match=word):
      paligemma.build(**keywords)
