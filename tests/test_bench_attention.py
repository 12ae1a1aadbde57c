"""The command for GPUs runs where there is none, as far as it can."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def bench(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / "tools")
  path = ROOT / "tools" / "bench_attention.py"
  spec = importlib.util.spec_from_file_location("bench_attention", path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_says_that_there_is_no_gpu(bench, capsys):
  if jax.default_backend() == "gpu":
    pytest.skip("there is one")
  assert bench.main([]) == bench.NO_GPU == 3
  assert "No GPU" in capsys.readouterr().out


def test_interprets_a_tiny_shape_and_stores_its_table(bench, tmp_path, capsys):
  out = tmp_path / "bench.json"
  argv = ["--interpret", "--shape", "so400m729", "--out", str(out)]
  assert bench.main(argv) == 0
  table = json.loads(out.read_text())
  assert table["chip"] == "interpreted"
  assert {"jax", "jaxlib"} <= set(table["versions"])
  row = table["rows"]["so400m729"]
  assert row["shape"] == [1, 18, 2, 72]
  assert row["off"]["ours"] < 0.03
  assert row["peers"]["ours"]["backward"]["tflops"] > 0
  assert "refused" in row["peers"]["cudnn"]  # on a CPU it cannot run
  assert row["ratio"]["forward"] > 0
  assert "cudnn refused" in capsys.readouterr().out


def test_a_wrong_result_is_noticed(bench, monkeypatch):
  def wrong(causal, width, interpret):
    return lambda q, k, v: q + k + v + jnp.ones_like(q)

  monkeypatch.setitem(bench.JAX_PEERS, "ours", wrong)
  argv = ["--interpret", "--shape", "vit197"]
  argv += ["--peer", "xla", "--peer", "ours"]
  assert bench.main(argv) == bench.WRONG


def test_work_is_counted_by_the_pairs_that_see_each_other(bench):
  B, T, N, H, _ = bench.SHAPES["dalle1280"]
  causal = bench.row_of("dalle1280", False)["tera"] * 1e12
  assert causal == pytest.approx(4 * B * N * H * T * (T + 1) / 2)
  full = 4 * B * N * H * T * T
  for name, part in (("dalle-row", 0.2), ("dalle-conv", 0.215)):
    assert bench.row_of(name, False)["tera"] * 1e12 / full == pytest.approx(
      part, rel=0.05
    )


def test_peers_are_given_the_mask_itself(bench):
  peers = importlib.import_module("gpu_peers")
  q = jax.random.normal(jax.random.key(0), (1, 1280, 1, 16))
  xla = bench.JAX_PEERS["xla"]("conv", 16, False)(q, q, q)
  seen = peers.seen("conv", 1280)[0, 0]
  logits = jnp.where(seen, q[0, :, 0] @ q[0, :, 0].T / 4, -jnp.inf)
  want = jax.nn.softmax(logits) @ q[0, :, 0]
  assert jnp.abs(xla[0, :, 0] - want).max() < 1e-4
