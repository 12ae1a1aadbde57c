import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors, tree
from mmjax.build import build
from mmjax.models import bert

TOKENS = jnp.array([[5, 6, 7, 0, 0, 0], [8, 3, 9, 63, 2, 1]])


def run(draw, **kw):
  """Returns a function of the call's arguments, always the same weights."""
  given = dict(bert.TINY, masked_words=False, next_sentence=False, depth=1)
  given |= kw
  model = bert.build(**given)
  variables = nn.unbox(draw(model, TOKENS))
  apply = jax.jit(model.apply)
  return lambda *args: apply(variables, *args)


@pytest.mark.parametrize(
  "keywords, published",
  [
    (dict(variant="base"), 109_482_240),
    (
      dict(variant="base", masked_words=True, next_sentence=True),
      110_106_428,
    ),
    (dict(variant="large"), 335_141_888),
    (
      dict(variant="large", masked_words=True, next_sentence=True),
      336_226_108,
    ),
    # RoBERTa base and large, MiniLM, BERT-tiny of their model cards.
    (
      dict(variant="base", vocab_size=50265, length=514, types=1, offset=1),
      124_645_632,
    ),
    (
      dict(variant="large", vocab_size=50265, length=514, types=1, offset=1),
      355_359_744,
    ),
    (dict(variant="minilm-l6"), 22_713_216),
    (dict(variant="minilm-l12"), 33_360_000),
    (dict(variant="tiny"), 4_385_920),
  ],
)
def test_published_parameter_counts(keywords, published):
  model = bert.build(**{"vocab_size": 30522, **keywords})
  tokens = jax.ShapeDtypeStruct((1, 16), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
  assert tree.count(nn.unbox(shapes)) == published


# The other pools cost as much, and differ in a line of `layers/pool.py`.
POOLS = pytest.mark.parametrize(
  "pool",
  [
    pytest.param(
      pool, marks=() if pool in ("cls", "pooler") else pytest.mark.slow
    )
    for pool in bert.POOLS
  ],
)


@POOLS
def test_one_vector_a_text_without_its_padding(draw, pool):
  embed = run(draw, pool=pool)
  y = embed(TOKENS)
  assert y.shape == (2, 32)
  np.testing.assert_allclose(embed(TOKENS[:1, :3])[0], y[0], atol=1e-5)
  # Negative control: with padding in sight it matters.
  seen = run(draw, pool=pool, mask_pad=False)
  assert np.abs(seen(TOKENS[:1, :3])[0] - seen(TOKENS)[0]).max() > 1e-4


@POOLS
def test_pools_are_of_the_tokens(draw, pool):
  x, out = run(draw)(TOKENS)
  want = {
    "mean": jnp.stack([x[0, :3].mean(0), x[1].mean(0)]),
    "cls": x[:, 0],
    "pooler": out["pooled"],
  }[pool]
  given = dict(pool=pool, pooler=True)
  np.testing.assert_allclose(run(draw, **given)(TOKENS), want, atol=1e-5)
  unit = run(draw, **given, normalise=True)(TOKENS)
  length = np.linalg.norm(want, axis=-1, keepdims=True)
  np.testing.assert_allclose(unit, want / length, atol=1e-5)


def test_masked_tokens_are_not_seen_wherever_they_stand(draw):
  encode = run(draw)
  mask = jnp.array([[1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]])
  x, _ = encode(TOKENS, mask)
  moved, _ = encode(TOKENS.at[0, 1].set(33).at[0, 4].set(44), mask)
  kept = np.asarray(mask[0], bool)
  np.testing.assert_allclose(moved[0, kept], x[0, kept], atol=1e-6)
  assert np.abs(moved[0, ~kept] - x[0, ~kept]).max() > 1e-3
  # A given mask takes the place of the padding's.
  everywhere, _ = encode(TOKENS, jnp.ones_like(TOKENS))
  assert np.abs(everywhere[0, 0] - encode(TOKENS)[0][0, 0]).max() > 1e-4


def test_types_matter(draw):
  encode = run(draw)
  mask = jnp.ones_like(TOKENS)
  x, _ = encode(TOKENS, mask)
  same, _ = encode(TOKENS, mask, jnp.zeros_like(TOKENS))
  other, _ = encode(TOKENS, mask, jnp.ones_like(TOKENS))
  np.testing.assert_array_equal(x, same)
  assert np.abs(x - other).max() > 1e-3


def test_norms_come_after_branches(draw):
  # So that each token leaves with mean 0 and variance 1 at the start.
  x, _ = run(draw)(TOKENS)
  np.testing.assert_allclose(x.mean(-1), 0, atol=1e-5)
  np.testing.assert_allclose(x.std(-1), 1, atol=1e-4)


def test_offset_positions_skip_padding(draw):
  encode = run(draw, offset=0, length=9, pool="cls")
  a = encode(jnp.array([[5, 6, 7, 0, 0]]))
  b = encode(jnp.array([[5, 0, 6, 0, 7]]))
  np.testing.assert_allclose(a, b, atol=1e-5)
  c = run(draw, length=9, pool="cls")(jnp.array([[5, 0, 6, 0, 7]]))
  assert np.abs(a - c).max() > 1e-3


def test_dropout_is_on_in_training_only(key):
  model = bert.build(**bert.TINY, dropout=0.5)
  variables = nn.unbox(jax.jit(model.init)(key, TOKENS))
  apply = jax.jit(model.apply, static_argnames="train")
  x, _ = apply(variables, TOKENS)
  y, _ = apply(
    variables, TOKENS, train=True, rngs={"dropout": jax.random.key(3)}
  )
  assert np.abs(x - y).max() > 1e-2


def test_it_is_a_text_tower(key):
  sizes = dict(width=32, depth=1, heads=4, mlp=64)
  model = build(
    "models",
    name="dual_encoder",
    image=dict(name="vit", **sizes, patch=4),
    text=dict(name="bert", **sizes, vocab_size=64, length=8, pool="mean"),
    embed_dim=16,
  )
  (_, text, _), variables = jax.jit(model.init_with_output)(
    key, jnp.zeros((2, 8, 8, 3)), TOKENS
  )
  assert text.shape == (2, 16)
  p = nn.unbox(variables)["params"]
  assert p["text_projection"]["kernel"].shape == (32, 16)
  assert "pooler" not in p["text"]


def test_errors_name_the_field():
  tiny = dict(bert.TINY, masked_words=False, next_sentence=False)
  for change, message in (
    (dict(variant="huge"), "variant = 'huge'"),
    (dict(width=None), "width not given"),
    (dict(pool="max"), "pool = 'max'"),
    (dict(remat="some"), "remat = 'some'"),
    (dict(act="xielu"), "activation = 'xielu'"),
    (dict(head_act="xielu"), "activation = 'xielu'"),
    (dict(normalise=True), "normalise = True"),
    (dict(pool="mean", masked_words=True), "pool = 'mean'"),
    (dict(next_sentence=True, pooler=False), "pooler = False"),
  ):
    with pytest.raises(errors.InputError, match=message):
      bert.build(**tiny | change)
