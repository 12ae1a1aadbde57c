"""One program on every mesh: equal values, nothing lost, nothing replicated.

The compiled program is read: a constraint that vanished shows as a collective
larger than any parameter, or as an array with the whole batch on one device.
"""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import tree
from mmjax.build import build
from mmjax.parallel import collectives, mesh, rules
from mmjax.train import setup
from mmjax.train.step import make_step

# Sizes such that the whole batch's activations (56 x 6 x 16) are larger than
# the largest parameter (2 x 16 x 64), and one device's part of them smaller.
# No axis but the batch is a multiple of 56.
BATCH, WIDTH, EMBED = 56, 16, 12
PATCHES, LENGTH = 6, 5
TOWER = dict(width=WIDTH, depth=2, heads=2, mlp=4 * WIDTH)
MODEL = dict(
  name="dual_encoder",
  image=dict(name="vit", patch=4, pool="gap", **TOWER),
  text=dict(
    name="text_encoder", vocab_size=40, length=LENGTH, pool="mean", **TOWER
  ),
  embed_dim=EMBED,
  bias_init=-10.0,
)
SHAPES = {
  "image": jax.ShapeDtypeStruct((BATCH, 8, 12, 3), jnp.uint8),
  "text": jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32),
}
MESHES = {
  "1x1": {},
  "data8": {"data": 8},
  "fsdp8": {"fsdp": 8},
  "data2-fsdp2-tensor2": {"data": 2, "fsdp": 2, "tensor": 2},
}


def make(sizes, devices=None, **task):
  """Sets up the real dual encoder on a mesh."""
  if devices is None:
    devices = jax.devices()[: int(np.prod(list(sizes.values()) or [1]))]
  layout = rules.Layout(mesh.make_mesh(sizes, devices))
  task = build("tasks", name="contrastive", model=MODEL, **task)
  optimizer = dict(name="sgd", lr=1e-3, momentum=0.0, ema_decay=0.9)
  return setup.assemble(task, optimizer, SHAPES, layout, steps=10)


def host_batch():
  rng = np.random.default_rng(0)
  text = rng.integers(1, 40, SHAPES["text"].shape, dtype=np.int32)
  text[:, 3:][rng.random((BATCH, LENGTH - 3)) < 0.5] = 0
  return {
    "image": rng.integers(0, 256, SHAPES["image"].shape, dtype=np.uint8),
    "text": text,
  }


def compiled(run):
  return run.step.lower(run.state_shapes, run.batch_shapes).compile()


@pytest.fixture(scope="module")
def results():
  """{mesh: (run, compiled text, losses, first gradients, last state)}."""
  found, first = {}, None
  for name, sizes in MESHES.items():
    run = make(sizes)
    program = compiled(run)
    if first is None:
      first = jax.device_get(run.init())
    state = jax.device_put(first, run.shardings)
    batch = jax.device_put(
      host_batch(), {k: v.sharding for k, v in run.batch_shapes.items()}
    )
    losses, grads = [], None
    with run.layout.use():
      for _ in range(2):
        state, metrics = program(state, batch)
        losses.append(float(metrics["loss"]))
        if grads is None:
          grads = dict(gradients(state))
    found[name] = run, program.as_text(), losses, grads, state
  return found


def gradients(state):
  """Yields what momentum 0 keeps: the gradients of the last step, as they are."""
  for name, leaf in tree.items(state.opt):
    if "/trace/" in name:
      yield name.split("/trace/")[1], jax.device_get(leaf)


@pytest.mark.parametrize("name", list(MESHES)[1:])
def test_same_loss_and_gradients(results, name):
  _, _, losses, grads, _ = results[name]
  _, _, losses_1, grads_1, _ = results["1x1"]
  np.testing.assert_allclose(losses, losses_1, rtol=2e-6)
  assert list(grads) == list(grads_1) == tree.names(results[name][-1].params)
  # A key's bias has no gradient but rounding: attention does not see a shift
  # of all keys. So an error is measured against the largest gradient too.
  top = max(np.abs(g).max() for g in grads_1.values())
  for key, g_1 in grads_1.items():
    scale = max(np.abs(g_1).max(), 1e-3 * top)
    error = np.abs(grads[key] - g_1).max() / scale
    assert error < 2e-5, (key, error)
  # Not equal because nothing happens: the loss goes down.
  assert losses_1[1] < losses_1[0]


@pytest.mark.parametrize("name", list(MESHES))
def test_no_state_leaf_loses_an_axis(results, name):
  run, *_, state = results[name]
  pinned = dict(tree.items(run.shardings))
  for key, leaf in tree.items(state):
    assert leaf.sharding.is_equivalent_to(pinned[key], leaf.ndim), key
  if name == "1x1":
    return
  # And there is an axis to lose: every kernel and its moments are split.
  for key, leaf in tree.items(state):
    if key.endswith("kernel"):
      assert leaf.sharding.is_fully_replicated is (name == "data8"), key


def limit_bytes(run, batch=BATCH, embed=EMBED):
  """Returns the size of the largest parameter or the gathered embeddings."""
  params = [x.size * 4 for x in jax.tree.leaves(run.state_shapes.params)]
  return max(*params, batch * embed * 4)


def too_large(run, text):
  limit = limit_bytes(run)
  return [v for v in collectives.collectives(text) if v.bytes > limit]


def whole(run, text):
  """Returns activations of the whole batch on one device."""
  # What may be as long as the batch: embeddings, and this device's logits.
  width = max(EMBED, BATCH // run.layout.batch_shards)
  return [
    v
    for rows in (BATCH, BATCH * PATCHES, BATCH * LENGTH)
    for v in collectives.whole_batch(text, rows, width=width)
  ]


@pytest.mark.parametrize("name", list(MESHES)[1:])
def test_the_compiled_step_moves_and_copies_nothing_large(results, name):
  run, text, *_ = results[name]
  assert collectives.collectives(text)
  assert not too_large(run, text)
  assert not whole(run, text)


def test_control_without_constraints_both_are_found():
  run = make(MESHES["fsdp8"])
  step = jax.jit(
    make_step(run.task, run.tx),
    in_shardings=(
      run.shardings,
      {k: v.sharding for k, v in run.batch_shapes.items()},
    ),
    out_shardings=(run.shardings, None),
  )
  # JAX knows the mesh, but no layout is in use: constraints do nothing.
  with jax.set_mesh(run.layout.mesh):
    lowered = step.lower(run.state_shapes, run.batch_shapes)
  text = lowered.compile().as_text()
  assert too_large(run, text)
  assert whole(run, text)


def test_a_ring_never_has_all_embeddings_in_one_place():
  run = make(MESHES["fsdp8"], loss="softmax", loss_impl="ring", chunk=7)
  text = compiled(run).as_text()
  assert not too_large(run, text)
  assert not whole(run, text)
  shapes = [v.shape for v in collectives.collectives(text)]
  assert (BATCH, EMBED) not in shapes
  assert (BATCH // 8, EMBED) in shapes  # what it passes on


TPU = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-16",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "XLA_FLAGS": "",  # the compiler at its best, not as in other tests
}


@pytest.mark.slow
def test_v5e_pod_slice():
  """The real TPU compiler, for 16 chips that are not there."""
  pytest.importorskip("libtpu", reason="pip install -e '.[tpu]'")
  program = pathlib.Path(__file__).with_name("compile_v5e.py")
  done = subprocess.run(
    [sys.executable, str(program)],
    env={**os.environ, **TPU},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  print(done.stdout)
