"""Every item of a grid is somebody's, and the work is shared out evenly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from mmjax.ops.kernels import gpu_hopper_grid as hg
from mmjax.ops.kernels.gpu_hopper_grid import Grid


def _visits(grid, blocks):
  """Returns how often each block has each item [blocks batch heads rows]."""

  def run(_):
    found = jnp.zeros((grid.batch, grid.heads, grid.rows), jnp.int32)

    def body(count, found):
      return found.at[grid.place(hg.Item(count))].add(1)

    many = (grid.items + blocks - 1 - jax.lax.axis_index(hg.ROW)) // blocks
    return jax.lax.fori_loop(0, many, body, found)

  return np.asarray(jax.vmap(run, axis_name=hg.ROW)(jnp.arange(blocks)))


@pytest.mark.parametrize("last_first", (False, True))
@pytest.mark.parametrize("blocks", (1, 7, 132))
def test_each_item_is_taken_once(blocks, last_first):
  visits = _visits(Grid(3, 5, 9, last_first, True), blocks)
  np.testing.assert_array_equal(visits.sum(0), 1)


def test_blocks_get_alike_much_of_causal_rows():
  visits = _visits(Grid(8, 62, 10, True, True), 132)
  work = (visits * np.arange(1, 11)).sum((1, 2, 3))
  assert work.max() < 1.06 * work.mean()


def test_a_resident_block_is_told_what_came_before():
  grid, seen = Grid(1, 1, 3, False, True), []

  def run(item):
    jax.debug.callback(
      lambda *x: seen.append(tuple(map(int, x))),
      item.count,
      item.done,
      grid.place(item)[2],
    )

  def steps(item):
    return grid.place(item)[2] + 4

  jax.vmap(lambda _: grid.for_each(run, steps), axis_name=hg.ROW)(jnp.arange(1))
  jax.effects_barrier()
  assert sorted(seen) == [(0, 0, 0), (1, 4, 1), (2, 9, 2)]


def test_there_are_as_many_resident_blocks_as_multiprocessors():
  pcie = AbstractDevice(
    device_kind="NVIDIA H100 PCIe", num_cores=114, platform="gpu"
  )
  grid = Grid(8, 62, 10, True, True)
  assert grid.launch() == dict(grid=(132,), grid_names=("hopper_row",))
  with jax.sharding.use_abstract_mesh(
    AbstractMesh((1,), ("x",), abstract_device=pcie)
  ):
    assert grid.launch()["grid"] == (114,)
    assert Grid(1, 2, 3, False, True).launch()["grid"] == (6,)
    assert Grid(1, 2, 3, False, False).launch()["grid"] == (1, 2, 3)
