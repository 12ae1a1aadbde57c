"""The device mesh: five named axes, most to least communication last.

`data` splits the batch and copies the parameters; `fsdp` splits the batch and
the parameters; `tensor` splits heads, mlp and vocabulary; `context` splits
sequences; `stage` splits layers. Axes of size 1 stay, so that one program
serves one CPU and a pod.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from mmjax import errors

AXES = ("data", "fsdp", "tensor", "context", "stage")


def mesh_shape(sizes: Mapping[str, int], devices: int) -> dict[str, int]:
  """Completes axis sizes to all five axes over `devices` devices.

  Args:
    sizes: sizes of some axes; one of them may be -1, "what is left". Axes that
      are not named have size 1.
    devices: number of devices to fill.

  Raises:
    InputError: unknown axis, size below 1, more than one -1, or a product
      that is not the number of devices.
  """
  for name, size in sizes.items():
    if name not in AXES:
      raise errors.unknown("mesh", name, AXES)
    if isinstance(size, bool) or not isinstance(size, int):
      raise errors.InputError(
        f"mesh.{name} = {size!r}: an axis size is a whole number, or -1 for "
        "what is left; change it."
      )
    if size != -1 and size < 1:
      raise errors.InputError(
        f"mesh.{name} = {size}: an axis has at least one device; use 1, or -1 "
        "for what is left."
      )
  shape = {name: int(sizes.get(name, 1)) for name in AXES}
  free = [name for name, size in shape.items() if size == -1]
  if len(free) > 1:
    raise errors.InputError(
      f"mesh = {dict(sizes)}: only one axis may be -1 (what is left); give the "
      f"size of {' or '.join(free)}."
    )
  fixed = math.prod(size for size in shape.values() if size != -1)
  if fixed > devices:
    raise errors.InputError(
      f"mesh = {dict(sizes)}: it needs {fixed} devices and this machine has "
      f"{devices}; make an axis smaller, or fake devices on CPU with "
      f"XLA_FLAGS=--xla_force_host_platform_device_count={fixed}."
    )
  if devices % fixed or (not free and fixed != devices):
    raise errors.InputError(
      f"mesh = {dict(sizes)}: its {fixed} devices do not fill the {devices} of "
      "this machine; set one axis to -1 (what is left) or change the sizes so "
      f"that their product is {devices}."
    )
  if free:
    shape[free[0]] = devices // fixed
  return shape


def make_mesh(
  sizes: Mapping[str, int] | None = None,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """Makes the mesh of all five axes.

  Axis types are Auto: the compiler places what nobody constrained. (JAX makes
  Explicit axes by default, under which Linen's constraints become asserts.)

  Args:
    sizes: as for `mesh_shape`; default all devices on `data`.
    devices: default all devices of all processes.

  Raises:
    InputError: as `mesh_shape`.
  """
  devices = list(jax.devices() if devices is None else devices)
  shape = mesh_shape({"data": -1} if sizes is None else sizes, len(devices))
  grid = _arrange(tuple(shape.values()), devices)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(shape: tuple[int, ...], devices: list[Any]) -> np.ndarray:
  """Lays devices out so that the inner axes are near neighbours."""
  slices = len({getattr(d, "slice_index", 0) or 0 for d in devices})
  try:
    if slices > 1:
      return mesh_utils.create_hybrid_device_mesh(
        *_split_slices(shape, slices), devices, allow_split_physical_axes=True
      )
    return mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
  except (ValueError, NotImplementedError, AssertionError) as e:
    # Some factorings of a torus are refused; any order is correct, only
    # slower, so say it and go on.
    logging.getLogger(__name__).warning(
      "mesh %s: no placement on this topology (%s); devices are laid out in "
      "their numbering order, so neighbours on an axis may not be neighbours "
      "on the wire.",
      dict(zip(AXES, shape, strict=True)),
      e,
    )
    ordered = sorted(
      devices, key=lambda d: (getattr(d, "slice_index", 0) or 0, d.id)
    )
    return np.array(ordered).reshape(shape)


def _split_slices(
  shape: tuple[int, ...], slices: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Splits axis sizes into (inside a slice, across slices), outermost first.

  The network between slices is the slowest link, so it gets the axis with the
  least communication that can be divided: data, then fsdp, and so on.
  """
  inside, across = list(shape), [1] * len(shape)
  left = slices
  for i, size in enumerate(shape):
    across[i] = math.gcd(size, left)
    inside[i] = size // across[i]
    left //= across[i]
  if left > 1:
    raise ValueError(f"{slices} slices do not divide the mesh {shape}")
  return tuple(inside), tuple(across)
