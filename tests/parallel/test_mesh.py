"""The mesh: five axes, all sizes checked, every mistake named."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from mmjax import errors
from mmjax.parallel import mesh


def test_all_axes_stay_and_are_auto():
  made = mesh.make_mesh({"fsdp": 4, "data": -1})
  assert made.axis_names == mesh.AXES
  assert dict(made.shape) == dict(data=2, fsdp=4, tensor=1, context=1, stage=1)
  assert set(made.axis_types) == {AxisType.Auto}
  assert len({d.id for d in made.devices.flat}) == 8


def test_default_is_all_on_data():
  assert mesh.make_mesh().shape["data"] == jax.device_count()


def test_part_of_the_machine():
  assert mesh.make_mesh({}, jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
  "sizes, words",
  [
    ({"data": 16}, ["16 devices", "has 8", "force_host_platform"]),
    ({"data": 3, "fsdp": -1}, ["do not fill", "8"]),
    ({"data": 4}, ["do not fill", "-1"]),
    ({"data": -1, "fsdp": -1}, ["only one axis", "data or fsdp"]),
    ({"datta": 8}, ["datta", "'data'"]),
    ({"data": 0}, ["mesh.data = 0"]),
    ({"data": 2.0}, ["mesh.data = 2.0", "whole number"]),
  ],
)
def test_mistakes_are_named(sizes, words):
  with pytest.raises(errors.InputError) as e:
    mesh.make_mesh(sizes)
  for word in words:
    assert word in str(e.value)


@pytest.mark.parametrize(
  "shape, slices, inside, across",
  [
    ((4, 8, 1, 1, 1), 4, (1, 8, 1, 1, 1), (4, 1, 1, 1, 1)),
    ((2, 8, 2, 1, 1), 4, (1, 4, 2, 1, 1), (2, 2, 1, 1, 1)),
  ],
)
def test_slices_are_split_over_the_outer_axes(shape, slices, inside, across):
  assert mesh._split_slices(shape, slices) == (inside, across)


def test_slices_that_do_not_fit():
  with pytest.raises(ValueError, match="3 slices"):
    mesh._split_slices((4, 2, 1, 1, 1), 3)


def test_refused_placement_falls_back_and_says_so(caplog, monkeypatch):
  def refuse(*args, **kwargs):
    raise NotImplementedError("torus")

  monkeypatch.setattr(mesh.mesh_utils, "create_device_mesh", refuse)
  devices = [types.SimpleNamespace(id=i, slice_index=0) for i in (2, 0, 3, 1)]
  grid = mesh._arrange((2, 2, 1, 1, 1), devices)
  assert [d.id for d in grid.flat] == [0, 1, 2, 3]
  assert grid.shape == (2, 2, 1, 1, 1)
  assert "torus" in caplog.text
  assert isinstance(grid, np.ndarray)
