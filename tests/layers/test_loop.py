"""Stacks are loops, but on a single GPU."""

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from mmjax.layers.loop import UNROLLED, looped


def _on(platform, devices):
  device = AbstractDevice(
    device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform=platform
  )
  mesh = AbstractMesh((devices,), ("data",), abstract_device=device)
  return jax.sharding.use_abstract_mesh(mesh)


@pytest.mark.parametrize(
  "platform, devices, length, expected",
  (
    ("gpu", 1, 12, False),
    ("gpu", 1, UNROLLED, False),
    ("gpu", 1, UNROLLED + 1, True),
    ("gpu", 8, 12, True),
    ("tpu", 1, 12, True),
  ),
)
def test_where_nothing_is_asked_for(platform, devices, length, expected):
  with _on(platform, devices):
    assert looped(None, length) == expected
    assert looped(True, length)
    assert not looped(False, length)


def test_without_a_mesh_it_is_the_default_backend():
  assert looped(None, 12)  # this is a CPU
