"""Trees of arrays by name: "encoder/blocks/mlp/kernel"."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


def _name(path: Sequence[Any]) -> str:
  return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def items(tree: Any) -> list[tuple[str, Any]]:
  """Returns [(name, leaf)] in tree order."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [(_name(path), leaf) for path, leaf in leaves]


def names(tree: Any) -> list[str]:
  """Returns the names of the leaves in tree order."""
  return [name for name, _ in items(tree)]


def map_named(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
  """Maps `f(name, leaf, *leaves_of_rest)` over a tree."""
  return jax.tree_util.tree_map_with_path(
    lambda path, *leaves: f(_name(path), *leaves), tree, *rest
  )


def match(patterns: Sequence[str], tree: Any) -> Any:
  """Returns a tree of bools: does any pattern match (`re.search`) the name?"""
  compiled = [re.compile(p) for p in patterns]
  return map_named(lambda name, _: any(c.search(name) for c in compiled), tree)


def count(tree: Any) -> int:
  """Returns the number of elements of all leaves (arrays or shapes)."""
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def size_bytes(tree: Any) -> int:
  """Returns the bytes of all leaves, each counted once, whatever sharding."""
  return sum(
    int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(tree)
  )
