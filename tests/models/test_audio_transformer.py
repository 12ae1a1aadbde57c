"""AST and AudioMAE: published counts, the order of patches, the pools."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors, tree
from mmjax.models import audio_transformer

AUDIOMAE = dict(
  pool="gap",
  class_token=True,
  last_norm="pooled",
  time_first=True,
  head_norm=False,
)
TINY = dict(audio_transformer.TINY, num_classes=None)


def shapes(model, frames, bins):
  audio = jax.ShapeDtypeStruct((1, frames, bins), jnp.float32)
  return nn.unbox(jax.eval_shape(model.init, jax.random.key(0), audio))


def test_published_parameter_counts():
  ast = audio_transformer.build("B/16", stride=10, num_classes=527)
  params = shapes(ast, 1024, 128)["params"]
  assert tree.count(params) == 86_594_063
  # 12 places of mels by 101 of frames.
  assert params["encoder"]["posemb"]["grid"].shape == (12, 101, 768)
  mae = audio_transformer.build("B/16", **AUDIOMAE)
  params = shapes(mae, 1024, 128)["params"]
  assert tree.count(params) == 85_648_128  # 85.66M with a small head
  assert params["encoder"]["posemb"]["grid"].shape == (64, 8, 768)


def test_patches_overlap_as_in_a_convolution(key, draw):
  model = audio_transformer.build(**TINY)
  audio = jax.random.normal(key, (1, 23, 16))
  variables = draw(model, audio)
  _, out = jax.jit(model.apply)(variables, audio)
  assert out["tokens"].shape == (1, 2 + 2 * 4, 32)
  f = jax.jit(lambda x: model.apply(variables, x)[0])
  # Frame 22 is in the last patch of time (15 to 22); mels 13 on are in none.
  for a, b, seen in ((22, 12, True), (22, 13, False), (0, 0, True)):
    moved = np.abs(f(audio.at[0, a, b].add(3.0)) - f(audio)).max()
    assert (moved > 1e-4) == seen, (a, b)


def test_the_order_of_time_and_mels(key, draw):
  audio = jax.random.normal(key, (2, 24, 16))
  first = audio_transformer.build(**TINY, time_first=True)
  variables = draw(first, audio)
  other = audio_transformer.build(**TINY)
  a, _ = jax.jit(first.apply)(variables, audio)
  b, _ = jax.jit(other.apply)(variables, audio.swapaxes(1, 2))
  np.testing.assert_allclose(a, b, atol=1e-6)


def test_pair_is_the_mean_of_both_tokens(key, draw):
  model = audio_transformer.build(**TINY)
  audio = jax.random.normal(key, (2, 23, 16))
  variables = draw(model, audio)
  x, out = jax.jit(model.apply)(variables, audio)
  np.testing.assert_allclose(x, out["tokens"][:, :2].mean(1), atol=1e-6)


def test_the_head_norm_takes_away_the_scale(key, draw):
  audio = jax.random.normal(key, (2, 23, 16))
  for norm in (True, False):
    model = audio_transformer.build(**dict(TINY, num_classes=5), head_norm=norm)
    variables = nn.unbox(draw(model, audio))
    params = variables["params"]
    assert ("head_norm" in params) == norm
    params["head"]["kernel"] = jax.random.normal(key, (32, 5))
    f = jax.jit(lambda v, model=model: model.apply(v, audio)[0])
    before = f(variables)
    last = params["encoder"]["norm"]
    last["scale"], last["bias"] = last["scale"] * 3, last["bias"] * 3
    factor = 1.0 if norm else 3.0
    np.testing.assert_allclose(f(variables), before * factor, atol=1e-3)


def test_other_lengths_by_interpolation_only(key, draw):
  audio = jax.random.normal(key, (1, 23, 16))
  longer = jnp.concatenate([audio, audio], axis=1)
  model = audio_transformer.build(**TINY)
  variables = nn.unbox(draw(model, audio))
  with pytest.raises(errors.InputError, match=r"\(2, 4\).*\(2, 8\)"):
    model.apply(variables, longer)
  model = audio_transformer.build(**TINY, interpolate="bilinear_corners")
  _, out = jax.jit(model.apply)(variables, longer)
  assert out["tokens"].shape == (1, 2 + 2 * 8, 32)


@pytest.mark.parametrize(
  "kw, words",
  [
    (dict(TINY, pool="mean"), "models.vit pool"),
    (dict(TINY, pool="pair", distilled=False), "distilled = True"),
    (dict(TINY, depht=2), "'depht'.*Did you mean 'depth'"),
    (dict(), "width, depth"),
  ],
)
def test_bad_keywords_are_named(kw, words):
  with pytest.raises(errors.InputError, match=words):
    audio_transformer.build(**kw)
