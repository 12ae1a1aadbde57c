"""The one table from logical axes to mesh axes, and the verbs that use it.

Models name the axes of their parameters and activations ("batch", "embed");
they never see a mesh. A `Layout` is a mesh and a table. While one is in use
(`with layout.use():`), `constrain` and `per_shard` act; without one they do
nothing, so that a model runs unchanged on one device.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn
from flax.core import meta
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax import errors

Names = Sequence[str | None]

# Parameters and activations share the table. A mesh axis serves one dimension
# of an array, the leftmost that asks for it: an activation ("batch", "length",
# "embed") gives fsdp to its batch, a parameter ("embed", "mlp") to its width.
RULES: Mapping[str, tuple[str, ...]] = {
  "batch": ("data", "fsdp"),
  "length": ("context",),  # tokens, audio frames
  "patches": ("context",),
  "embed": ("fsdp",),  # width of the residual stream
  "mlp": ("tensor",),
  "heads": ("tensor",),
  "kv_heads": ("tensor",),
  "vocab": ("tensor",),
  "classes": ("tensor",),
  "stages": ("stage",),
  "layers": (),  # the axis that scan adds
  "head_dim": (),
  "joint": (),  # shared space of a dual encoder
  "norm": (),  # scales and biases: too small to be worth a gather
  "positions": (),
  "channels": (),
  "kernel": (),  # rows and columns of a convolution
}

_current: contextvars.ContextVar["Layout | None"] = contextvars.ContextVar(
  "mmjax_layout", default=None
)


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
  """A mesh and the table of rules: where each logical axis lives."""

  mesh: Mesh
  rules: Mapping[str, tuple[str, ...] | None] = dataclasses.field(
    default_factory=lambda: RULES
  )

  @contextlib.contextmanager
  def use(self) -> Iterator["Layout"]:
    """Makes this the current layout and its mesh JAX's mesh.

    Trace and call jitted functions inside. The rules are no part of jit's
    cache key: use one jitted function with one layout.
    """
    token = _current.set(self)
    try:
      # Never `with mesh:`, under which constraints vanish without a word.
      with jax.set_mesh(self.mesh):
        yield self
    finally:
      _current.reset(token)

  def jit(self, f: Callable[..., Any], **keywords: Any) -> "Placed":
    """Returns jax.jit(f, **keywords) that always runs within this layout."""
    return Placed(self, jax.jit(f, **keywords))

  def mesh_axes(self, name: str | None) -> tuple[str, ...]:
    """Returns the mesh axes that the table gives to a logical axis.

    Raises:
      InputError: the name is not in the table.
    """
    if name is None:
      return ()
    if name not in self.rules:
      raise errors.unknown("logical axis", name, self.rules)
    return self.rules[name] or ()

  def spec(self, names: Names, shape: Sequence[int] | None = None) -> P:
    """Returns the PartitionSpec of an array with these logical axes.

    Args:
      names: one logical name or None (not split) per dimension.
      shape: if given, a mesh axis that does not divide its dimension is
        dropped: that dimension is split less, or not at all.

    Raises:
      InputError: unknown name.
      ValueError: names and shape differ in length.
    """
    return self._spec(names, shape, banned=frozenset())

  def _spec(
    self, names: Names, shape: Sequence[int] | None, banned: frozenset[str]
  ) -> P:
    if shape is not None and len(names) != len(shape):
      raise ValueError(f"axes {tuple(names)} do not fit shape {tuple(shape)}")
    used, parts = set(banned), []
    for i, name in enumerate(names):
      kept, split = [], 1
      for axis in self.mesh_axes(name):
        size = split * self.mesh.shape[axis]
        if axis in used or (shape is not None and shape[i] % size):
          continue
        kept.append(axis)
        split = size
      used.update(kept)
      parts.append(tuple(kept) if len(kept) > 1 else kept[0] if kept else None)
    return P(*parts)

  def sharding(
    self, names: Names, shape: Sequence[int] | None = None
  ) -> NamedSharding:
    """Returns `spec(names, shape)` on the mesh."""
    return NamedSharding(self.mesh, self.spec(names, shape))

  @property
  def replicated(self) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(self.mesh, P())

  @property
  def batch_axes(self) -> tuple[str, ...]:
    """Returns the mesh axes that split the batch."""
    return self.mesh_axes("batch")

  @property
  def batch_shards(self) -> int:
    """Returns into how many parts the batch is split."""
    return math.prod(self.mesh.shape[axis] for axis in self.batch_axes)

  def batch_sharding(self, ndim: int) -> NamedSharding:
    """Returns the sharding of an array whose first axis is the batch."""
    return self.sharding(("batch",) + (None,) * (ndim - 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Placed:
  """A jitted function that cannot be called or lowered outside its layout."""

  layout: Layout
  jitted: Any

  def __call__(self, *args: Any) -> Any:
    with self.layout.use():
      return self.jitted(*args)

  def lower(self, *args: Any) -> Any:
    """Lowers for arrays or `jax.ShapeDtypeStruct`s, as `jax.jit` does."""
    with self.layout.use():
      return self.jitted.lower(*args)


def current() -> Layout | None:
  """Returns the layout in use, or None."""
  return _current.get()


def _manual() -> bool:
  """Are we being traced inside a `per_shard` (shard_map) body?"""
  return bool(jax.sharding.get_abstract_mesh().manual_axes)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Asks the compiler to keep x split along its logical axes.

  Does nothing without a layout in use, and inside `per_shard`.

  Args:
    x: any array.
    *names: one logical name or None (not split) per dimension.

  Raises:
    ValueError: not one name per dimension.
    InputError: unknown name.
  """
  layout = current()
  if layout is None or _manual():
    return x
  return jax.lax.with_sharding_constraint(x, layout.sharding(names, x.shape))


