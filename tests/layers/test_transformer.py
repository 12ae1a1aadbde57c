import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.layers.block import Block, Each, Spec
from mmjax.layers.transformer import Stack, sized
from mmjax.ops import masks

SPEC = Spec(heads=2, mlp=16)
KW = dict(spec=SPEC, depth=3)


def value_and_grad(stack, variables, x, key, train=False):
  mask = masks.KeyPadding(jnp.array([3, 5]))

  def f(variables):
    y = stack.apply(variables, x, mask, not train, rngs={"dropout": key})
    return jnp.square(y).mean()

  return jax.jit(jax.value_and_grad(f))(variables)


def close(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5)


@pytest.fixture
def x(key):
  return jax.random.normal(key, (2, 5, 8))


def test_stack_is_its_blocks_in_turn(key, x):
  stack = Stack(**KW)
  boxed = jax.jit(stack.init)(key, x)
  kernel = boxed["params"]["blocks"]["mlp"]["up"]["kernel"]
  assert kernel.names == ("layers", "embed", "mlp")
  assert kernel.unbox().shape == (3, 8, 16)
  variables = nn.unbox(boxed)
  assert np.abs(np.diff(kernel.unbox(), axis=0)).min(axis=(1, 2)).all()
  want = x
  apply = jax.jit(Block(SPEC).apply)
  for i in range(3):
    layer = jax.tree.map(lambda a, i=i: a[i], variables["params"]["blocks"])
    want, _ = apply({"params": layer}, want)
  got = jax.jit(stack.apply)(variables, x)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_stack_of_depth_0_has_no_parameters(key, x):
  y, variables = Stack(**(KW | dict(depth=0))).init_with_output(key, x)
  assert variables == {}
  assert y is x


@pytest.fixture(scope="module")
def plain():
  """Variables, tokens, and what the plain stack makes of them."""
  key = jax.random.key(0)
  x = jax.random.normal(key, (2, 5, 8))
  variables = nn.unbox(jax.jit(Stack(**KW).init)(key, x))
  return variables, x, value_and_grad(Stack(**KW), variables, x, key)


@pytest.mark.parametrize(
  "kw",
  [
    dict(scan=False),
    dict(scan=False, remat="full"),
    dict(remat="full"),
    dict(remat="dots"),
  ],
)
def test_scan_and_remat_change_nothing(key, plain, kw):
  variables, x, want = plain
  close(value_and_grad(Stack(**KW, **kw), variables, x, key), want)


def test_blocks_can_have_something_of_their_own_and_tell_what_they_return(
  plain,
):
  """A factor of the scores is one of the queries."""
  variables, x, _ = plain
  factor = jnp.arange(1, KW["depth"] + 1, dtype=jnp.float32)
  got, told = jax.jit(
    lambda v: Stack(**KW).apply(v, x, each=Each(factor), every=True)
  )(variables)

  def scaled(path, leaf):
    if "query" not in jax.tree_util.keystr(path):
      return leaf
    return leaf * factor.reshape(-1, *(1,) * (leaf.ndim - 1))

  changed = jax.tree_util.tree_map_with_path(scaled, variables)
  want = jax.jit(Stack(**KW).apply)(changed, x)
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert told.shape == (KW["depth"], *x.shape)
  np.testing.assert_array_equal(told[-1], got)
  assert np.abs(told[0] - told[-1]).max() > 1e-2


@pytest.mark.slow  # compiles for long
def test_recomputation_draws_the_same_dropout(key, plain):
  variables, x, still = plain
  kw = dict(KW, spec=Spec(2, 16, dropout=0.2), drop_path=0.3)
  want = value_and_grad(Stack(**kw), variables, x, key, train=True)
  other = Stack(**kw, remat="full")
  close(value_and_grad(other, variables, x, key, train=True), want)
  assert np.abs(want[0] - still[0]) > 1e-3


def test_remat_keeps_less(key, x):
  x = jnp.broadcast_to(x[:, :1], (2, 64, 8))
  sizes = {}
  for remat in ("none", "dots", "full"):
    stack = Stack(Spec(2, 32), 8, remat=remat)
    variables = nn.unbox(jax.eval_shape(stack.init, key, x))
    f = lambda v, stack=stack: jnp.sum(stack.apply(v, x))  # noqa: E731
    compiled = jax.jit(jax.grad(f)).lower(variables).compile()
    sizes[remat] = compiled.memory_analysis().temp_size_in_bytes
  assert sizes["full"] < sizes["dots"] < sizes["none"], sizes


def test_stochastic_depth_drops_whole_branches(key, draw):
  block = Block(SPEC)
  x = jax.random.normal(key, (64, 3, 8))
  variables = nn.unbox(draw(block, x))
  # Only the last bias of the mlp speaks: a branch is 1 or nothing.
  variables = jax.tree.map(jnp.zeros_like, variables)
  mlp = variables["params"]["mlp"]["down"]
  mlp["bias"] = jnp.ones_like(mlp["bias"])
  apply = jax.jit(
    lambda rate: block.apply(
      variables, x, rate, None, None, False, rngs={"dropout": key}
    )[0]
  )
  branch = apply(jnp.float32(0.75)) - x
  kept = np.asarray(branch[:, 0, 0]) > 1
  want = np.where(kept, 4.0, 0.0)[:, None, None] * np.ones((1, 3, 8))
  np.testing.assert_allclose(branch, want, atol=1e-5)
  assert 4 <= kept.sum() <= 30  # of 64, expected 16
  np.testing.assert_allclose(apply(jnp.float32(0.0)) - x, 1.0, atol=1e-5)


def test_masked_tokens_are_not_read(draw, x):
  stack = Stack(**KW)
  variables = nn.unbox(draw(stack, x))
  mask = masks.KeyPadding(jnp.array([3, 3]))
  apply = jax.jit(lambda x: stack.apply(variables, x, mask))
  moved = x.at[:, 3:].add(1.0)
  np.testing.assert_allclose(apply(x)[:, :3], apply(moved)[:, :3], atol=1e-6)
  whole = jax.jit(stack.apply)(variables, x)
  assert np.abs(whole - apply(x)).max() > 1e-3


def test_unknown_remat_names_the_known(key, x):
  with pytest.raises(errors.InputError, match=r"remat = 'dot'.*'dots'"):
    Stack(**KW, remat="dot").init(key, x)


def test_bfloat16_computes_low_and_keeps_parameters_high(key, x):
  stack = Stack(**KW, dtype=jnp.bfloat16)
  low = x.astype(jnp.bfloat16)
  y, variables = jax.jit(stack.init_with_output)(key, low)
  assert y.dtype == jnp.bfloat16
  assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  want = jax.jit(Stack(**KW).apply)(nn.unbox(variables), x)
  np.testing.assert_allclose(y.astype(np.float32), want, atol=0.06)


def test_sizes_are_those_given_before_those_of_the_variant():
  names = ("width", "depth", "heads", "mlp", "patch")
  given = dict.fromkeys(names)
  found = sized("models.x", "S/16", {**given, "depth": 3})
  assert found == dict(width=384, depth=3, heads=6, mlp=1536, patch=16)
  for variant, message in (
    ("Q/16", "models.x variant = 'Q/16'"),
    ("S/a", "'a' is no number"),
    ("S", "models.x: patch not given"),
    (None, "models.x: width, depth, heads, mlp, patch not given"),
  ):
    with pytest.raises(errors.InputError, match=message):
      sized("models.x", variant, given)
  with pytest.raises(errors.InputError, match="variant = 'S/16'"):
    sized("models.x", "S/16", {"width": None})  # a text has no patch
