"""Trees by name."""

import jax
import jax.numpy as jnp

from mmjax import tree

TREE = {"b": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "a": [1.0, 2.0]}


def test_names_are_paths_in_tree_order():
  assert tree.names(TREE) == ["a/0", "a/1", "b/bias", "b/kernel"]
  assert [n for n, _ in tree.items(TREE)] == tree.names(TREE)


def test_map_named_zips():
  out = tree.map_named(lambda n, x, y: (n, x + y), {"a": 1}, {"a": 2})
  assert out == {"a": ("a", 3)}


def test_match_is_search_with_any():
  assert tree.match([r"kernel$", "^a"], TREE) == {
    "b": {"kernel": True, "bias": False},
    "a": [True, True],
  }
  assert not any(jax.tree.leaves(tree.match([], TREE)))


def test_sizes():
  shapes = {
    "x": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16),
    "y": jax.ShapeDtypeStruct((), jnp.float32),
  }
  assert tree.count(shapes) == 7
  assert tree.size_bytes(shapes) == 16
