"""Logical axes become specs; verbs act under a layout and vanish without."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mmjax import errors
from mmjax.parallel import mesh, rules


def layout(**sizes):
  return rules.Layout(mesh.make_mesh(sizes))


@pytest.mark.parametrize(
  "names, shape, spec",
  [
    (("batch", "length", "embed"), None, (("data", "fsdp"), "context", None)),
    (("embed", "mlp"), (6, 8), ("fsdp", "tensor")),
    (("embed", "embed"), (6, 8), ("fsdp", None)),  # used once
    (("embed", "mlp"), (6, 7), ("fsdp", None)),  # 7 is odd
    (("batch",), (2,), ("data",)),  # 2 rows on 4 parts: split less
    (("batch",), (3,), (None,)),
    (("layers", "embed", "heads", "head_dim"), (3, 4, 2, 8),
     (None, "fsdp", "tensor", None)),
    ((None, "vocab"), (5, 4), (None, "tensor")),
    ((), (), ()),
  ],
)  # fmt: skip
def test_spec(names, shape, spec):
  assert layout(data=2, fsdp=2, tensor=2).spec(names, shape) == P(*spec)


def test_the_table_names_only_mesh_axes():
  for axes in rules.RULES.values():
    assert set(axes) <= set(mesh.AXES)


def test_unknown_name_says_the_nearest():
  with pytest.raises(errors.InputError, match="'embed'"):
    layout(data=8).spec(("embd",))


def test_wrong_rank():
  with pytest.raises(ValueError, match="do not fit"):
    layout(data=8).spec(("embed",), (2, 3))


def test_batch():
  here = layout(data=2, fsdp=4)
  assert here.batch_axes == ("data", "fsdp")
  assert here.batch_shards == 8
  assert here.batch_sharding(3).spec == P(("data", "fsdp"), None, None)


def test_current_is_only_inside():
  here = layout(data=8)
  assert rules.current() is None
  with here.use():
    assert rules.current() is here
  assert rules.current() is None


def test_constrain_without_layout_is_the_same_object():
  x = jnp.ones((2, 3))
  assert rules.constrain(x, "batch", None) is x
  assert rules.per_shard(max, [], None) is max


def test_constrain_places():
  here = layout(data=4, fsdp=2)
  x = here.jit(lambda x: rules.constrain(x * 2, "batch", "embed"))(
    jnp.ones((8, 4))
  )
  assert x.sharding.is_equivalent_to(here.batch_sharding(2), 2)
  # Under `with mesh:` or nothing at all the result is not split like that.
  plain = jax.jit(lambda x: rules.constrain(x * 2, "batch", "embed"))(
    jnp.ones((8, 4))
  )
  assert not plain.sharding.is_equivalent_to(here.batch_sharding(2), 2)


def test_per_shard_sees_its_part_and_sums():
  here = layout(data=2, fsdp=2, tensor=2)
  seen = []

  def f(x, w):
    seen.append((x.shape, w.shape))
    x = rules.constrain(x, "batch", None)  # vanishes in here
    return jax.lax.psum((x @ w).sum(), ("data", "fsdp", "tensor"))

  x = jnp.arange(24.0).reshape(8, 3)
  w = jnp.arange(12.0).reshape(3, 4)
  with here.use():
    g = rules.per_shard(f, [("batch", None), (None, "mlp")], ())
    value = jax.jit(g)(x, w)
  assert seen[0] == ((2, 3), (3, 2))
  np.testing.assert_allclose(value, (np.array(x) @ np.array(w)).sum())


def test_per_shard_keeps_heads_and_kv_heads_together():
  # 8 heads could be split by 2, their 3 kv heads cannot: neither may be.
  here, seen = layout(data=4, tensor=2), []

  def f(q, k):
    seen.append((q.shape, k.shape))
    return q

  names = ("batch", "heads"), ("batch", "kv_heads")
  with here.use():
    g = rules.per_shard(f, names, names[0])
    jax.eval_shape(g, jnp.ones((4, 6)), jnp.ones((4, 3)))
    jax.eval_shape(g, jnp.ones((4, 4)), jnp.ones((4, 2)))
  assert seen == [((1, 6), (1, 3)), ((1, 2), (1, 1))]


def test_per_shard_takes_trees_and_gives_tuples():
  here = layout(data=8)

  def f(tree, scale):
    return tree["a"] * scale, tree["b"][:, None] + scale

  with here.use():
    g = rules.per_shard(f, [("batch",), None], [("batch",), ("batch", None)])
    a, b = jax.jit(g)({"a": jnp.ones(8), "b": jnp.ones(8)}, jnp.float32(3))
  np.testing.assert_array_equal(a, np.full(8, 3))
  np.testing.assert_array_equal(b, np.full((8, 1), 4))


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    init = nn.with_logical_partitioning
    x = nn.Dense(
      8,
      kernel_init=init(nn.initializers.lecun_normal(), ("embed", "mlp")),
      bias_init=init(nn.initializers.zeros, ("mlp",)),
    )(x)
    return nn.Dense(3, name="plain")(x)


def test_shardings_follow_boxes_and_leaves_without_are_whole():
  here = layout(data=2, fsdp=2, tensor=2)
  with here.use():
    boxed = jax.eval_shape(Net().init, jax.random.key(0), jnp.ones((2, 4)))
  specs = jax.tree.map(lambda s: s.spec, rules.shardings(here, boxed))
  assert specs["params"] == {
    "Dense_0": {"kernel": P("fsdp", "tensor"), "bias": P("tensor")},
    "plain": {"kernel": P(), "bias": P()},
  }
  assert rules.axis_names(boxed)["params"]["Dense_0"]["kernel"] == (
    "embed", "mlp",
  )  # fmt: skip
  assert rules.unbox(boxed)["params"]["Dense_0"]["bias"].shape == (8,)
