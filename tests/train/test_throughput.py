"""FLOPs against formulas, time against a clock that the test moves."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from mmjax.ops.attention import attention
from mmjax.train import throughput


def shape(*dims):
  return jax.ShapeDtypeStruct(dims, jnp.float32)


def test_matrix_products_and_convolutions():
  flops = throughput.forward_flops
  assert flops(jnp.matmul, shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7

  def einsum(q, k):
    return jnp.einsum("btnh,bsnh->bnts", q, k)

  assert flops(einsum, shape(2, 6, 3, 4), shape(2, 8, 3, 4)) == (
    2 * 2 * 3 * 6 * 8 * 4
  )

  def conv(x, w):
    return jax.lax.conv_general_dilated(
      x, w, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  assert flops(conv, shape(2, 8, 8, 3), shape(2, 2, 3, 5)) == (
    2 * (2 * 4 * 4 * 5) * (2 * 2 * 3)
  )
  assert flops(jnp.sin, shape(100)) == 0


def test_loops_count_as_often_as_they_run():
  @jax.custom_vjp
  def square(x):
    return x @ x

  square.defvjp(lambda x: (square(x), x), lambda x, g: (g @ x.T + x.T @ g,))

  def body(x, _):
    return jax.checkpoint(square)(jax.jit(jnp.matmul)(x, x)), None

  def f(x):
    return jax.lax.scan(body, x, None, length=11)[0]

  assert throughput.forward_flops(f, shape(4, 4)) == 11 * 2 * (2 * 4**3)


def test_the_compiler_counts_a_loop_body_once():
  # The reason for counting here: if this fails, the compiler has learnt it.
  def f(x):
    return jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=9)[0]

  cost = jax.jit(f).lower(shape(64, 64)).compile().cost_analysis()
  ours = throughput.forward_flops(f, shape(64, 64))
  assert ours == 9 * 2 * 64**3
  assert cost["flops"] < ours / 4


def test_shard_map_counts_all_parts():
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  f = jax.shard_map(
    lambda x, w: x @ w,
    mesh=mesh,
    in_specs=(jax.P("data"), jax.P()),
    out_specs=jax.P("data"),
  )
  assert throughput.forward_flops(f, shape(16, 5), shape(5, 7)) == (
    2 * 16 * 5 * 7
  )


@pytest.mark.parametrize(
  "kind, tera",
  [
    ("TPU v2", 22.5),
    ("TPU v4", 275),
    ("TPU v5 lite", 197),
    ("TPU v5p", 459),
    ("TPU v6 lite", 918),
    ("NVIDIA H100 80GB HBM3", 989),
    ("cpu", None),
  ],
)
def test_peaks(kind, tera):
  assert throughput.peak(kind) == (tera and tera * 1e12)


def test_meter(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
  meter = throughput.Meter(batch_size=32, flops=6e12, chips=4, peak=1e12)
  for _ in range(5):
    with meter.waiting():
      now[0] += 0.1
    with meter.inside():
      now[0] += 1.8
    now[0] += 0.1
    meter.step()
  with meter.paused():  # an evaluation is no part of a step
    now[0] += 100
  got = meter.read()
  assert got == pytest.approx(
    {
      "time/step_s": 2.0,
      "time/examples_per_s": 16.0,
      "time/examples_per_s_per_chip": 4.0,
      "time/host_share": 0.1,
      "time/data_share": 0.05,
      "time/tflops_per_chip": 0.75,
      "time/mfu": 0.75,
    }
  )
  assert meter.read() == {}

  unknown = throughput.Meter(32, 6e12, 4, None)
  now[0] += 1
  unknown.step()
  assert "time/mfu" not in unknown.read()


@pytest.mark.parametrize(
  "kind, platform",
  (
    ("TPU v5e", "tpu"),
    ("NVIDIA A100-SXM4-80GB", "gpu"),
    ("NVIDIA H100 80GB HBM3", "gpu"),
  ),
)
def test_attention_counts_by_whatever_kernel(kind, platform):
  if "H100" in kind and (0, 11) <= jax.__version_info__ < (0, 12):
    pytest.skip("kernels for Hopper cannot say what they cost")
  q = jax.ShapeDtypeStruct((2, 512, 4, 64), jnp.bfloat16)
  device = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
  mesh = AbstractMesh((1,), ("x",), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    assert throughput.forward_flops(attention, q, q, q) == (
      4 * 2 * 4 * 512**2 * 64
    )
