"""HTS-AT: its fold, its fusion, what it refuses; the reference: test_golden."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax import errors, tree
from mmjax.models import htsat

TINY = dict(htsat.TINY, fused=False, depths=(1, 1))


def shapes(model, *inputs):
  inputs = [jax.ShapeDtypeStruct(*x) for x in inputs]
  return nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs))


def test_fusion_adds_what_is_published():
  counts = []
  for fused, lead in ((False, ()), (True, (4,))):
    model = htsat.build("tiny", fused=fused)
    inputs = [((1, *lead, 1001, 64), jnp.float32)]
    inputs += [((1,), jnp.bool_)] if fused else []
    params = shapes(model, *inputs)["params"]
    assert model.width == 768
    assert params["stage2"]["blocks"]["window"]["table"].shape == (6, 225, 16)
    counts.append(tree.count(params))
  assert counts[1] - counts[0] == 153_507_530 - 153_492_890


def test_the_fold_puts_pieces_of_time_below_each_other():
  model = htsat.build(**TINY)  # 16 x 16 of 64 frames and 4 mels
  x = jnp.arange(64.0 * 4).reshape(1, 1, 64, 4)
  image = np.asarray(model._folded(x))[0, 0]
  for t, f in ((0, 0), (15, 3), (16, 0), (63, 3), (37, 2)):
    assert image[t // 16 * 4 + f, t % 16] == t * 4 + f


def test_short_sounds_are_stretched_end_to_end():
  model = htsat.build(**TINY)
  x = jnp.linspace(0.0, 1.0, 40)[None, None, :, None] * jnp.ones((1, 1, 1, 4))
  image = np.asarray(model._folded(x))[0, 0]
  time = image[::4].reshape(-1)
  np.testing.assert_allclose(time[[0, -1]], [0.0, 1.0], atol=1e-6)
  # Not exactly a line: the kernel's a is -0.75.
  np.testing.assert_allclose(time, np.linspace(0, 1, 64), atol=5e-3)


@pytest.mark.slow
def test_parts_are_read_of_longer_sounds_only(key):
  model = htsat.build(**htsat.TINY)
  audio = jax.random.normal(key, (2, 4, 50, 4))
  longer = jnp.array([1, 0])
  variables = jax.jit(model.init)(key, audio, longer)
  f = jax.jit(lambda a: model.apply(variables, a, longer)[0])
  moved = np.abs(f(audio) - f(audio.at[:, 2].add(1.0))).max(1)
  assert moved[0] > 1e-4 and moved[1] == 0
  # One mel: norms take away what all have in common.
  moved = np.abs(f(audio) - f(audio.at[:, 0, :, 1].add(2.0))).max(1)
  assert (moved > 1e-4).all()


def test_training_moves_the_statistics_of_mels(key):
  model = htsat.build(**TINY, momentum=0.0)
  audio = 3.0 + jax.random.normal(key, (4, 50, 4))
  variables = jax.jit(model.init)(key, audio)
  _, new = jax.jit(
    lambda: model.apply(variables, audio, train=True, mutable=["batch_stats"])
  )()
  want = np.asarray(audio).mean((0, 1))
  np.testing.assert_allclose(
    new["batch_stats"]["mel_norm"]["mean"], want, rtol=1e-4
  )


@pytest.mark.parametrize(
  "kw, words",
  [
    (dict(), "width, depths and heads"),
    (dict(variant="tinny"), "Did you mean 'tiny'"),
    (dict(TINY, heads=(2,)), "its heads"),
    (dict(TINY, bins=5), "bins = 5, side = 16: the side must be"),
    (dict(TINY, side=20, patch=4), "side = 20: 2 stages"),
    (dict(TINY, patch=3, stride=2), "patch = 3, stride = 2"),
    (dict(TINY, fused=True, reduction=9), "reduction = 9"),
    (dict(TINY, act="xielu"), "xielu"),
  ],
)
def test_sizes_that_cannot_work_are_named(kw, words):
  with pytest.raises(errors.InputError, match=words):
    htsat.build(**kw)


@pytest.mark.parametrize(
  "fused, shape, words",
  [
    (False, (1, 50, 5), "takes .B frames 4."),
    (False, (1, 4, 50, 4), "takes .B frames 4."),
    (False, (1, 65, 4), "65 frames: at most 64"),
    (True, (1, 50, 4), "truncation='fusion'"),
    (True, (1, 4, 50, 4), "is_longer is not given"),
  ],
)
def test_inputs_that_do_not_fit_are_named(fused, shape, words):
  model = htsat.build(**dict(TINY, fused=fused))
  with pytest.raises(errors.InputError, match=words):
    shapes(model, (shape, jnp.float32))
