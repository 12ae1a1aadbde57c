"""BLIP's text encoder: a memory may be there or not, and padding is not seen."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from mmjax import errors
from mmjax.models import blip_text

TOKENS = np.array([[5, 6, 7, 9], [8, 3, 0, 0]])


@pytest.fixture(scope="module")
def encode():
  model = blip_text.build(**blip_text.TINY)
  memory = jax.random.normal(jax.random.key(1), (2, 5, 24))
  variables = jax.jit(model.init)(jax.random.key(0), TOKENS, None, memory)
  apply = jax.jit(model.apply)
  return lambda *args: apply(nn.unbox(variables), *args), np.asarray(memory)


def test_what_is_masked_is_not_seen(encode):
  call, memory = encode
  mask = (TOKENS != 0) * 1
  pooled, out = call(TOKENS, mask, memory)
  assert pooled.shape == (2, 32) and out["tokens"].shape == (2, 4, 32)
  other = np.where(mask, TOKENS, 11)
  np.testing.assert_allclose(call(other, mask, memory)[0], pooled, atol=1e-6)
  # Negative control: without the mask they are seen.
  assert np.abs(call(other, None, memory)[0] - pooled).max() > 1e-4


def test_without_a_memory_there_is_no_attention_to_it(encode):
  call, memory = encode
  alone, _ = call(TOKENS)
  assert np.abs(call(TOKENS, None, memory)[0] - alone).max() > 1e-3


def test_a_memory_that_is_not_read_is_refused(encode):
  _, memory = encode
  model = blip_text.build(**blip_text.TINY, cross=False)
  with pytest.raises(errors.InputError, match="memory: given"):
    model.init(jax.random.key(0), TOKENS, None, memory)


def test_an_unknown_activation_is_named():
  with pytest.raises(errors.InputError, match="'relus'"):
    blip_text.build(**blip_text.TINY, act="relus")
