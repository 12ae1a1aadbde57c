"""What tools/kernel_cycles.py makes of what the TPU compiler wrote."""

import importlib.metadata
import json
import pathlib
import subprocess
import sys

import pytest

from mmjax.ops.kernels import tiles

sys.path.append(str(pathlib.Path(__file__).parents[1] / "tools"))
import kernel_cycles as cycles
import tpu_compiler

WRITTEN = """hlo_op_estimate {
  hlo_op_name: "attention_whole.1"
  estimated_cycles: 45607
  num_equivalent_hlos: 2
  dma_instruction_type: DMA_INSTRUCTION_TYPE_NONE
}
"""


def test_an_operation_counts_as_often_as_it_is_there(tmp_path):
  name = "attention_whole.1_static_llo_profile.textproto"
  (tmp_path / name).write_text(WRITTEN)
  (tmp_path / "unrelated.txt").write_text(WRITTEN)
  assert tpu_compiler.parse(tmp_path) == {"attention_whole.1": 2 * 45607}


def test_products_of_vit_by_hand():
  # 4 images of 12 heads: 2 products of 197 x 197 x 64, or 7 with backward.
  product = 2 * 48 * 197 * 197 * 64
  assert cycles.flops(cycles.SHAPES["vit"], False) == 2 * product
  assert cycles.flops(cycles.SHAPES["vit"], True) == 7 * product


@pytest.mark.parametrize(
  "found, key, says",
  [
    ({}, "vit", "no estimate"),
    ({"attention_whole": 0}, "vit", "no estimate"),
    ({"attention_whole": 10**6, "copy": -5}, "vit", "no estimate"),
    ({"attention_whole": 100}, "vit", "impossible"),
    ({"attention_flash.3": 10**9}, "gpt3", "table"),
  ],
)
def test_what_cannot_be_is_no_figure(found, key, says):
  case = cycles.Case("v5e", "ours", cycles.SHAPES[key], False)
  figure, note = cycles.judge(found, case)
  assert figure is None and says in note


def test_what_can_be_is_cycles_a_head():
  case = cycles.Case("v5e", "ours", cycles.SHAPES["vit"], False)
  figure, _ = cycles.judge({"a": 40_000, "b": 8_000}, case)
  assert figure == 1000


def test_bundles_are_counted_where_the_simulator_aborts(monkeypatch):
  """A fake compiler: it aborts when asked to simulate, and writes bundles."""

  def run(command, env, **_):
    folder = env["LIBTPU_INIT_ARGS"].split("=")[1].split()[0]
    if "static_llo_profile" in env["LIBTPU_INIT_ARGS"]:
      return subprocess.CompletedProcess(command, -6, "", "LLO_CHECK failed\n")
    case = cycles.Case(*json.loads(command[-1]))
    assert case.chip == "v5e"
    for kernel, rows in (("attention_whole.1", 2_000), ("mul.2", 9_999)):
      name = f"17-{kernel}-01-final_hlo-static-per-bundle-utilization.txt"
      text = "== CAPACITY:\n  MXU, XLU\n" + "0 1 0\n" * rows
      (pathlib.Path(folder) / name).write_text(text)
    return subprocess.CompletedProcess(command, 0, "straight [4, 2]\n", "")

  monkeypatch.setattr(tpu_compiler.subprocess, "run", run)
  case = cycles.Case("v5e", "ours", cycles.SHAPES["vit"], False)
  figure, note = cycles.estimate(case)
  assert figure == 2_000 / 4 and note.startswith("~")
  figure, note = cycles.estimate(case._replace(name="xla"))
  assert figure is None and "LLO_CHECK" in note


def test_heads_of_a_loop_count_once():
  whole = tiles.Whole(1, 4, 1, 1024, 4)
  assert cycles.straight(whole, cycles.SHAPES["so400m"]) == [4, 4]
  assert cycles.straight(tiles.Flash(512, 512), None) == [0, 0]
  packed = tiles.Whole(1, 16, 1, 1024, 16)  # all that share tiles of lanes
  assert cycles.straight(packed, cycles.SHAPES["so400m"]) == [16, 16]
  # Eight query heads of one key head: backward in turn, four at a time.
  grouped = tiles.Whole(1, 1, 8, 384, 4)
  assert cycles.straight(grouped, cycles.SHAPES["paligemma"]) == [8, 4]


def test_heads_in_straight_code():
  assert cycles.laid(tiles.Whole(1, 4, 1, 128, 4)) == 4
  assert cycles.laid(tiles.Whole(2, 6, 1, 128, 4)) == 4
  assert cycles.laid(tiles.Whole(1, 6, 1, 128, 4)) == 6
  assert cycles.laid(tiles.Whole(1, 11, 1, 128, 4)) == 4 + 3
  # Two heads share a tile: a row of six, and two of four rows at a time.
  assert cycles.laid(tiles.Whole(2, 6, 1, 128, 6), 2) == 6
  assert cycles.laid(tiles.Whole(4, 4, 1, 128, 8), 2) == 8


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch, capsys):
  def version(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, "version", version)
  with pytest.raises(SystemExit) as stopped:
    cycles.main(["--chips", "v5e"])
  assert stopped.value.code == 2
  assert "pip install" in capsys.readouterr().err
