"""The table of `mmjax inspect`, against what devices really hold."""

import argparse
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from mmjax import tree
from mmjax.cli import inspect, main
from mmjax.parallel import mesh, rules
from mmjax.train import setup
from mmjax.typing import Aux

ROOT = pathlib.Path(__file__).parents[2]


class Task:
  """A matrix split both ways, a bias that nobody named, an odd one."""

  def init(self, rng, batch):
    box = nn.LogicallyPartitioned
    return {
      "params": {
        "kernel": box(jnp.ones((8, 4)), ("embed", "mlp")),
        "bias": jnp.ones(4),
        "odd": box(jnp.ones((3, 4)), ("embed", "mlp")),
      }
    }

  def loss(self, params, mutable, batch, rngs):
    return params["kernel"].sum(), Aux(mutable, {})


@pytest.fixture(scope="module")
def ready():
  layout = rules.Layout(mesh.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
  batch = {"x": jax.ShapeDtypeStruct((8, 8), jnp.float32)}
  return setup.assemble(
    Task(), dict(name="adamw", lr=0.1), batch, layout, steps=3
  )


def test_rows_by_hand(ready):
  rows = {row.name: row for row in inspect.table(ready)}
  kernel = rows["params/kernel"]
  assert kernel.axes == ("embed", "mlp")
  assert kernel.spec == (("fsdp",), ("tensor",))
  # 32 floats on 4 parts, each held twice (data): 32 bytes, 16 of them extra.
  assert (kernel.per_device, kernel.replicated) == (32, 16)
  bias = rows["params/bias"]
  assert (bias.axes, bias.spec, bias.per_device) == ((), ((),), 16)
  assert bias.replicated == 14
  odd = rows["params/odd"]
  assert odd.axes == ("embed", "mlp") and odd.spec == ((), ("tensor",))
  moment = next(r for n, r in rows.items() if n.endswith("mu/kernel"))
  assert (moment.axes, moment.spec) == (kernel.axes, kernel.spec)
  assert rows["step"].shape == () and rows["step"].axes == ()


def test_bytes_are_those_on_a_device(ready):
  state = ready.init()
  device = jax.devices()[3]
  for row, (name, leaf) in zip(
    inspect.table(ready), tree.items(state), strict=True
  ):
    held = [
      s.data.nbytes for s in leaf.addressable_shards if s.device == device
    ]
    assert (row.name, row.per_device) == (name, sum(held))


def test_lines_are_aligned(ready):
  text = inspect.lines(inspect.table(ready))
  assert text[0].split() == list(inspect.HEAD)
  assert len({len(line) for line in text}) == 1
  assert any("embed mlp" in line and "fsdp tensor" in line for line in text)
  assert max(map(len, inspect.lines(inspect.table(ready), 40))) == 40


def test_command(capsys):
  argv = ["inspect", "--config", f"{ROOT}/experiments/emoji/siglip.py:smoke"]
  assert main.main([*argv, "--config.mesh={'fsdp': 8}"]) == 0
  out = capsys.readouterr().out
  rows = [line for line in out.splitlines() if line.startswith("params/")]
  assert any("embed mlp" in row and "fsdp" in row for row in rows)
  assert "mesh      fsdp=8 (8 devices)" in out
  assert out.splitlines()[-1].startswith("total")


def test_arguments():
  parser = argparse.ArgumentParser()
  inspect.add_arguments(parser)
  args = parser.parse_args(["--config", "a.py", "--devices", "4", "--all"])
  assert (args.config, args.devices, args.all) == ("a.py", 4, True)
