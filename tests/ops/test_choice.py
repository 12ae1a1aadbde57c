import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.ops import choice, masks
from mmjax.ops.attention import attention, explain_attention, settled
from mmjax.ops.bias import Buckets


def shapes(T=6, S=6, dtype=jnp.bfloat16, H=64):
  q = jax.ShapeDtypeStruct((2, T, 4, H), dtype)
  k = jax.ShapeDtypeStruct((2, S, 2, H), dtype)
  return q, k, k


@pytest.fixture
def kernel(monkeypatch):
  """A kernel in the place of "tpu" or "gpu", which keeps what it was asked."""

  def put(impl, refused=None, tables=True):
    asked = []
    module = types.ModuleType(f"mmjax.ops.kernels.{impl}")

    def refuses(
      q_shape, k_shape, v_shape, dtype, mask, bias, *, softcap, dropout_rate
    ):
      asked.append((q_shape, k_shape, dtype, mask, bias, softcap, dropout_rate))
      return refused

    def attend(q, k, v, **kw):
      asked.append(kw)
      return q * 0 + 7

    module.refuses, module.attend = refuses, attend
    module.reads_table = lambda bias, length_q, length_k: tables
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(
      sys.modules["mmjax.ops.kernels"], impl, module, raising=False
    )
    return asked

  return put


def test_a_cpu_takes_xla_and_says_why_nothing_else():
  found = explain_attention(*shapes(), platform="cpu")
  assert found.impl == "xla"
  said = dict(found.refused)
  assert set(said) == {"tpu", "gpu", "cudnn"}
  assert said["tpu"] == "runs on tpu, and this is for cpu"
  assert str(found).splitlines()[0] == "attention on cpu: xla"
  assert "  not cudnn: runs on gpu" in str(found)
  assert choice.platform() == "cpu"


def test_the_best_that_can_is_taken(kernel):
  asked = kernel("tpu")
  found = explain_attention(
    *shapes(), mask=masks.Causal(), softcap=2.0, platform="tpu"
  )
  assert found.impl == "tpu"
  assert dict(found.refused)["xla"] == "tpu comes first"
  assert asked == [
    ((2, 6, 4, 64), (2, 6, 2, 64), jnp.bfloat16, masks.Causal(), None, 2.0, 0.0)
  ]
  kernel("gpu", refused="too long for it")
  found = explain_attention(*shapes(), platform="gpu")
  assert found.impl == "cudnn"
  assert dict(found.refused)["gpu"] == "too long for it"
  found = explain_attention(*shapes(T=5), platform="gpu")
  assert found.impl == "xla"
  assert "odd lengths, 5 x 6" in dict(found.refused)["cudnn"]


def test_a_name_insists_or_raises(kernel):
  kernel("gpu", refused="too long for it")
  with pytest.raises(errors.InputError, match="'gpu': too long for it"):
    explain_attention(*shapes(), impl="gpu", platform="gpu")
  with pytest.raises(errors.InputError, match=r"'tpu': runs on tpu.* for gpu"):
    explain_attention(*shapes(), impl="tpu", platform="gpu")
  found = explain_attention(*shapes(T=5), impl="cudnn", platform="gpu")
  assert found.impl == "cudnn"
  assert dict(found.refused)["xla"] == "cudnn comes first"
  with pytest.raises(errors.InputError, match="'cudnn': has no softcap"):
    explain_attention(*shapes(), impl="cudnn", platform="gpu", softcap=1.0)
  q = jnp.ones((1, 3, 2, 8))
  with pytest.raises(errors.InputError, match=r"'gpu': runs on gpu.* for cpu"):
    attention(q, q, q, impl="gpu")
  with pytest.raises(errors.InputError, match="Known: cudnn, gpu, tpu, xla"):
    attention(q, q, q, impl="flash")


def test_the_door_passes_every_argument_on(kernel, monkeypatch, key):
  asked = kernel("tpu")
  monkeypatch.setattr(choice, "platform", lambda: "tpu")
  q = jnp.ones((1, 3, 2, 8))
  bias = Buckets(jnp.ones((2, 8)))
  mask = masks.KeyPadding(jnp.array([2]))
  out = attention(
    q,
    q,
    q,
    mask=mask,
    bias=bias,
    scale=0.3,
    softcap=2.0,
    dropout_rate=0.1,
    dropout_rng=key,
  )
  assert (out == 7).all()
  given = asked[-1]
  assert given.pop("dropout_seeds").shape == (1, 2)
  assert given == dict(
    mask=mask, bias=bias, scale=0.3, softcap=2.0, dropout_rate=0.1
  )
  assert settled(bias, 3, 3) is bias and settled(bias, 3, 3, "tpu") is bias
  asked = kernel("tpu", tables=False)
  assert settled(bias, 3, 3, "tpu").shape == (1, 2, 3, 3)
  attention(q, q, q, bias=bias)
  np.testing.assert_array_equal(asked[-1]["bias"], np.ones((1, 2, 3, 3)))
  np.testing.assert_allclose(attention(q, q, q, impl="xla"), 1.0, atol=1e-6)


def test_arguments_are_checked_before_anything_is_chosen():
  q, _, v = shapes()
  with pytest.raises(errors.InputError, match="do not fit"):
    explain_attention(q, shapes(H=32)[1], v)


def test_the_platform_is_the_mesh_where_there_is_one():
  device = jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu")
  mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    assert choice.platform() == "tpu"
    assert choice.candidates(None) == ("tpu", "xla")
  assert choice.candidates(None) == ("xla",)
