"""Classification losses, on labels that may be soft (mixup, distillation)."""

import jax
import jax.numpy as jnp
import optax

from mmjax import errors
from mmjax.typing import Metrics


def softmax(
  logits_BC: jax.Array, labels: jax.Array, *, smoothing: float = 0.0
) -> tuple[jax.Array, Metrics]:
  """Mean cross-entropy of one right class an example.

  Args:
    logits_BC: one logit a class.
    labels: class numbers [B], integers; or the distribution over classes
      [B C], which mixup makes soft.
    smoothing: this much of each label is spread evenly over all classes
      (Szegedy et al. 2016).

  Returns:
    (loss in nats an example, metrics): `accuracy` counts an example as right
    if its highest logit is the label's highest class.

  Raises:
    InputError: labels of another shape; smoothing outside [0, 1).
  """
  labels_BC = _distribution(logits_BC, labels, smoothing)
  logits_BC = logits_BC.astype(jnp.float32)
  smooth = optax.smooth_labels(labels_BC, smoothing)
  loss = jnp.mean(optax.softmax_cross_entropy(logits_BC, smooth))
  return loss, _accuracy(logits_BC, labels_BC)


def sigmoid(
  logits_BC: jax.Array, labels: jax.Array, *, smoothing: float = 0.0
) -> tuple[jax.Array, Metrics]:
  """Binary cross-entropies, summed over classes, mean over examples.

  The sum makes the loss of one-hot labels comparable with `softmax` (Beyer et
  al. 2020, "Are we done with ImageNet?", train with it).

  Args:
    logits_BC: one logit a class.
    labels: class numbers [B], integers; or a target in [0, 1] for each class
      [B C], of which several may be 1.
    smoothing: each target y becomes y (1 - smoothing) + smoothing / 2.

  Returns:
    (loss in nats an example, metrics) as `softmax`.

  Raises:
    InputError: as `softmax`.
  """
  labels_BC = _distribution(logits_BC, labels, smoothing)
  logits_BC = logits_BC.astype(jnp.float32)
  smooth = labels_BC * (1 - smoothing) + smoothing / 2
  losses_BC = optax.sigmoid_binary_cross_entropy(logits_BC, smooth)
  return jnp.mean(jnp.sum(losses_BC, axis=-1)), _accuracy(logits_BC, labels_BC)


def _distribution(logits_BC, labels, smoothing):
  if not 0 <= smoothing < 1:
    raise errors.InputError(
      f"smoothing = {smoothing}: must be at least 0 and below 1; 0.1 is usual."
    )
  if jnp.issubdtype(labels.dtype, jnp.integer):
    if labels.shape == logits_BC.shape[:1]:
      return jax.nn.one_hot(labels, logits_BC.shape[1], dtype=jnp.float32)
  if labels.shape != logits_BC.shape:
    raise errors.InputError(
      f"labels of shape {labels.shape} and type {labels.dtype}: logits of "
      f"shape {logits_BC.shape} need class numbers {logits_BC.shape[:1]} of an "
      f"integer type, or targets {logits_BC.shape}."
    )
  return labels.astype(jnp.float32)


def _accuracy(logits_BC: jax.Array, labels_BC: jax.Array) -> Metrics:
  right = jnp.argmax(logits_BC, axis=-1) == jnp.argmax(labels_BC, axis=-1)
  return {"accuracy": jnp.mean(right, dtype=jnp.float32)}
