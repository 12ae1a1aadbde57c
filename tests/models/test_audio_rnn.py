"""Recurrent encoders: published counts, padding, frames side by side."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors, tree
from mmjax.models import audio_rnn

LENGTHS = np.array([9, 2, 5])


def made(draw, **keywords):
  model = audio_rnn.build(**{**audio_rnn.TINY, **keywords})
  audio = jax.random.normal(jax.random.key(0), (3, 9, 8))
  return model, audio, nn.unbox(draw(model, audio, LENGTHS))


@pytest.mark.parametrize(
  "variant, published",
  [
    ("1l-250h", 0.8),
    ("2l-250h", 2.3),
    ("3l-250h", 3.8),
    ("5l-250h", 6.8),
    ("1l-622h", 3.8),
    ("3l-421h-uni", 3.8),
  ],
)
def test_published_parameter_counts(variant, published):
  # Millions, of the networks for TIMIT: 123 features, 61 phones and a blank.
  # Theirs have three peepholes a unit, ours a second bias for each gate.
  model = audio_rnn.build(variant, pool="none", num_classes=62)
  audio = jax.ShapeDtypeStruct((1, 7, 123), jnp.float32)
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), audio))
  units = model.depth * model.width * (1 + model.bidirectional)
  count = tree.count(shapes) + (3 - 4) * units
  assert round(count / 1e6, 1) == published


@pytest.mark.parametrize(
  "pool, cell",
  [("mean", "lstm"), ("last", "gru"), ("none", "lstm")],
)
def test_padding_says_nothing(draw, pool, cell):
  model, audio, variables = made(draw, pool=pool, cell=cell, depth=2, stride=1)
  keep = (np.arange(9) < LENGTHS[:, None])[:, :, None]
  apply = jax.jit(model.apply)
  y, out = apply(variables, audio, LENGTHS)
  moved, _ = apply(variables, jnp.where(keep, audio, jnp.inf), LENGTHS)
  np.testing.assert_array_equal(y, moved)
  np.testing.assert_array_equal(out["lengths"], LENGTHS)
  # And what is no padding is heard.
  other, _ = apply(variables, audio.at[0, 8].add(1.0), LENGTHS)
  assert np.abs(other[0] - y[0]).max() > 1e-4


def test_a_sound_is_what_it_is_alone(draw):
  model, audio, variables = made(draw, pool="last", depth=1)
  y, out = jax.jit(model.apply)(variables, audio, LENGTHS)
  alone, single = jax.jit(model.apply)(variables, audio[2:, :5])
  np.testing.assert_allclose(y[2], alone[0], atol=1e-6)
  np.testing.assert_allclose(
    out["tokens"][2, :3], single["tokens"][0], atol=1e-6
  )


def test_frames_side_by_side():
  audio = jnp.arange(1.0, 15).reshape(1, 7, 2)
  x, lengths = audio_rnn.stacked(audio, jnp.array([6]), 3, 2)
  np.testing.assert_array_equal(
    x[0],
    [
      [1, 2, 3, 4, 5, 6],
      [5, 6, 7, 8, 9, 10],
      [9, 10, 11, 12, 0, 0],  # the seventh frame is padding
      [0, 0, 0, 0, 0, 0],
    ],
  )
  np.testing.assert_array_equal(lengths, [3])
  x, lengths = audio_rnn.stacked(audio, None, 1, 3)
  np.testing.assert_array_equal(x[0], [[1, 2], [7, 8], [13, 14]])
  assert lengths is None
  same, _ = audio_rnn.stacked(audio, None, 1, 1)
  np.testing.assert_array_equal(same, audio)


def test_pools_and_classes(key, draw):
  one = dict(depth=1)
  model, audio, variables = made(draw, pool="none", num_classes=3, **one)
  (y, out), _ = jax.eval_shape(model.init_with_output, key, audio, LENGTHS)
  assert y.shape == (3, 5, 3) and out["pre_logits"].shape == (3, 5, 32)
  y, out = jax.jit(model.apply)(variables, audio, LENGTHS)
  head = variables["params"]["head"]["kernel"]
  np.testing.assert_allclose(y, out["pre_logits"] @ head, atol=1e-5)
  mean = made(draw, pool="mean", **one)
  y, out = jax.jit(mean[0].apply)(mean[2], audio, LENGTHS)
  for row, length in enumerate((5, 1, 3)):
    want = out["tokens"][row, :length].mean(0)
    np.testing.assert_allclose(y[row], want, atol=1e-6)
  last = made(draw, pool="last", **one)
  y, out = jax.jit(last[0].apply)(last[2], audio, LENGTHS)
  for row, length in enumerate((5, 1, 3)):
    tokens = out["tokens"][row]
    want = np.concatenate([tokens[length - 1, :16], tokens[0, 16:]])
    np.testing.assert_allclose(y[row], want, atol=1e-6)


def test_dropout_needs_train(key, draw):
  model, audio, variables = made(draw, dropout=0.5, depth=2)
  plain, _ = model.apply(variables, audio)
  rngs = {"dropout": key}
  still, _ = model.apply(variables, audio, rngs=rngs)
  np.testing.assert_array_equal(plain, still)
  noisy, _ = model.apply(variables, audio, train=True, rngs=rngs)
  assert np.abs(noisy - plain).max() > 1e-3


def test_variants_and_mistakes():
  model = audio_rnn.build("3l-421h-uni", depth=2, cell="gru")
  assert (model.depth, model.width, model.bidirectional) == (2, 421, False)
  assert audio_rnn.build(width=4, depth=1).bidirectional
  for keywords, name in (
    (dict(variant="4l"), "variant = '4l'"),
    (dict(width=4), "depth not given"),
    (dict(width=4, depth=0), "depth = 0"),
    (dict(width=4, depth=1, stride=0), "stride = 0"),
    (dict(width=4, depth=1, cell="rnn"), "cell = 'rnn'"),
    (dict(width=4, depth=1, pool="max"), "pool = 'max'"),
  ):
    with pytest.raises(errors.InputError, match=name):
      audio_rnn.build(**keywords)
