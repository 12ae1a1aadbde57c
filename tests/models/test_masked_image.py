"""SimMIM: the mask token stands for what is hidden, and pixels are painted."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from mmjax import errors
from mmjax.models import masked_image


@pytest.fixture(scope="module")
def tiny():
  key = jax.random.key(0)
  model = masked_image.build(**masked_image.TINY)
  image = jax.random.normal(key, (2, 16, 8, 3))
  hidden = np.zeros((2, 8), np.int32)
  hidden[0, [1, 6]] = 1
  variables = nn.unbox(jax.jit(model.init)(key, image, hidden))
  apply = jax.jit(lambda x, hidden: model.apply(variables, x, hidden))
  return apply, np.asarray(image), hidden


def test_what_is_hidden_is_not_read(tiny):
  apply, image, hidden = tiny
  before, out = apply(image, hidden)
  assert before.shape == image.shape
  assert out["tokens"].shape == (2, 1 + 8, 32)
  moved = image.copy()
  moved[0, :4, 4:8] += 1.0  # patch 1
  moved[0, 12:, :4] += 1.0  # patch 6
  np.testing.assert_array_equal(apply(moved, hidden)[0], before)
  moved[0, :4, :4] += 1.0
  assert np.abs(apply(moved, hidden)[0] - before)[0].max() > 1e-4


def test_the_loss_is_of_hidden_pixels(tiny):
  apply, image, hidden = tiny
  painted, out = jax.tree.map(np.asarray, apply(image, hidden))
  error = np.abs(painted - image)
  want = (error[0, :4, 4:8].mean() + error[0, 12:, :4].mean()) / 2
  np.testing.assert_allclose(out["loss"], want, rtol=1e-5)


def test_without_a_mask_all_is_seen_and_there_is_no_loss(tiny):
  apply, image, hidden = tiny
  painted, out = apply(image, None)
  assert "loss" not in out
  np.testing.assert_allclose(painted, apply(image, 0 * hidden)[0], atol=1e-6)


def test_a_square_of_no_pixels_is_refused():
  with pytest.raises(errors.InputError, match="square = 0"):
    masked_image.build(**{**masked_image.TINY, "square": 0})
