"""Checkpoints: what goes in comes out, and what does not fit is refused."""

import errno
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors, tree
from mmjax.parallel import mesh, rules
from mmjax.train import checkpoint
from mmjax.train.state import TrainState

SHAPES = {"kernel": (8, 16), "bias": (16,)}


def state(layout, seed=0, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  names = {"kernel": ("embed", "mlp"), "bias": ("mlp",)}
  params = {
    "layer": {
      k: jax.device_put(
        jnp.asarray(rng.normal(size=shape), dtype),
        layout.sharding(names[k], shape),
      )
      for k, shape in SHAPES.items()
    }
  }
  whole = layout.replicated
  return TrainState(
    step=jax.device_put(jnp.int32(seed), whole),
    params=params,
    mutable={},
    opt=(params, jax.device_put(jnp.int32(7), whole)),
    ema=None,
    rng=jax.device_put(jnp.arange(2, dtype=jnp.uint32), whole),
  )


def shapes(x):
  return jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), x
  )


@pytest.fixture
def layout():
  return rules.Layout(mesh.make_mesh({"data": 8}))


@pytest.mark.parametrize(
  "axes", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_goes_in_comes_out_on_any_mesh(tmp_path, layout, axes, dtype):
  saved_state = state(layout, dtype=dtype)
  with checkpoint.Checkpoints(tmp_path) as saved:
    saved.save(3, saved_state)
  other = state(rules.Layout(mesh.make_mesh(axes)), seed=1, dtype=dtype)
  with checkpoint.Checkpoints(tmp_path) as saved:
    assert saved.latest() == 3
    found = saved.restore(shapes(other))
  assert jax.tree.structure(found) == jax.tree.structure(saved_state)
  for a, b, place in zip(
    *map(jax.tree.leaves, (found, saved_state, other)), strict=True
  ):
    np.testing.assert_array_equal(a, b)
    assert a.dtype == b.dtype and a.sharding == place.sharding


def test_some_leaves_only(tmp_path, layout):
  whole = state(layout)
  with checkpoint.Checkpoints(tmp_path) as saved:
    saved.save(1, whole)
    saved.wait()
    want = shapes(whole).replace(opt=jax.ShapeDtypeStruct((9,), jnp.int8))
    found = saved.restore(want, only=lambda name: name.startswith("params/"))
  assert tree.names(found) == ["params/layer/bias", "params/layer/kernel"]


def test_the_record_beside_the_state(tmp_path, layout):
  config = {"seed": 0, "ks": (1, 5)}
  with checkpoint.Checkpoints(tmp_path, config=config) as saved:
    saved.save(2, state(layout))
    saved.wait()
    about = saved.about()
  assert about["step"] == 2 and about["config"] == {"seed": 0, "ks": [1, 5]}
  assert about["leaves"]["params/layer/kernel"] == [[8, 16], "float32"]
  assert about["jax"] == jax.__version__
  revision = about["revision"]
  assert revision is None or len(revision.rstrip("+")) == 40


def test_the_oldest_go(tmp_path, layout):
  with checkpoint.Checkpoints(tmp_path, keep=2) as saved:
    for step in (1, 2, 3):
      saved.save(step, state(layout, seed=step))
    saved.wait()
    assert saved.restore(shapes(state(layout)), 2).step == 2
    with pytest.raises(
      errors.StorageError, match=r"step 1; there are \[2, 3\]"
    ):
      saved.restore(shapes(state(layout)), 1)


def test_a_half_written_checkpoint_is_ignored_and_removed(tmp_path, layout):
  with checkpoint.Checkpoints(tmp_path) as saved:
    saved.save(1, state(layout))
  # What a process leaves that is killed while it saves.
  half = tmp_path / "2.orbax-checkpoint-tmp"
  shutil.copytree(tmp_path / "1", half)
  for name in ("commit_success.txt", "state/manifest.ocdbt"):
    (half / name).unlink(missing_ok=True)
  with checkpoint.Checkpoints(tmp_path, read_only=True) as saved:
    assert saved.latest() == 1 and half.exists()
  with checkpoint.Checkpoints(tmp_path) as saved:
    assert saved.latest() == 1
    saved.restore(shapes(state(layout)))
    saved.save(2, state(layout))
  assert not half.exists() and (tmp_path / "2").exists()


def test_a_state_that_does_not_fit_is_refused_with_a_table(tmp_path, layout):
  old = state(layout)
  with checkpoint.Checkpoints(tmp_path) as saved:
    saved.save(1, old)
  kernel = jnp.zeros((8, 4), jnp.float32, device=layout.replicated)
  new = old.replace(
    params={"layer": {"kernel": kernel, "biases": old.params["layer"]["bias"]}},
    rng=old.rng.astype(jnp.int32),
  )
  with (
    checkpoint.Checkpoints(tmp_path) as saved,
    pytest.raises(errors.InputError) as caught,
  ):
    saved.restore(shapes(new))
  told = str(caught.value)
  first, head, *rows = told.splitlines()
  assert "1 unexpected, 1 missing, 1 shape, 1 dtype of 7 leaves" in first
  assert head.split() == ["what", "leaf", "checkpoint", "config"]
  assert [r.split()[:2] for r in rows] == [
    ["unexpected", "params/layer/bias"],
    ["missing", "params/layer/biases"],
    ["shape", "params/layer/kernel"],
    ["dtype", "rng"],
  ]
  assert "nearest: params/layer/biases" in rows[0]
  assert "float32[8, 16]" in rows[2] and "float32[8, 4]" in rows[2]


def test_a_long_table_is_cut():
  many = {f"leaf{i}": [[1], "float32"] for i in range(25)}
  with pytest.raises(errors.InputError) as caught:
    checkpoint.check_fit(many, {}, "x")
  lines = str(caught.value).splitlines()
  assert len(lines) == 2 + 10 + 1 and lines[-1] == "... and 15 more"
  checkpoint.check_fit(many, many, "x")


def test_no_checkpoint(tmp_path, layout):
  with (
    checkpoint.Checkpoints(tmp_path) as saved,
    pytest.raises(errors.StorageError, match="there is no checkpoint"),
  ):
    assert saved.latest() is None
    saved.restore(shapes(state(layout)))


def test_a_damaged_checkpoint_says_so(tmp_path, layout):
  with checkpoint.Checkpoints(tmp_path) as saved:
    saved.save(1, state(layout))
  for path in (tmp_path / "1" / "state").rglob("*"):
    if path.is_file() and path.parent.name == "d":
      path.write_bytes(b"rot")
  with (
    checkpoint.Checkpoints(tmp_path) as saved,
    pytest.raises(errors.StorageError, match="cannot be read"),
  ):
    saved.restore(shapes(state(layout)))


@pytest.mark.parametrize(
  "text, says", [("", "KeyError"), (" \n", "KeyError"), ("a\nb", "a")]
)
def test_a_reason_is_one_line_or_a_name(tmp_path, text, says):
  class Wordy(KeyError):
    def __str__(self):
      return text

  Wordy.__name__ = "KeyError"
  with (
    pytest.raises(errors.StorageError) as caught,
    checkpoint._Readable(tmp_path),
  ):
    raise Wordy
  assert f"cannot be read ({says}); delete" in str(caught.value)


def test_too_little_space_is_found_before_the_run(
  tmp_path, layout, monkeypatch
):
  one = tree.size_bytes(state(layout))
  monkeypatch.setattr(
    checkpoint.resilience, "free_bytes", lambda _: 2 * one - 1
  )
  with checkpoint.Checkpoints(tmp_path, keep=1) as saved:
    with pytest.raises(errors.StorageError) as caught:
      saved.check_space(state(layout))
    assert str(tmp_path) in str(caught.value)
    assert "checkpoints of 1.1 KiB need 2.3 KiB" in str(caught.value)
    saved.save(1, state(layout))
    saved.wait()
    saved.check_space(state(layout))  # one of the two is there by now


def test_a_disk_that_fills_up_while_saving(tmp_path, layout, monkeypatch):
  """The write fails in orbax's thread, after `save` has returned."""
  import orbax.checkpoint as ocp

  def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")

  saved = checkpoint.Checkpoints(tmp_path)
  saved.save(1, state(layout))
  saved.wait()
  monkeypatch.setattr(
    ocp.CheckpointManager, "check_for_errors", full, raising=True
  )
  with pytest.raises(errors.StorageError, match="no space left") as caught:
    saved.check()
  assert "needed" in str(caught.value) and "free" in str(caught.value)
  monkeypatch.undo()
  saved.close()
