"""Cap and CapPa: the reference's counts, what sees what, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax import build, errors, tree
from mmjax.models import captioner


# Counted by the reference's own model (big_vision 0127fb6), 224 pixels.
@pytest.mark.parametrize(
  "variant, masked, count",
  [
    ("S/16", True, 60_461_312),
    ("B/16", True, 191_669_504),
    ("B/16", False, 191_668_736),
    ("L/14", True, 570_176_768),
  ],
)
def test_counts_are_the_references(variant, masked, count):
  model = captioner.build(variant, masked=masked)
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  tokens = jax.ShapeDtypeStruct((1, 64), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image, tokens)
  assert tree.count(nn.unbox(shapes)["params"]) == count


@pytest.fixture(scope="module")
def tiny():
  model = build.build("models", name="captioner", **captioner.TINY)
  rng = np.random.default_rng(0)
  image = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
  tokens = rng.integers(1, 64, (2, 6)).astype(np.int32)
  params = nn.unbox(jax.jit(model.init)(jax.random.key(0), image, tokens))
  return model, params, jax.jit(model.apply), image, tokens


def test_a_causal_row_reads_what_is_before_and_a_parallel_one_nothing(tiny):
  _, params, apply, image, tokens = tiny
  parallel = jnp.array([False, True])
  want, _ = apply(params, image, tokens, parallel)
  later = tokens.copy()
  later[:, 2] = 64 - later[:, 2] + (later[:, 2] == 32)
  got, _ = apply(params, image, later, parallel)
  moved = np.abs(got - want).max(2)
  # Token 2 is read at place 3 first.
  assert moved[0, :3].max() < 1e-5 and moved[0, 3:].min() > 1e-3
  np.testing.assert_array_equal(got[1], want[1])
  # And what is parallel still tells images and places apart.
  other, _ = apply(params, image[::-1].copy(), tokens, parallel)
  assert np.abs(other - want)[1].max() > 1e-3
  assert np.abs(want[1, 0] - want[1, 1]).max() > 1e-3


@pytest.mark.slow
def test_steps_are_the_whole(tiny):
  model, params, apply, image, tokens = tiny
  want, _ = apply(params, image, tokens)
  prompt = np.pad(tokens, ((0, 0), (1, 0)))
  got, cache = model.apply(
    params, prompt[:, :4], slots=9, image=image, method="start"
  )
  np.testing.assert_allclose(got, want[:, 3], atol=1e-5)
  step = jax.jit(lambda *a: model.apply(params, *a, method="step"))
  for i in (4, 5):
    got, cache = step(cache, prompt[:, i : i + 1], jnp.int32(i))
    np.testing.assert_allclose(got, want[:, i], atol=1e-5)


def test_what_cannot_work_is_refused(tiny):
  model, params, _, image, tokens = tiny
  cap = captioner.build(**captioner.TINY | dict(masked=False))
  with pytest.raises(errors.InputError, match="masked = False"):
    cap.apply(params, image, tokens, jnp.array([True, False]))
  with pytest.raises(errors.InputError, match="length = 8"):
    model.apply(params, image, np.ones((2, 9), np.int32))
  with pytest.raises(errors.InputError, match="length = 8"):
    model.apply(params, tokens[:, :1], slots=10, image=image, method="start")
  for keywords, word in (
    (dict(variant="B"), "variant = 'B'"),
    (dict(width=8), "image, depth, heads, mlp not given"),
    (dict(variant="B/16", posemb="x"), "posemb = 'x'"),
    (dict(variant="B/16", remat="x"), "remat = 'x'"),
  ):
    with pytest.raises(errors.InputError, match=word):
      captioner.build(**keywords)
