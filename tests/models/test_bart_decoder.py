"""Decoding as the call; padding; what is refused; numbers: test_golden."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.models import bart_decoder

TOKENS = jnp.array([[0, 0, 7, 9, 4], [8, 3, 5, 6, 2]])
MASK = jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("options", [{}, dict(norms_first=True, tied=False)])
def test_decodes_as_its_call_does(draw, options):
  sizes = bart_decoder.TINY | dict(width=16, mlp=8, scale_embedding=True)
  model = bart_decoder.build(**sizes | options)
  variables = nn.unbox(draw(model, TOKENS))
  want = model.apply(variables, TOKENS, MASK)
  given = dict(slots=6, mask=MASK[:, :3], method="start")
  logits, state = model.apply(variables, TOKENS[:, :3], **given)
  np.testing.assert_allclose(logits, want[:, 2], atol=1e-5)
  step = jax.jit(lambda *a: model.apply(variables, *a, method="step"))
  for i in (3, 4):
    logits, state = step(state, TOKENS[:, i : i + 1], jnp.int32(i))
    np.testing.assert_allclose(logits, want[:, i], atol=1e-5)
  # Negative control: padding that is seen counts.
  assert np.abs(model.apply(variables, TOKENS) - want)[0, 2:].max() > 1e-3


def test_what_is_wrong_is_named():
  with pytest.raises(errors.InputError, match="remat = 'some'"):
    bart_decoder.build(**bart_decoder.TINY, remat="some")
  model = bart_decoder.build(**bart_decoder.TINY)
  with pytest.raises(errors.InputError, match="slots = 13"):
    model.start(TOKENS, slots=13)
