"""Against convolutions and attention written out in numpy; what may be read."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.layers.block import Spec, make_cache
from mmjax.layers.position import sincos1d
from mmjax.layers.speech import Decoder, Encoder

SPEC = Spec(2, 12, act="gelu_exact", epsilon=1e-5, biases="qvo")


def gelu(x):
  return np.asarray(jax.nn.gelu(x, approximate=False))


def convolved(x, kernel, bias, stride):
  """x [T C], kernel [3 C D]; zeros beyond both ends."""
  x = np.pad(x, ((1, 1), (0, 0)))
  rows = [
    sum(x[t + k] @ kernel[k] for k in range(3)) + bias
    for t in range(0, len(x) - 2, stride)
  ]
  return np.stack(rows)


def drawn(module, *args):
  """Returns parameters that are far from 0 and 1."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), *args)
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.5,
    nn.unbox(shapes),
  )


@pytest.mark.parametrize("frames", [9, 12, 1])
def test_the_encoder_without_blocks_is_two_convolutions(frames):
  encoder = Encoder(SPEC, mels=5, width=8, depth=0, audio_length=6)
  audio = np.random.default_rng(1).normal(size=(2, frames, 5))
  audio = audio.astype(np.float32)
  variables = drawn(encoder, audio)
  got = jax.jit(encoder.apply)(variables, audio)
  p = variables["params"]
  for row, x in zip(got, audio, strict=True):
    for name, stride in (("conv1", 1), ("conv2", 2)):
      x = gelu(convolved(x, p[name]["kernel"], p[name]["bias"], stride))
    x = x + p["posemb"][: len(x)]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(
      x.var(-1, keepdims=True) + 1e-5
    )
    np.testing.assert_allclose(
      row, x * p["norm"]["scale"] + p["norm"]["bias"], atol=1e-4
    )


def test_positions_are_stored_sinusoids():
  encoder = Encoder(SPEC, mels=5, width=8, depth=1, audio_length=6)
  init = jax.jit(encoder.init)
  variables = nn.unbox(init(jax.random.key(0), jnp.zeros((1, 4, 5))))
  np.testing.assert_array_equal(variables["params"]["posemb"], sincos1d(6, 8))
  keys = variables["params"]["layers"]["blocks"]["attention"]
  assert "bias" in keys["query"] and "bias" not in keys["key"]


def test_features_that_do_not_fit_are_named():
  encoder = Encoder(SPEC, mels=5, width=8, depth=1, audio_length=6)
  variables = jax.jit(encoder.init)(jax.random.key(0), jnp.zeros((1, 4, 5)))
  with pytest.raises(errors.InputError, match=r"4 mel bins.*mels = 5"):
    encoder.apply(variables, jnp.zeros((1, 5, 4)))
  with pytest.raises(errors.InputError, match=r"13 frames.*12"):
    encoder.apply(variables, jnp.zeros((1, 13, 5)))


def test_the_decoder_reads_backwards_and_the_whole_sound():
  decoder = Decoder(
    Spec(2, 12, biases="qvo", cross=True),
    vocab_size=11,
    width=8,
    depth=2,
    length=7,
  )
  rng = np.random.default_rng(2)
  memory = rng.normal(size=(2, 5, 8)).astype(np.float32)
  tokens = rng.integers(0, 11, (2, 6)).astype(np.int32)
  variables = drawn(decoder, tokens, memory)
  run = jax.jit(lambda *a: decoder.apply(variables, *a)[0])
  logits = run(tokens, memory)
  for place in range(6):
    other = tokens.copy()
    other[:, place] = (other[:, place] + 1) % 11
    moved = np.abs(run(other, memory) - logits).max((0, 2)) > 1e-4
    assert moved.tolist() == [t >= place for t in range(6)]
  for place in range(5):
    other = memory.copy()
    other[:, place] += 1
    assert (np.abs(run(tokens, other) - logits).max((0, 2)) > 1e-4).all()
  # What the mask hides changes only what stands there.
  mask = np.ones((2, 6), np.int32)
  mask[1, 1] = 0
  other = tokens.copy()
  other[1, 1] = (other[1, 1] + 1) % 11
  moved = np.abs(run(other, memory, mask) - run(tokens, memory, mask)).max(-1)
  assert (moved > 1e-4).sum() == (moved[1, 1] > 1e-4) == 1


def test_a_cache_begins_at_its_first_slot():
  spec = Spec(2, 12, biases="qvo", cross=True)
  decoder = Decoder(spec, vocab_size=11, width=8, depth=2, length=7)
  memory = jnp.ones((1, 5, 8))
  tokens = jnp.array([[3, 1, 4]])
  variables = drawn(decoder, tokens, memory)
  apply = jax.jit(decoder.apply)
  want, _ = apply(variables, tokens, memory)
  cache = make_cache(spec, 2, width=8, batch=1, slots=5, memory=5)
  got, _, cache = apply(variables, tokens, memory, cache=cache)
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert np.abs(cache.own.k[:, :, :3]).min() > 0
  assert np.abs(cache.own.k[:, :, 3:]).max() == 0
