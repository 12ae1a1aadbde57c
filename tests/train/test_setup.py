"""A config becomes a Run, and a Run trains on real records."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors, tree
from mmjax.parallel import mesh, rules
from mmjax.train import setup
from mmjax.typing import Aux

SOURCE = dict(name="emoji", vendors=("noto",), split="train")
TOWER = dict(width=16, depth=1, heads=2, mlp=32)
CONFIG = dict(
  steps=4,
  batch_size=16,
  mesh=dict(data=2, fsdp=4),
  tokenizers={"t": dict(kind="bytes")},
  data=dict(
    source=SOURCE,
    pp="decode|resize(16)|tokenize('t', key='name', length=8, to='text')"
    "|keep('image', 'text')",
  ),
  task=dict(
    name="contrastive",
    model=dict(
      name="dual_encoder",
      embed_dim=8,
      image=dict(name="vit", patch=8, **TOWER),
      text=dict(name="text_encoder", vocab_size=None, length=8, **TOWER),
    ),
  ),
  optimizer=dict(lr=1e-2, schedule=dict(name="constant"), ema_decay=0.9),
  evals={
    "r": dict(
      name="retrieval",
      data=dict(SOURCE, split="test"),
      image_pp="decode|resize(16)|keep('image')",
      text_pp="tokenize('t', key='text', length=8)|keep('text')",
      every=2,
    )
  },
)


@pytest.fixture(scope="module")
def run():
  return setup.setup(CONFIG)


def test_what_exists_before_step_0(run):
  assert run.config.task.model.text.vocab_size == 259
  assert run.config.log_every == 50
  assert dict(run.layout.mesh.shape)["fsdp"] == 4
  assert run.batch_shapes["image"].shape == (16, 16, 16, 3)
  assert run.state_shapes.step.shape == ()
  kernel = run.axes["image"]["encoder"]["blocks"]["mlp"]["up"]["kernel"]
  assert kernel == ("layers", "embed", "mlp")


def test_evaluators_are_built_once(run):
  assert list(run.evaluators()) == ["r"]
  assert run.evaluators() is run.evaluators()


@pytest.mark.slow  # experiments do
def test_steps_on_real_records(run):
  state = run.init()
  for key, leaf in tree.items(state):
    pinned = dict(tree.items(run.shardings))[key]
    assert leaf.sharding.is_equivalent_to(pinned, leaf.ndim), key
  first = jax.device_get(state.params)
  donated = jax.tree.leaves(state.params)
  with run.feed() as feed:
    for _ in range(2):
      state, metrics = run.step(state, next(feed))
  assert int(state.step) == 2 and np.isfinite(metrics["loss"])
  assert float(metrics["lr"]) == pytest.approx(1e-2)
  assert any(leaf.is_deleted() for leaf in donated)
  moved = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()), first, jax.device_get(state.params)
  )
  assert max(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize(
  "change, word",
  [
    (dict(mesh=dict(data=64)), "64"),
    (dict(batch_size=20), "16 or 24"),
    (dict(optimizer=dict(lr=1.0, freeze=["imagge"])), "matches none"),
    (dict(stepz=1), "'steps'"),
  ],
)
def test_mistakes(change, word):
  with pytest.raises(errors.InputError, match=word):
    setup.setup({**CONFIG, **change})


class Norm:
  """Keeps a running mean in `mutable`, replicated, beside a split matrix."""

  def init(self, rng, batch):
    box = nn.LogicallyPartitioned
    value = jax.random.normal(rng, (8, 4))
    return {
      "params": {"kernel": box(value, ("embed", "mlp"))},
      "stats": {"mean": jnp.zeros(8)},
    }

  def loss(self, params, mutable, batch, rngs):
    mean = 0.5 * mutable["stats"]["mean"] + 0.5 * batch["x"].mean(0)
    value = ((batch["x"] @ params["kernel"]) ** 2).mean()
    return value, Aux({"stats": {"mean": mean}}, {"loss": value})


def assemble(sizes, devices=None, **keywords):
  layout = rules.Layout(mesh.make_mesh(sizes, devices))
  batch = {"x": jax.ShapeDtypeStruct((8, 8), jnp.float32)}
  optimizer = dict(name="adafactor", lr=0.1, min_dim_size_to_factor=2)
  return setup.assemble(Norm(), optimizer, batch, layout, steps=3, **keywords)


def test_init_is_the_same_on_every_mesh_and_differs_by_seed():
  one = assemble({}, jax.devices()[:1]).init()
  many = assemble({"fsdp": 4, "tensor": 2}).init()
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
    np.testing.assert_array_equal(a, b)
  other = assemble({}, jax.devices()[:1], seed=1).init()
  assert not np.array_equal(one.params["kernel"], other.params["kernel"])


def test_mutable_variables_and_factored_moments_keep_their_place():
  run = assemble({"fsdp": 4, "tensor": 2}, nan="skip")
  x = np.ones((8, 8), np.float32)
  batch = {"x": jax.device_put(x, run.batch_shapes["x"].sharding)}
  state, metrics = run.step(run.init(), batch)
  np.testing.assert_array_equal(state.mutable["stats"]["mean"], np.full(8, 0.5))
  assert float(metrics["skipped"]) == 0
  pinned = dict(tree.items(run.shardings))
  for key, leaf in tree.items(state):
    assert leaf.sharding.is_equivalent_to(pinned[key], leaf.ndim), key
  rows = [k for k in pinned if "v_row" in k]
  assert not pinned[rows[0]].is_fully_replicated
