import flax.linen as nn
import jax
import numpy as np
import pytest

from mmjax.layers.apart import apart
from mmjax.layers.block import Spec
from mmjax.layers.transformer import Stack
from mmjax.ops import masks

SPEC = Spec(heads=2, mlp=16)
KW = dict(spec=SPEC, depth=3)


@pytest.fixture
def x(key):
  return jax.random.normal(key, (2, 5, 8))


def test_blocks_apart_compute_the_same(key, x):
  class Model(nn.Module):
    def setup(self):
      self.first = Stack(**KW)
      self.second = Stack(SPEC, 4)

    def __call__(self, x):
      pair = masks.Causal(), masks.Local(1, 0)
      return self.second(self.first(x), pair)

  variables = nn.unbox(jax.jit(Model().init)(key, x))
  split = apart(Model(), variables, x)["params"]
  assert set(split["first"]) == {"blocks_0", "blocks_1", "blocks_2"}
  assert set(split["second"]["blocks_1"]) == {"block0", "block1"}
  run = jax.jit(Model().apply)
  got, want = run({"params": split}, x), run(variables, x)
  np.testing.assert_allclose(got, want, atol=1e-5)
  swapped = split["first"] | {"blocks_0": split["first"]["blocks_1"]}
  other = run({"params": split | {"first": swapped}}, x)
  assert np.abs(other - want).max() > 1e-2
  assert apart(Model(), {"params": split}, x)["params"].keys() == split.keys()


def test_only_what_a_method_reaches(key, x):
  class Model(nn.Module):
    def setup(self):
      self.first, self.second = Stack(**KW), Stack(SPEC, 0)

    def __call__(self, x):
      return self.second(self.first(x))

    def rest(self, x):
      return self.second(x)

  variables = nn.unbox(jax.jit(Model().init)(key, x))
  same = apart(Model(), variables, x, method="rest")["params"]
  assert set(same["first"]) == {"blocks"}
  assert set(apart(Model(), variables, x=x)["params"]["first"]) > {"blocks_0"}
