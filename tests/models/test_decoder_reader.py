"""Where a text is read, and what is refused; numbers are in test_golden."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import build, errors
from mmjax.models import decoder_reader

DECODER = decoder_reader.TINY["decoder"] | dict(width=8, depth=1, mlp=12)
TOKENS = jnp.array([[5, 6, 7, 0, 0], [0, 0, 8, 0, 9], [0, 0, 0, 0, 0]])


@pytest.mark.parametrize(
  "pad_id, places", [(0, [2, 4, 0]), (9, [4, 3, 4]), (None, [4, 4, 4])]
)
def test_a_text_is_read_at_its_last_token(draw, pad_id, places):
  module = decoder_reader.build(decoder=DECODER, classes=3, pad_id=pad_id)
  params = nn.unbox(draw(module, TOKENS))["params"]
  got = module.apply({"params": params}, TOKENS)
  decoder = build.build("models", **DECODER)
  x = decoder.apply({"params": params["decoder"]}, TOKENS, method="hidden")
  x = np.asarray(x)[np.arange(3), places]
  head = jax.tree.map(np.asarray, params["head"])
  want = x @ head["kernel"] + head["bias"]
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_tokens_and_ends_of_answers(draw):
  module = decoder_reader.build(
    decoder=DECODER, reads="tokens", classes=3, use_bias=False
  )
  variables = jax.eval_shape(module.init, jax.random.key(0), TOKENS)
  assert "bias" not in variables["params"]["head"]
  out = jax.eval_shape(module.apply, variables, TOKENS)
  assert out.shape == (3, 5, 3)
  module = decoder_reader.build(decoder=DECODER, reads="spans")
  out, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), TOKENS)
  assert {k: x.shape for k, x in out.items()} == dict(start=(3, 5), end=(3, 5))


def test_what_does_not_go_together_is_named():
  with pytest.raises(errors.InputError, match=r"reads = .texts."):
    decoder_reader.build(decoder=DECODER, reads="texts")
  for wrong in (DECODER | {"tied": False}, {"name": "vit", "width": 8}):
    with pytest.raises(errors.InputError, match="no head of its own"):
      decoder_reader.build(decoder=wrong)
