"""The state: fresh keys each step, and a place for every optimizer leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.parallel import mesh
from mmjax.train import optimizers, state

VARIABLES = {
  "params": {"a": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}},
  "stats": {"mean": jnp.zeros(3)},
}


def make(ema=False, **keywords):
  keywords = {"lr": 0.1, "steps": 3, **keywords}
  opt = optimizers.build(VARIABLES["params"], **keywords)
  return state.create(jax.random.key(7), VARIABLES, opt.tx, ema=ema)


def test_leaves_are_plain_arrays_and_advance():
  s = make()
  for leaf in jax.tree.leaves(s):
    np.asarray(leaf)
  assert s.mutable == {"stats": VARIABLES["stats"]} and s.ema is None
  new = s.advance(s.params, s.opt, s.mutable)
  assert (int(s.step), int(new.step)) == (0, 1)


def test_each_step_has_its_own_key():
  s = make()
  keys = [
    jax.random.key_data(s.replace(step=jnp.int32(i)).key()) for i in range(5)
  ]
  assert len({tuple(np.asarray(k).tolist()) for k in keys}) == 5
  want = jax.random.fold_in(jax.random.key(7), 3)
  np.testing.assert_array_equal(keys[3], jax.random.key_data(want))


def test_variables_prefer_the_average():
  s = make(ema=True)
  s = s.replace(ema=jax.tree.map(lambda x: x * 0, s.ema))
  assert float(s.variables()["params"]["a"]["bias"].sum()) == 0
  assert float(s.variables(ema=False)["params"]["a"]["bias"].sum()) == 4
  assert "stats" in s.variables()


def test_average_has_its_own_buffers():
  # Donating a state whose leaves share a buffer is an error at run time.
  s = jax.jit(lambda: make(ema=True))()
  jax.jit(lambda s: s, donate_argnums=0)(s)


@pytest.mark.parametrize(
  "name, own, places",
  [
    ("adamw", {}, {"mu": P("fsdp", "tensor"), "nu": P("fsdp", "tensor")}),
    ("sgd", {"momentum": 0.9}, {"trace": P("fsdp", "tensor")}),
    (
      "adafactor",
      {"min_dim_size_to_factor": 2},
      {"v_row": P("tensor"), "v_col": P("fsdp")},
    ),
  ],
)
@pytest.mark.parametrize("freeze", [(), ("bias",)])
def test_optimizer_leaves_live_with_their_parameter(name, own, places, freeze):
  here = mesh.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  params = VARIABLES["params"]
  shardings = {
    "a": {
      "kernel": NamedSharding(here, P("fsdp", "tensor")),
      "bias": NamedSharding(here, P("tensor")),
    }
  }
  opt = optimizers.build(
    params, name=name, lr=0.1, steps=3, freeze=freeze, **own
  )
  shapes = jax.eval_shape(opt.tx.init, params)
  found = state.opt_shardings(shapes, params, shardings)
  assert jax.tree.structure(found) == jax.tree.structure(shapes)
  by_name = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.spec
    for path, leaf in jax.tree_util.tree_leaves_with_path(found)
  }
  for part, spec in places.items():
    (got,) = [v for k, v in by_name.items() if k.endswith(f"{part}/a/kernel")]
    assert got == spec, (part, by_name)
  # Whatever is placed must divide: jit refuses anything else.
  jax.jit(opt.tx.init, out_shardings=found)(params)


def test_v_row_and_v_col_of_a_square_matrix():
  params = {"kernel": (4, 4)}
  assert state.owner("0/v_row/kernel", (4,), params) == ("kernel", (0,))
  assert state.owner("0/v_col/kernel", (4,), params) == ("kernel", (1,))
  assert state.owner("0/count", (), params) is None
  assert state.owner("0/v/kernel", (1,), params) is None


def test_the_longest_name_wins():
  params = {"kernel": (4, 4), "a/kernel": (4, 4)}
  assert state.owner("0/mu/a/kernel", (4, 4), params)[0] == "a/kernel"
