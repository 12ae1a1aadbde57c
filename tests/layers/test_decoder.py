import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.layers.decoder import DecoderLM
from mmjax.layers.generate import generate

VOCAB = 30
MAKE = functools.partial(
  DecoderLM, VOCAB, width=16, depth=2, heads=4, mlp=24, length=12, std=0.3
)
KINDS = {
  "learn": dict(pattern="gb", window=3),
  "rotary": dict(posemb="rotary", kv_heads=2, head_dim=6, embed_scale=True),
  "relative": dict(posemb="relative", norm="rms", gated=True, tied=False),
}
MASK = jnp.array([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0]])


@pytest.fixture(params=KINDS)
def given(request, key, draw):
  model = MAKE(**KINDS[request.param])
  tokens = jax.random.randint(key, MASK.shape, 0, VOCAB)
  variables = nn.unbox(draw(model, tokens))
  return model, variables, tokens


def test_padding_is_not_there_and_a_cache_changes_nothing(given):
  model, variables, tokens = given
  apply = jax.jit(model.apply)
  whole = apply(variables, tokens, MASK)
  assert whole.shape == (3, 6, VOCAB)
  # Each row by itself, without padding.
  for row, first, stop in ((0, 0, 6), (1, 2, 6), (2, 1, 5)):
    alone = apply(variables, tokens[row : row + 1, first:stop])
    np.testing.assert_allclose(whole[row, first:stop], alone[0], atol=1e-5)
  # The prompt of four tokens at once, then one by one.
  start = jax.jit(lambda *a: model.apply(*a, slots=9, method="start"))
  x, state = start(variables, tokens[:, :4], MASK[:, :4])
  np.testing.assert_allclose(x, whole[:, 3], atol=1e-5)
  step = jax.jit(lambda *a: model.apply(*a, method="step"))
  for slot in (4, 5):
    x, state = step(
      variables, state, tokens[:, slot : slot + 1], jnp.int32(slot)
    )
    # The last row ends before its last token.
    rows = np.asarray(MASK[:, slot] == 1)
    np.testing.assert_allclose(x[rows], whole[rows, slot], atol=1e-5)


@pytest.mark.slow  # ids are recorded
def test_greedy_ids_are_those_of_the_whole_computed_anew(key, draw):
  model = MAKE(**KINDS["relative"], pattern="gb", window=3)
  prompt = jax.random.randint(key, (3, 4), 0, VOCAB)
  mask = MASK[:, :4]
  variables = nn.unbox(draw(model, prompt))
  got = generate(model, variables, prompt, dict(mask=mask), length=9)
  ids = np.zeros((3, 9), int)
  ids[:, :4] = prompt
  seen = np.ones((3, 9), int)
  seen[:, :4] = mask
  apply = jax.jit(model.apply)
  for i in range(4, 9):
    ids[:, i] = apply(variables, ids, seen)[:, i - 1].argmax(-1)
  np.testing.assert_array_equal(got, ids)
  assert len(np.unique(ids[:, 4:])) > 2
  # No beam is cut off where all fit: the best of all continuations.
  got = generate(
    model, variables, prompt, dict(mask=mask), length=6, beams=VOCAB
  )
  first = jax.nn.log_softmax(apply(variables, ids, seen)[:, 3])
  best = np.full(3, -np.inf)
  want = np.zeros((3, 2), int)
  for token in range(VOCAB):
    ids[:, 4] = token
    second = jax.nn.log_softmax(apply(variables, ids, seen)[:, 4])
    score = np.asarray(first[:, token] + second.max(-1))
    want[score > best] = np.stack([ids[:, 4], second.argmax(-1)], 1)[
      score > best
    ]
    best = np.maximum(score, best)
  np.testing.assert_array_equal(got[:, 4:], want)


