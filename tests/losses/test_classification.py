"""Against hand-computed values and float64 numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.losses import classification


def data():
  rng = np.random.default_rng(0)
  return rng.normal(size=(6, 4)) * 3, rng.integers(0, 4, 6)


def numpy_softmax(logits, targets):
  logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  return -(targets * logs).sum(1).mean()


def numpy_sigmoid(logits, targets):
  p = 1 / (1 + np.exp(-logits))
  losses = -(targets * np.log(p) + (1 - targets) * np.log(1 - p))
  return losses.sum(1).mean()


def test_by_hand():
  logits = jnp.asarray([[0.0, 0.0], [np.log(3.0), 0.0]])
  loss, metrics = classification.softmax(logits, jnp.asarray([1, 0]))
  # Probabilities 1/2 and 3/4.
  np.testing.assert_allclose(loss, (np.log(2) + np.log(4 / 3)) / 2, rtol=1e-6)
  assert float(metrics["accuracy"]) == 0.5
  loss, _ = classification.sigmoid(jnp.zeros((3, 5)), jnp.asarray([0, 1, 2]))
  np.testing.assert_allclose(loss, 5 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_numpy(smoothing):
  logits, labels = data()
  hot = np.eye(4)[labels]
  f32 = jnp.asarray(logits, jnp.float32)
  loss, metrics = classification.softmax(
    f32, jnp.asarray(labels), smoothing=smoothing
  )
  want = numpy_softmax(logits, hot * (1 - smoothing) + smoothing / 4)
  np.testing.assert_allclose(loss, want, rtol=1e-6)
  np.testing.assert_allclose(
    metrics["accuracy"], np.mean(logits.argmax(1) == labels)
  )
  loss, _ = classification.sigmoid(
    f32, jnp.asarray(labels), smoothing=smoothing
  )
  want = numpy_sigmoid(logits, hot * (1 - smoothing) + smoothing / 2)
  np.testing.assert_allclose(loss, want, rtol=1e-6)


@pytest.mark.parametrize(
  "loss", [classification.softmax, classification.sigmoid]
)
def test_soft_labels_mix_losses(loss):
  # Mixup: the loss is linear in the label.
  logits, labels = data()
  logits = jnp.asarray(logits, jnp.float32)
  one, two = np.eye(4)[labels], np.eye(4)[labels[::-1]]
  mixed, _ = loss(logits, jnp.asarray(0.3 * one + 0.7 * two))
  parts = [float(loss(logits, jnp.asarray(x))[0]) for x in (one, two)]
  np.testing.assert_allclose(mixed, 0.3 * parts[0] + 0.7 * parts[1], rtol=1e-6)
  assert abs(parts[0] - parts[1]) > 1e-3


@pytest.mark.parametrize(
  ("labels", "smoothing", "word"),
  [
    (np.zeros(3, np.int32), 0.0, "labels of shape (3,)"),
    (np.zeros(2, np.float32), 0.0, "integer"),
    (np.zeros(2, np.int32), 1.0, "smoothing = 1.0"),
  ],
)
def test_bad_input(labels, smoothing, word):
  with pytest.raises(errors.InputError) as error:
    classification.softmax(
      jnp.zeros((2, 4)), jnp.asarray(labels), smoothing=smoothing
    )
  assert word in str(error.value)
