"""One decoder of `layers/`, an encoder and left padding, decoded three ways."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.layers import block
from mmjax.layers import generate as module
from mmjax.layers.embed import TokenEmbed
from mmjax.layers.generate import generate
from mmjax.layers.transformer import Stack
from mmjax.ops import decoding, masks

VOCAB, WIDTH, DEPTH = 13, 16, 2
SPEC = block.Spec(heads=2, mlp=24, rotary=100.0, cross=True)


class Decoder(nn.Module):
  """Reads a memory [B M D] and tokens padded on the left."""

  def setup(self):
    self.embed = TokenEmbed(VOCAB, WIDTH, scale=1.0)
    self.stack = Stack(SPEC, DEPTH)
    self.head = nn.Dense(VOCAB, kernel_init=nn.initializers.normal(1.0))

  def __call__(self, tokens, memory, mask):
    positions = jnp.where(mask, mask.cumsum(-1) - 1, -1)
    x = self.stack(
      self.embed(tokens),
      masks.Positions(positions, positions),
      positions=positions,
      memory=memory,
    )
    return self.head(x)

  def start(self, prompt, *, slots, memory, mask):
    batch, length = prompt.shape
    kv = block.make_cache(
      SPEC, DEPTH, width=WIDTH, batch=batch, slots=slots, memory=memory.shape[1]
    )
    positions = jnp.where(mask, mask.cumsum(-1) - 1, -1)
    seen = jnp.full((batch, slots), -1).at[:, :length].set(positions)
    return self._run(prompt, positions, seen, kv, jnp.asarray(0), memory)

  def step(self, cache, tokens, slot):
    kv, seen = cache
    positions = (seen.max(-1) + 1)[:, None]
    seen = jax.lax.dynamic_update_slice(seen, positions, (0, slot))
    return self._run(tokens, positions, seen, kv, slot, None)

  def _run(self, tokens, positions, seen, kv, slot, memory):
    x, kv = self.stack(
      self.embed(tokens),
      masks.Positions(positions, seen),
      positions=positions,
      memory=memory,
      cache=kv,
      slot=slot,
    )
    return self.head(x[:, -1]), (kv, seen)


@pytest.fixture(scope="module")
def given():
  memory = jax.random.normal(jax.random.key(1), (3, 4, WIDTH))
  prompt = jnp.array([[5, 6, 7], [0, 8, 3], [0, 0, 4]])
  mask = jnp.array([[1, 1, 1], [0, 1, 1], [0, 0, 1]])
  model = Decoder()
  init = jax.jit(model.init)
  variables = init(jax.random.key(0), prompt, memory, mask)
  return model, nn.unbox(variables), prompt, dict(memory=memory, mask=mask)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, tokens, memory, mask):
  return model.apply(variables, tokens, memory, mask)


def naive(model, variables, prompt, memory, length):
  """Greedy ids of one row without padding, computed anew for each token."""
  ids = np.zeros((1, 9), np.int32)  # what comes later is not seen
  ids[0, : len(prompt)] = prompt
  for i in range(len(prompt), length):
    logits = apply(model, variables, ids, memory[None], np.ones_like(ids))
    ids[0, i] = logits[0, i - 1].argmax()
  return ids[0, :length].tolist()


def test_greedy_is_that_without_cache_and_padding(given):
  model, variables, prompt, inputs = given
  ids = np.asarray(generate(model, variables, prompt, inputs, length=9))
  for row, found in enumerate(ids):
    pad = 2 - int(inputs["mask"][row].sum()) + 1
    want = naive(
      model,
      variables,
      np.asarray(prompt[row, pad:]).tolist(),
      inputs["memory"][row],
      9 - pad,
    )
    assert found[pad:].tolist() == want
  assert len(np.unique(ids[:, 3:], axis=0)) == 3


def test_stacks_taken_apart_give_the_same_ids(given, monkeypatch):
  model, variables, prompt, inputs = given
  monkeypatch.setattr(module, "_LARGE", 0)
  text = {}
  for many in (10**9, 0):
    monkeypatch.setattr(module, "_MANY", many)
    jax.clear_caches()
    settings = decoding.Settings(length=9)
    args = (model, settings, None, variables, prompt, inputs, None)
    text[many] = str(jax.make_jaxpr(module._generate, (0, 1, 2))(*args))
    ids = generate(model, variables, prompt, inputs, length=9)
    if many:
      want = np.asarray(ids)
  np.testing.assert_array_equal(ids, want)
  # The step of the loop over tokens has no loop over blocks any more.
  assert text[0].count(" scan[") == text[10**9].count(" scan[") - 1


def score(model, variables, inputs, ids, prompt):
  """Returns the log probabilities of continuations [B], without a cache."""
  mask = jnp.concatenate([inputs["mask"], jnp.ones_like(ids[:, prompt:])], 1)
  logits = apply(model, variables, ids, inputs["memory"], mask)
  x = jax.nn.log_softmax(logits)[:, prompt - 1 : -1]
  picked = jnp.take_along_axis(x, ids[:, prompt:, None], 2)[:, :, 0]
  return np.asarray(picked.sum(1))


@pytest.mark.slow  # beams are recorded
def test_beams_move_their_cache_with_them(given):
  """More beams than sequences find what is best of all."""
  model, variables, prompt, inputs = given
  length = 5
  greedy = generate(model, variables, prompt, inputs, length=length)
  beams = generate(
    model, variables, prompt, inputs, length=length, beams=VOCAB**2
  )
  pairs = np.stack(np.meshgrid(*[np.arange(VOCAB)] * 2), -1).reshape(-1, 2)
  best = np.full(3, -np.inf)
  for pair in pairs:
    ids = jnp.concatenate(
      [prompt, jnp.tile(jnp.asarray(pair)[None], (3, 1))], 1
    )
    best = np.maximum(best, score(model, variables, inputs, ids, 3))
  got = score(model, variables, inputs, beams, 3)
  np.testing.assert_allclose(got, best, rtol=1e-4)
  assert (got >= score(model, variables, inputs, greedy, 3) - 1e-5).all()


def test_samples(given):
  model, variables, prompt, inputs = given

  def draw(seed, **kw):
    rng = jax.random.key(seed)
    kw = dict(length=9, sample=True, rng=rng, **kw)
    return np.asarray(generate(model, variables, prompt, inputs, **kw))

  assert (draw(0) != draw(1)).any()
  one = draw(0, top_k=1)
  greedy = generate(model, variables, prompt, inputs, length=9)
  np.testing.assert_array_equal(one, greedy)


def test_errors_name_what_is_wrong(given):
  model, variables, prompt, inputs = given
  with pytest.raises(errors.InputError, match="no method 'start'"):
    generate(nn.Dense(3), {}, prompt, length=4)
  with pytest.raises(errors.InputError, match="num_beams"):
    generate(model, variables, prompt, inputs, length=9, num_beams=3)
  with pytest.raises(errors.InputError, match="generate length"):
    generate(model, variables, prompt, inputs)