def test_positions_may_be_given(key, draw):
  tokens = jax.random.randint(key, (2, 5), 0, VOCAB)
  for kind in ("learn", "rotary"):
    model = MAKE(**KINDS[kind])
    variables = nn.unbox(draw(model, tokens))
    shifted = jnp.broadcast_to(jnp.arange(1, 6)[None], (2, 5))
    apply = jax.jit(model.apply)
    plain = apply(variables, tokens)
    moved = apply(variables, tokens, None, shifted)
    change = np.abs(plain - moved).max()
    # Turned alike, products stay what they are; learned ones do not.
    assert change < 1e-4 if kind == "rotary" else change > 1e-2
    start = functools.partial(model.apply, slots=7, method="start")
    _, state = jax.jit(start)(variables, tokens, None, shifted)
    np.testing.assert_array_equal(state.positions[0], np.arange(1, 8))


def test_a_band_ends_where_its_window_ends(key, draw):
  model = MAKE(pattern="b", window=3, depth=1)
  tokens = jax.random.randint(key, (1, 6), 0, VOCAB)
  variables = nn.unbox(draw(model, tokens))
  moved = tokens.at[:, 0].set((tokens[:, 0] + 1) % VOCAB)
  apply = jax.jit(model.apply)
  change = apply(variables, tokens) - apply(variables, moved)
  change = np.abs(change).max((0, 2))
  assert (change[:3] > 1e-3).all()
  np.testing.assert_allclose(change[3:], 0.0, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_past_the_vocabulary_are_never_likely(tied, draw):
  tokens = jnp.array([[3, 29, 5]])
  padded = MAKE(pad_vocab=16, tied=tied, dtype=jnp.bfloat16)
  boxed = draw(padded, tokens)
  assert boxed["params"]["embedding"]["table"].names == ("vocab", "embed")
  variables = nn.unbox(boxed)
  assert variables["params"]["embedding"]["table"].shape == (32, 16)
  got = jax.jit(padded.apply)(variables, tokens)
  assert got.dtype == jnp.float32 and got.shape == (1, 3, 32)
  assert (got[..., VOCAB:] < -1e29).all()
  plain = MAKE(tied=tied, dtype=jnp.bfloat16)
  p = variables["params"]
  p["embedding"]["table"] = p["embedding"]["table"][:VOCAB]
  if not tied:
    p["head"] = p["head"][:, :VOCAB]
  want = jax.jit(plain.apply)({"params": p}, tokens)
  np.testing.assert_allclose(got[..., :VOCAB], want, atol=1e-5)


def test_ends_of_branches_start_smaller(key):
  model = MAKE(width=64, depth=8, mlp=128)
  variables = jax.jit(model.init)(key, jnp.zeros((1, 2), jnp.int32))
  blocks = nn.unbox(variables)["params"]["decoder"]["blocks"]
  for kernel, want in (
    (blocks["attention"]["query"]["kernel"], 0.3),
    (blocks["mlp"]["up"]["kernel"], 0.3),
    (blocks["attention"]["out"]["kernel"], 0.3 / 4),
    (blocks["mlp"]["down"]["kernel"], 0.3 / 4),
  ):
    np.testing.assert_allclose(np.std(kernel), want, rtol=0.05)


@pytest.mark.parametrize(
  "rate", ["embed_dropout", "attention_dropout", "dropout"]
)
def test_each_dropout_acts_in_training_only(key, rate, draw):
  model = MAKE(**{rate: 0.5})
  tokens = jnp.array([[1, 2, 3]])
  variables = nn.unbox(draw(model, tokens))
  apply = jax.jit(model.apply, static_argnames="train")
  still = apply(variables, tokens)
  drawn = apply(variables, tokens, train=True, rngs={"dropout": key})
  assert np.abs(still - drawn).max() > 1e-2
  plain = jax.jit(MAKE().apply)
  np.testing.assert_array_equal(still, plain(variables, tokens))


def test_more_slots_than_positions_are_refused(draw):
  model = MAKE()
  tokens = jnp.zeros((1, 4), jnp.int32)
  variables = nn.unbox(draw(model, tokens))
  for slots in (3, 13):
    with pytest.raises(errors.InputError, match=rf"slots = {slots}.* 12"):
      model.apply(variables, tokens, slots=slots, method="start")
  with pytest.raises(errors.InputError, match=r"13 tokens.*length = 12"):
    model.apply(variables, jnp.zeros((1, 13), jnp.int32))
