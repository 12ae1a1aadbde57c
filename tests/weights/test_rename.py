"""Rules undo themselves, whatever the sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmjax.weights import rename
from mmjax.weights.rename import Rule

SIZE = st.integers(1, 5)
few = settings(max_examples=30, deadline=None)


def counted(*shape):
  """Every value is another, so that no two places can be mistaken."""
  return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def undone(op, theirs, shape):
  ours = op.ours(theirs)
  assert ours.shape == shape
  np.testing.assert_array_equal(op.theirs(ours), theirs)
  return ours


@few
@given(hnp.array_shapes(min_dims=1, max_dims=5, max_side=4), st.data())
def test_transpose(shape, data):
  axes = data.draw(st.permutations(range(len(shape))))
  theirs = counted(*shape)
  want = np.moveaxis(theirs, axes, range(len(shape)))
  ours = undone(rename.transpose(*axes), theirs, want.shape)
  np.testing.assert_array_equal(ours, want)


@few
@given(SIZE, SIZE, SIZE, SIZE)
def test_layouts_of_pytorch(out, inside, rows, columns):
  x = counted(out, inside, rows, columns)
  ours = undone(rename.CONV2D, x, (rows, columns, inside, out))
  assert ours[-1, 0, -1, 0] == x[0, -1, -1, 0]
  undone(rename.CONV1D, x[..., 0], (rows, inside, out))
  undone(rename.LINEAR, x[..., 0, 0], (inside, out))
  assert rename.SAME.ours(x) is x and rename.SAME.theirs(x) is x


@few
@given(SIZE, SIZE, SIZE)
def test_reshape_and_chain(a, b, c):
  x = counted(a, b * c)
  undone(rename.reshape((a, b, c), (a, b * c)), x, (a, b, c))
  undone(rename.reshape((-1, b, c), (-1, b * c)), x, (a, b, c))
  both = rename.chain(
    rename.LINEAR, rename.reshape((b, c, a), (b * c, a)), rename.SAME
  )
  np.testing.assert_array_equal(
    undone(both, x, (b, c, a)), x.T.reshape(b, c, a)
  )


@few
@given(SIZE, SIZE, SIZE)
def test_heads(heads, size, width):
  kernel, bias = counted(heads * size, width), counted(heads * size)
  op = rename.to_heads(heads)
  ours = undone(op, kernel, (width, heads, size))
  undone(op, bias, (heads, size))
  # A projection with ours is that with theirs, cut into heads.
  x = counted(width)
  want = (kernel @ x).reshape(heads, size)
  np.testing.assert_allclose(np.einsum("d,dnh->nh", x, ours), want)

  back = counted(width, heads * size)
  ours = undone(rename.from_heads(heads), back, (heads, size, width))
  want = back @ bias
  got = np.einsum("nh,nhd->d", bias.reshape(heads, size), ours)
  np.testing.assert_allclose(got, want)


@few
@given(st.lists(SIZE, min_size=1, max_size=4), SIZE, st.integers(0, 1))
def test_packed_pieces_cover_the_tensor(sizes, width, axis):
  shape = (sum(sizes), width) if axis == 0 else (width, sum(sizes))
  theirs = counted(*shape)
  names = [(f"x{i}", rename.LINEAR) for i in range(len(sizes))]
  rules = rename.packed(names, "qkv.weight", sizes, axis)
  leaves = {r.name: r.read(theirs) for r in rules}
  for i, size in enumerate(sizes):
    leaf = leaves[f"params/x{i}"]
    assert leaf.shape[1 - axis] == size and leaf.shape[axis] == width
  # In whatever order the rules come.
  for order in (rules, rules[::-1]):
    written = rename.write(order, leaves)
    assert list(written) == ["qkv.weight"]
    np.testing.assert_array_equal(written["qkv.weight"], theirs)
    assert written["qkv.weight"].flags.c_contiguous


def test_packed_takes_one_size_for_each_rule():
  with pytest.raises(ValueError):
    rename.packed([("a", rename.SAME)], "x", (1, 2))


@few
@given(st.lists(st.integers(0, 20), min_size=1, max_size=4, unique=True))
def test_stacked_layers_with_their_own_numbers(layers):
  rule = Rule("blocks/k", "h.{n}.w", rename.LINEAR, layers=tuple(layers))
  assert rule.stacked
  assert rule.sources(len(layers)) == [f"h.{n}.w" for n in layers]
  theirs = {f"h.{n}.w": counted(2, 3) + 10 * n for n in layers}
  leaf = np.stack([rule.read(theirs[n]) for n in rule.sources(len(layers))])
  assert leaf.shape == (len(layers), 3, 2)
  written = rename.write([rule], {"params/blocks/k": leaf})
  assert written.keys() == theirs.keys()
  for name, x in theirs.items():
    np.testing.assert_array_equal(written[name], x)


def test_stacked_layers_count_from_zero_and_may_be_pieces():
  rules = [
    Rule("q", "h.{n}.qk", piece=(0, 1, 0)),
    Rule("k", "h.{n}.qk", piece=(1, 3, 0)),
  ]
  theirs = {f"h.{n}.qk": counted(3, 2) + 6 * n for n in range(2)}
  assert rules[0].sources(2) == list(theirs)
  leaves = {
    r.name: np.stack([r.read(x) for x in theirs.values()]) for r in rules
  }
  assert leaves["params/q"].shape == (2, 1, 2)
  for name, x in rename.write(rules, leaves).items():
    np.testing.assert_array_equal(x, theirs[name])


def test_names():
  rule = Rule("bn/mean", "bn.running_mean", collection="batch_stats")
  assert rule.name == "batch_stats/bn/mean"
  assert not rule.stacked and rule.sources(1) == ["bn.running_mean"]
  [inner] = rename.under("image/", "visual.", [rule])
  assert inner.name == "batch_stats/image/bn/mean"
  assert inner.theirs == "visual.bn.running_mean" and inner.op is rule.op


def test_a_scalar_stays_one():
  rule = Rule("t", "logit_scale")
  written = rename.write([rule], {"params/t": np.array(2.5, np.float32)})
  assert written["logit_scale"].shape == ()


def test_what_no_rule_reads_is_zeros():
  op = rename.to_heads(2)
  rules = [
    Rule("q", "h.{n}.qkv", op, (0, 4, 0)),
    Rule("v", "h.{n}.qkv", op, (8, 12, 0)),
  ]
  theirs = {f"h.{n}.qkv": counted(12) + 20 * n + 1 for n in range(2)}
  leaves = {
    r.name: np.stack([r.read(x) for x in theirs.values()]) for r in rules
  }
  for name, x in rename.write(rules, leaves).items():
    want = theirs[name].copy()
    want[4:8] = 0
    np.testing.assert_array_equal(x, want)
