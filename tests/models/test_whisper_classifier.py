"""What is mixed and averaged, by hand; numbers are in test_golden."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from mmjax import build, errors
from mmjax.models import whisper_classifier

TINY = whisper_classifier.TINY


def test_layers_are_mixed_and_averaged(draw):
  module = whisper_classifier.build(**TINY)
  audio = jax.random.normal(jax.random.key(1), (3, 13, 6))
  params = nn.unbox(draw(module, audio))["params"]
  got, out = jax.jit(module.apply)({"params": params}, audio)
  encoder = build.build("models", **TINY["encoder"])
  mine = {"params": params["encoder"]}
  last, others = encoder.apply(mine, audio, every=True)
  np.testing.assert_allclose(last, encoder.apply(mine, audio), atol=1e-6)
  np.testing.assert_allclose(out["encoded"], last, atol=1e-5)
  assert others.shape == (2, 3, 7, 32)
  p = jax.tree.map(np.asarray, params)
  shares = np.exp(p["mix"]) / np.exp(p["mix"]).sum()
  x = np.tensordot(shares, np.concatenate([others, last[None]]), 1).mean(1)
  for name in ("projector", "head"):
    x = x @ p[name]["kernel"] + p[name]["bias"]
  np.testing.assert_allclose(got, x, atol=1e-4)


def test_without_a_mix_the_last_layer_is_read():
  module = whisper_classifier.build(**TINY | dict(mixed=False))
  audio = np.zeros((2, 13, 6), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), audio)
  assert set(shapes["params"]) == {"encoder", "projector", "head"}


def test_the_encoder_is_whispers():
  for wrong in (TINY["encoder"] | {"part": "whole"}, {"name": "vit"}):
    with pytest.raises(errors.InputError, match="part='encoder'"):
      whisper_classifier.build(encoder=wrong, classes=2)
