import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import build, errors, tree
from mmjax.models import clip_resnet


def train(model):
  return jax.jit(
    functools.partial(model.apply, train=True, mutable=["batch_stats"])
  )


def test_published_parameter_count_of_the_image_tower():
  # The whole models are counted in tests/weights/tables/test_openai_clip.py.
  model = clip_resnet.build("RN50")
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), image))
  assert tree.count(shapes["params"]) == 38_316_896


@pytest.mark.parametrize(
  "variant, heads",
  [("RN50", 32), ("RN101", 32), ("RN50x4", 40), ("RN50x16", 48)],
)
def test_heads_are_of_64_channels(variant, heads):
  assert clip_resnet.build(variant).heads == heads
  assert clip_resnet.build(variant, heads=8).heads == 8


def test_it_is_read_by_its_mean(key):
  pool = clip_resnet.AttentionPool(6, heads=2)
  x = jax.random.normal(key, (2, 3, 2, 8))
  out, variables = jax.jit(pool.init_with_output)(key, x)
  p = jax.tree.map(np.asarray, nn.unbox(variables)["params"])
  assert p["posemb"]["grid"].shape == (3, 2, 8)
  tokens = np.asarray(x).reshape(2, 6, 8)
  tokens = np.concatenate([tokens.mean(1, keepdims=True), tokens], 1)
  tokens += np.concatenate(
    [p["posemb"]["extra"], p["posemb"]["grid"].reshape(6, 8)]
  )
  a = p["attention"]
  q, k, v = (
    np.einsum("btd,dnh->btnh", tokens, a[n]["kernel"]) + a[n]["bias"]
    for n in ("query", "key", "value")
  )
  weights = jax.nn.softmax(np.einsum("bnh,btnh->bnt", q[:, 0], k) / 2, -1)
  want = np.einsum("bnt,btnh,nhe->be", weights, v, a["out"]["kernel"])
  np.testing.assert_allclose(out, want + a["out"]["bias"], atol=1e-5)


def test_training_moves_statistics_and_other_images_are_refused(key):
  model = clip_resnet.build(**clip_resnet.TINY)
  image = jax.random.normal(key, (2, 25, 16, 3))
  variables = nn.unbox(jax.jit(model.init)(key, image))
  (y, out), moved = train(model)(variables, image)
  assert y.shape == (2, 24) and out["tokens"].shape == (2, 3 * 2, 64)
  for a, b in zip(
    jax.tree.leaves(moved["batch_stats"]),
    jax.tree.leaves(variables["batch_stats"]),
    strict=True,
  ):
    assert np.abs(a - b).max() > 0
  with pytest.raises(errors.InputError, match="resize the image"):
    jax.eval_shape(model.apply, variables, image.swapaxes(1, 2))


def test_in_a_dual_encoder_it_has_the_joint_width():
  keywords = dict(
    name="dual_encoder",
    image=dict(name="clip_resnet", **clip_resnet.TINY),
    text=dict(
      name="text_encoder", vocab_size=20, width=16, depth=1, heads=2, mlp=16
    ),
    projected="text",
  )
  build.build("models", embed_dim=24, **keywords)
  with pytest.raises(errors.InputError, match="of width 24, embed_dim = 20"):
    build.build("models", embed_dim=20, **keywords)


def test_what_cannot_be_built():
  for keywords, says in (
    (dict(variant="RN18"), "models.clip_resnet variant = 'RN18'"),
    (dict(depths=[1, 1]), "stem, width not given"),
    (dict(variant="RN50", stem=5), "stem = 5: .* even"),
    (dict(variant="RN50", heads=7), "heads = 7: .* 2048 channels"),
  ):
    with pytest.raises(errors.InputError, match=says):
      clip_resnet.build(**keywords)