def per_shard(
  f: Callable[..., Any],
  in_names: Sequence[Names | None],
  out_names: Any,
  *,
  check: bool = True,
) -> Callable[..., Any]:
  """Wraps f to run on each device's own part of its arguments (shard_map).

  Without a layout, or inside another `per_shard`, returns f itself: f may use
  collectives only where `current()` is a layout.

  A mesh axis that cannot divide some dimension which asks for it is used for
  none, so that parts always belong together (12 heads over 3 kv heads stay
  whole on a tensor axis of 4).

  Args:
    f: function of arrays or trees of arrays.
    in_names: for each argument the logical names of the leading dimensions of
      its leaves, or None where every device gets the whole argument.
    out_names: names of the result; a list of names where f returns a tuple.
    check: passed on as shard_map's `check_vma`; off around Pallas kernels.
  """
  layout = current()
  if layout is None or _manual():
    return f

  def wrapped(*args):
    if len(args) != len(in_names):
      raise ValueError(f"{len(args)} arguments for {len(in_names)} in_names")
    banned = _indivisible(layout, in_names, args)

    def leaf_spec(names: Names | None, x: Any) -> P:
      return layout._spec((names or ())[: x.ndim], None, banned)

    in_specs = tuple(
      jax.tree.map(lambda x, n=names: leaf_spec(n, x), arg)
      for names, arg in zip(in_names, args, strict=True)
    )
    if isinstance(out_names, list):
      out_specs = tuple(layout._spec(n or (), None, banned) for n in out_names)
    else:
      out_specs = layout._spec(out_names or (), None, banned)
    return jax.shard_map(
      f,
      mesh=layout.mesh,
      in_specs=in_specs,
      out_specs=out_specs,
      check_vma=check,
    )(*args)

  return wrapped


def _indivisible(
  layout: Layout, in_names: Sequence[Names | None], args: Sequence[Any]
) -> frozenset[str]:
  """Returns the mesh axes that some dimension wants and cannot be split by."""
  banned: set[str] = set()
  for names, arg in zip(in_names, args, strict=True):
    for leaf in jax.tree.leaves(arg):
      for name, size in zip(names or (), leaf.shape, strict=False):
        split = 1
        for axis in layout.mesh_axes(name):
          if size % (split * layout.mesh.shape[axis]):
            banned.add(axis)
          else:
            split *= layout.mesh.shape[axis]
  return frozenset(banned)


def with_axes(init: Callable[..., jax.Array], names: Names) -> Any:
  """Returns an initializer that boxes its array with its logical axes.

  Linen's `nn.with_logical_partitioning`, under its honest type: `self.param`
  and the layers of Linen take it for an initializer and give back the array,
  out of its box.

  Args:
    init: (key, shape, dtype) -> array.
    names: one logical name of the table, or None (not split), per dimension.
  """
  return nn.with_logical_partitioning(init, tuple(names))


def is_box(x: Any) -> bool:
  """Is x a leaf with metadata (a parameter boxed with its axis names)?"""
  return isinstance(x, meta.AxisMetadata)


def unbox(boxed: Any) -> Any:
  """Returns the tree without boxes, and without constraining anything."""

  def one(x: Any) -> Any:
    if isinstance(x, meta.Partitioned):
      return x.unbox(apply_constraint=False)
    return x.unbox() if is_box(x) else x

  return jax.tree.map(one, boxed, is_leaf=is_box)


def axis_names(boxed: Any) -> Any:
  """Returns the tree of logical names: a tuple per leaf, () if it has none."""
  return jax.tree.map(
    lambda x: tuple(getattr(x, "names", ())) if is_box(x) else (),
    boxed,
    is_leaf=is_box,
  )


def shardings(layout: Layout, boxed: Any) -> Any:
  """Returns where each leaf lives, from the axis names in its box.

  Args:
    layout: where to.
    boxed: variables as `task.init` gives them, arrays or shapes, boxed by
      `with_axes`. A leaf without a box is replicated.

  Returns:
    The unboxed tree, each leaf a NamedSharding.
  """

  def one(x: Any) -> NamedSharding:
    if not is_box(x) or not getattr(x, "names", ()):
      return layout.replicated
    return layout.sharding(x.names, unbox(x).shape)

  return jax.tree.map(one, boxed, is_leaf=is_box)
