"""CLAP: published counts, one side alone, the two scales, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax import errors, tree
from mmjax.models import clap

TEXT = dict(
  name="bert",
  variant="base",
  vocab_size=50265,
  length=514,
  types=1,
  offset=1,
  pool="pooler",
)


@pytest.mark.parametrize("fused, count", [(0, 153_492_890), (1, 153_507_530)])
def test_published_parameter_counts(fused, count):
  audio = dict(name="htsat", variant="tiny", fused=bool(fused))
  model = clap.build(audio=audio, text=TEXT)
  inputs = dict(
    audio=jnp.zeros((1, *(4,) * fused, 1001, 64)),
    text=jnp.zeros((1, 9), jnp.int32),
    is_longer=jnp.zeros(1, bool) if fused else None,
  )
  found = jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs))
  assert tree.count(nn.unbox(found)["params"]) == count


@pytest.mark.slow
def test_each_side_alone_and_the_padding_is_not_seen(key):
  model = clap.build(**clap.TINY)
  audio = jax.random.normal(key, (2, 50, 4))
  text = jnp.array([[5, 6, 7, 1, 1], [9, 8, 7, 6, 5]])
  variables = nn.unbox(jax.jit(model.init)(key, audio, text))
  variables["params"]["log_t_text"] = jnp.log(3.0)
  f = jax.jit(model.apply)
  a, b, scales = f(variables, audio, text)
  np.testing.assert_allclose(scales, (1 / 0.07, 3.0), rtol=1e-5)
  for x in (a, b):
    np.testing.assert_allclose(jnp.square(x).sum(1), 1.0, rtol=1e-5)
  alone, none, _ = f(variables, audio)
  assert none is None
  np.testing.assert_allclose(alone, a, atol=1e-6)
  none, given, _ = f(variables, None, text, text != 1)
  assert none is None
  np.testing.assert_allclose(given, b, atol=1e-6)
  _, seen, _ = f(variables, None, text, jnp.ones_like(text))
  moved = np.abs(seen - b).max(1)
  assert moved[0] > 1e-4 and moved[1] < 1e-6


@pytest.mark.parametrize(
  "change, words",
  [
    (dict(temperature_init=0.0), "temperature_init = 0.0"),
    (dict(audio=dict(variant="tiny")), "audio = .*has no name"),
    (dict(act="reluu"), "Did you mean 'relu'"),
    (dict(text=dict(name="bertt")), "Did you mean 'bert'"),
  ],
)
def test_errors_name_the_field(change, words):
  with pytest.raises(errors.InputError, match=words):
    clap.build(**{**clap.TINY, **change})
