"""The command for GPUs runs where there is none, as far as it can."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def bench():
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
  assert row["off"] < 0.03
  assert row["peers"]["ours"]["backward"]["tflops"] > 0
  assert "refused" in row["peers"]["cudnn"]  # on a CPU it cannot run
  assert row["ratio"]["forward"] > 0
  assert "cudnn refused" in capsys.readouterr().out


def test_a_wrong_result_is_noticed(bench, monkeypatch):
  def wrong(causal, width, interpret):
    return lambda q, k, v: q + k + v + jnp.ones_like(q)

  monkeypatch.setitem(bench.JAX_PEERS, "ours", wrong)
  argv = ["--interpret", "--shape", "vit197"]
  assert bench.main(argv) == bench.WRONG
