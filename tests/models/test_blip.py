"""BLIP: published counts, what sees what, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax import build, errors
from mmjax.models import blip


def count(model, **inputs):
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs))
  return sum(x.size for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
  "task, pixels, published",
  [("caption", 384, 223_971_644), ("answer", 384, 361_230_140)],
)
def test_published_counts(task, pixels, published):
  ids = jnp.zeros((1, 4), jnp.int32)
  inputs = dict(image=jnp.zeros((1, pixels, pixels, 3)), tokens=ids)
  if task == "answer":
    inputs["decoder_tokens"] = ids
  assert count(blip.build("B/16", task=task), **inputs) == published


@pytest.fixture(scope="module")
def tiny(draw):
  model = build.build("models", name="blip", **blip.TINY)
  rng = np.random.default_rng(0)
  inputs = dict(
    image=rng.normal(size=(2, 16, 16, 3)).astype(np.float32),
    tokens=rng.integers(1, 64, (2, 5)).astype(np.int32),
    mask=np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    decoder_tokens=rng.integers(1, 64, (2, 4)).astype(np.int32),
  )
  params = nn.unbox(draw(model, **inputs))
  return model, params, inputs, jax.jit(model.apply)


@pytest.mark.slow
def test_an_answer_is_causal_and_words_do_not_see_padding(tiny):
  _, params, inputs, apply = tiny
  want, _ = apply(params, **inputs)
  later = inputs["decoder_tokens"].copy()
  later[:, 2] = 63 - later[:, 2]
  got, _ = apply(params, **{**inputs, "decoder_tokens": later})
  np.testing.assert_allclose(got[:, :2], want[:, :2], atol=1e-5)
  assert np.abs(got - want)[:, 2:].max() > 1e-2
  padded = inputs["tokens"].copy()
  padded[1, 3:] = 7
  _, out = apply(params, **{**inputs, "tokens": padded})
  _, before = apply(params, **inputs)
  moved = np.abs(out["text"] - before["text"]).max(2)
  assert moved[1, :3].max() < 1e-5 and moved[1, 3:].min() > 1e-3


@pytest.mark.slow
def test_steps_are_the_whole(tiny):
  model, params, inputs, apply = tiny
  # No mask is one of ones, which the other test's program takes.
  mask = np.ones_like(inputs["mask"])
  want, _ = apply(params, **{**inputs, "mask": mask})
  inputs = {k: v for k, v in inputs.items() if k != "mask"}
  answer = inputs.pop("decoder_tokens")
  start = functools.partial(model.apply, slots=4, method="start")
  got, cache = jax.jit(start)(params, answer[:, :2], **inputs)
  np.testing.assert_allclose(got, want[:, 1], atol=1e-5)
  step = jax.jit(functools.partial(model.apply, method="step"))
  for i in (2, 3):
    got, cache = step(params, cache, answer[:, i : i + 1], jnp.int32(i))
    np.testing.assert_allclose(got, want[:, i], atol=1e-5)


def test_what_cannot_work_is_refused(tiny):
  model, params, inputs, _ = tiny
  with pytest.raises(errors.InputError, match="decoder_tokens"):
    model.apply(params, inputs["image"], inputs["tokens"])
  with pytest.raises(errors.InputError, match="length = 8"):
    model.apply(
      params,
      inputs["tokens"][:, :1],
      slots=9,
      image=inputs["image"],
      tokens=inputs["tokens"],
      method="start",
    )
  for keywords, word in (
    (dict(variant="B"), "variant"),
    (dict(width=8), "image"),
    (dict(variant="B/16", task="x"), "task"),
    (dict(variant="B/16", act="x"), "activation"),
  ):
    with pytest.raises(errors.InputError, match=word):
      blip.build(**keywords)
