import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import build, errors, tree
from mmjax.layers.generate import generate
from mmjax.models import decoder_lm


def shapes(variant=None, **keywords):
  """Returns the size of each parameter by name."""
  model = build.build("models", name="decoder_lm", variant=variant, **keywords)
  tokens = jnp.zeros((1, 2), jnp.int32)
  found = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens))
  return {
    name: math.prod(x.shape)
    for name, x in tree.items(nn.unbox(found)["params"])
  }


@pytest.mark.parametrize(
  "variant, published",
  [
    ("gpt2", 124_439_808),
    ("gpt2-medium", 354_823_168),
    ("gpt2-large", 774_030_080),
    ("gpt2-xl", 1_557_611_200),
    ("gpt-neo-125m", 125_198_592),
    ("gpt-neo-1.3b", 1_315_575_808),
    ("gpt-neo-2.7b", 2_651_307_520),
    ("gemma-2b", 2_506_172_416),
    ("gemma-7b", 8_537_680_896),
    ("gemma2-2b", 2_614_341_888),
    ("gemma2-9b", 9_241_705_984),
    ("gemma2-27b", 27_227_128_320),
  ],
)
def test_published_parameter_counts(variant, published):
  assert sum(shapes(variant).values()) == published


@pytest.mark.parametrize(
  "variant, L, d, heads, published",
  [
    ("gpt3-125m", 12, 768, 768, 125.2e6),
    ("gpt3-350m", 24, 1024, 1024, 355.9e6),
    ("gpt3-760m", 24, 1536, 1536, 760.3e6),
    ("gpt3-1.3b", 24, 2048, 2048, 1.316e9),
    ("gpt3-2.7b", 32, 2560, 2560, 2.652e9),
    ("gpt3-6.7b", 32, 4096, 4096, 6.658e9),
    ("gpt3-13b", 40, 5140, 5120, 12.94e9),
    ("gpt3-175b", 96, 12288, 12288, 174.604e9),
  ],
)
def test_gpt3_counts_by_hand(variant, L, d, heads, published):
  """As the paper's table; 40 heads of 128 are not 5140."""
  found = sum(shapes(variant).values())
  block = 4 * d * heads + 3 * heads + d + 8 * d * d + 5 * d + 4 * d
  assert found == L * block + (50_257 + 2048) * d + 2 * d
  np.testing.assert_allclose(found, published, rtol=5e-4)


@pytest.mark.parametrize(
  "variant, L, d", [("lamda-2b", 10, 2560), ("lamda-8b", 16, 4096)]
)
def test_lamda_siblings_have_what_their_names_say(variant, L, d):
  found = shapes(variant)
  kernels = sum(n for name, n in found.items() if name.endswith("kernel"))
  assert kernels == L * (4 * d * 2 * d + 3 * d * 8 * d)
  assert round(kernels / 1e9) in (2, 9)


def test_lamda_without_embeddings_has_the_published_count():
  found = shapes("lamda-137b")
  small = sum(n for name, n in found.items() if "norm" in name)
  assert small == 8192 * (2 * 64 + 1)
  others = {
    name: n
    for name, n in found.items()
    if "norm" not in name and not name.endswith("table")
  }
  assert sum(others.values()) == 137_438_953_472
  assert not any(name.endswith("bias") for name in found)
  assert found["relative/table"] == 32 * 128


def test_mtnlg_count_with_and_without_padded_vocabulary():
  assert round(sum(shapes("mtnlg-530b").values()) / 1e7) == 52_958
  padded = sum(shapes("mtnlg-530b", pad_vocab=1024).values())
  assert round(padded / 1e7) == 52_960


@pytest.mark.slow  # compiles for each length
def test_log_likelihood_is_that_of_each_row_alone(key):
  model = build.build(
    "models", name="decoder_lm", **decoder_lm.TINY | dict(length=12, std=0.2)
  )
  prompt = jax.random.randint(key, (3, 4), 1, 60)
  variables = nn.unbox(jax.jit(model.init)(key, prompt))
  mask = jnp.array([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]])
  ids = generate(model, variables, prompt, dict(mask=mask), length=8)
  more = ids[:, 4:].at[1, 2].set(5)
  kept = jnp.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])
  # What stands at padding does not matter.
  more = jnp.where(kept == 1, more, 17)
  got, greedy = decoder_lm.log_likelihood(
    model, variables, prompt, more, prompt_mask=mask, continuation_mask=kept
  )
  for b in range(3):
    before, after = prompt[b][mask[b] == 1], more[b][kept[b] == 1]
    x = model.apply(variables, jnp.concatenate([before, after])[None])[0]
    x = jax.nn.log_softmax(x[len(before) - 1 : -1])
    np.testing.assert_allclose(
      got[b], x[np.arange(len(after)), after].sum(), rtol=1e-5
    )
    np.testing.assert_array_equal(greedy[b], (x.argmax(-1) == after).all())
  assert greedy.tolist() == [True, False, True]
  with pytest.raises(errors.InputError, match="prompt: it has no token"):
    decoder_lm.log_likelihood(model, variables, prompt[:, :0], more)


@pytest.mark.parametrize(
  "keywords, message",
  [
    (dict(variant="gpt-2"), "variant = 'gpt-2'.*'gpt2'"),
    (dict(variant="gpt2", head=3), "keyword = 'head'.*'heads'"),
    (dict(width=8, depth=2), "vocab_size, heads, mlp not given"),
    (dict(variant="gpt2", pattern="gl"), "pattern = 'gl'"),
    (dict(variant="gpt2", pattern="gb"), "window = None"),
    (dict(variant="gpt2", posemb="sincos"), "posemb = 'sincos'"),
    (dict(variant="gpt2", norm="batch"), "norm = 'batch'"),
    (dict(variant="gpt2", act="swish"), "'swish'"),
    (dict(variant="gpt2", remat="some"), "remat = 'some'"),
  ],
)
def test_wrong_keywords_are_named(keywords, message):
  with pytest.raises(errors.InputError, match=message):
    build.build("models", name="decoder_lm", **keywords)
