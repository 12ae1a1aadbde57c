"""Exact accumulation: the same gradient, less memory."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.build import build
from mmjax.layers.pool import unit
from mmjax.losses import contrastive as losses
from mmjax.models.dual_encoder import Scale
from mmjax.parallel import mesh, rules
from mmjax.tasks import contrastive


class Towers(nn.Module):
  """Two small towers that compile in a moment; optionally with noise."""

  dropout: float = 0.0
  statistics: bool = False
  depth: int = 1

  @nn.compact
  def __call__(self, image=None, text=None, *, train=False):
    if self.statistics:
      seen = self.variable("batch_stats", "seen", jnp.zeros, ())
      if train:
        seen.value += 1
    if image is not None:
      image = image.reshape(image.shape[0], -1)
      for i in range(self.depth):
        image = jnp.tanh(nn.Dense(32, name=f"i{i}")(image))
      image = nn.Dropout(self.dropout, deterministic=not train)(image)
      image = unit(nn.Dense(4, name="image_projection")(image))
    if text is not None:
      text = jnp.tanh(nn.Embed(32, 8, name="t")(text).mean(1))
      text = unit(nn.Dense(4, name="text_projection")(text))
    zeros = nn.initializers.zeros
    log_t, b = self.param("log_t", zeros, ()), self.param("b", zeros, ())
    return image, text, Scale(5 * jnp.exp(log_t), b - 2)


def make(depth=1, loss="sigmoid", loss_impl="dense", **keywords):
  return contrastive.Contrastive(
    Towers(depth=depth), objective=loss, impl=loss_impl, **keywords
  )


def refuse(**keywords):
  return build("tasks", name="contrastive", **{**contrastive.TINY, **keywords})


def batch(rows=16, seed=0, side=8):
  rng = np.random.default_rng(seed)
  return {
    "image": jnp.asarray(rng.integers(0, 256, (rows, side, side, 3)), "uint8"),
    "text": jnp.asarray(rng.integers(1, 32, (rows, 6)), "int32"),
  }


def params_of(task):
  init = jax.jit(task.init)
  return nn.unbox(init(jax.random.key(0), batch(2)))["params"]


def value_and_gradients(task, data, layout=None, rngs=None):
  def f(params, data):
    value, aux = task.loss(params, {}, data, rngs or {})
    return value, aux.metrics

  f = jax.jit(jax.value_and_grad(f, has_aux=True))
  if layout is None:
    return f(params_of(task), data)
  with layout.use():
    data = {
      k: jax.device_put(v, layout.batch_sharding(v.ndim))
      for k, v in data.items()
    }
    return f(jax.device_put(params_of(task), layout.replicated), data)


def assert_close(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-6)


@pytest.fixture(scope="module")
def single():
  return {
    loss: value_and_gradients(make(loss=loss), batch())
    for loss in contrastive.LOSSES
  }


@pytest.mark.parametrize(
  ("loss", "impl", "axes"),
  [
    ("sigmoid", "dense", None),
    ("softmax", "chunked", None),
    ("softmax", "dense", {"data": 8}),
    ("sigmoid", "ring", {"data": 8}),
  ],
)
def test_microbatches_have_the_gradient_of_the_batch(loss, impl, axes, single):
  layout = None if axes is None else rules.Layout(mesh.make_mesh(axes))
  task = make(loss=loss, loss_impl=impl, chunk=4, microbatches=2)
  assert_close(value_and_gradients(task, batch(), layout), single[loss])


def test_averaging_over_parts_is_not_the_same(single):
  # The negative control: what accumulation of ordinary losses would give.
  halves = [
    value_and_gradients(make(), {k: v[i::2] for k, v in batch().items()})
    for i in range(2)
  ]
  mean = jax.tree.map(lambda x, y: (x + y) / 2, halves[0][1], halves[1][1])
  kernel = "text_projection"
  difference = mean[kernel]["kernel"] - single["sigmoid"][1][kernel]["kernel"]
  size = np.abs(single["sigmoid"][1][kernel]["kernel"]).max()
  assert np.abs(difference).max() > 0.05 * size


def test_activations_of_one_part_at_a_time():
  data = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch(4096)
  )
  bytes_of = {}
  for parts in (1, 8):
    # The chunked loss, so that the logits of 4096 rows do not drown the rest.
    task = make(6, loss_impl="chunked", chunk=64, microbatches=parts)
    params = jax.eval_shape(
      lambda task=task: nn.unbox(task.init(jax.random.key(0), batch(2)))[
        "params"
      ]
    )
    f = jax.grad(lambda p, d, task=task: task.loss(p, {}, d, {})[0])
    compiled = jax.jit(f).lower(params, data).compile()
    bytes_of[parts] = compiled.memory_analysis().temp_size_in_bytes
  assert bytes_of[8] < bytes_of[1] / 3, bytes_of


def test_loss_is_that_of_the_predicted_embeddings():
  task = make(loss="softmax")
  variables = {"params": params_of(task)}
  image_BD = task.predict["image"](variables, {"image": batch()["image"]})
  text_BD = task.predict["text"](variables, {"text": batch()["text"]})
  np.testing.assert_allclose(jnp.linalg.norm(image_BD, axis=1), 1, rtol=1e-5)
  value, aux = jax.jit(task.loss)(variables["params"], {}, batch(), {})
  want, _ = losses.softmax(image_BD, text_BD, aux.metrics["temperature"])
  np.testing.assert_allclose(value, want, rtol=1e-5)


def test_uint8_is_brought_to_minus_one_to_one():
  task = make()
  variables = {"params": params_of(task)}
  image = batch()["image"]
  as_float = image.astype(jnp.float32) / 127.5 - 1
  got, want = (
    task.predict["image"](variables, {"image": x}) for x in (image, as_float)
  )
  np.testing.assert_allclose(got, want, atol=1e-6)
  low = contrastive.Contrastive(task.model, dtype=jnp.bfloat16)
  edges = low._image(jnp.asarray([[0, 255]], jnp.uint8))
  assert edges.dtype == jnp.bfloat16
  np.testing.assert_array_equal(edges.astype(jnp.float32), [[-1.0, 1.0]])


def test_every_part_drops_other_units():
  row = batch(1)
  same = {k: jnp.repeat(v, 4, axis=0) for k, v in row.items()}
  task = contrastive.Contrastive(Towers(dropout=0.5), microbatches=4)
  params = params_of(task)
  rngs = {"dropout": jax.random.key(1)}
  encode = jax.jit(task._encode_in_parts)
  image_BD, _, _ = encode(params, {}, same, rngs)
  assert len(np.unique(np.asarray(image_BD).round(3), axis=0)) == 4
  calm = contrastive.Contrastive(Towers(), microbatches=4)
  image_BD, _, _ = calm._encode_in_parts(params, {}, same, {})
  assert len(np.unique(np.asarray(image_BD).round(3), axis=0)) == 1


def test_statistics_are_updated_and_refused_in_parts():
  model = Towers(statistics=True)
  task = contrastive.Contrastive(model)
  variables = nn.unbox(task.init(jax.random.key(0), batch(2)))
  mutable = {"batch_stats": variables["batch_stats"]}
  rngs = {"dropout": jax.random.key(1)}
  _, aux = task.loss(variables["params"], mutable, batch(), rngs)
  assert float(aux.mutable["batch_stats"]["seen"]) == 1.0
  task = contrastive.Contrastive(model, microbatches=2)
  with pytest.raises(errors.InputError, match="batch_stats"):
    task.loss(variables["params"], mutable, batch(), rngs)


@pytest.mark.parametrize(
  ("keywords", "words"),
  [
    ({"loss": "sigmoyd"}, ["sigmoyd", "Did you mean 'sigmoid'?"]),
    ({"loss_impl": "rng"}, ["'rng'", "Did you mean 'ring'?"]),
    ({"microbatches": 0}, ["microbatches = 0"]),
    ({"model": {"width": 3}}, ["has no name"]),
    ({"model": {"name": "dual_encodr"}}, ["dual_encoder"]),
  ],
)
def test_bad_keywords(keywords, words):
  with pytest.raises(errors.InputError) as error:
    refuse(**keywords)
  assert all(word in str(error.value) for word in words)


def test_batch_that_has_no_equal_parts():
  task = make(microbatches=3)
  with pytest.raises(errors.InputError, match="multiple of 3"):
    task.loss(params_of(task), {}, batch(16), {})
