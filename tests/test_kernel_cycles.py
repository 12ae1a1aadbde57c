"""What tools/kernel_cycles.py makes of what the TPU compiler wrote."""

import importlib.util
import pathlib

import pytest

TOOL = pathlib.Path(__file__).parents[1] / "tools" / "kernel_cycles.py"
spec = importlib.util.spec_from_file_location("kernel_cycles", TOOL)
cycles = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cycles)

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
  assert cycles.parse(tmp_path) == {"attention_whole.1": 2 * 45607}


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
  shape, chip = cycles.SHAPES[key], cycles.CHIPS["v5e"]
  figure, note = cycles.judge(found, chip, shape, False)
  assert figure is None and says in note


def test_what_can_be_is_cycles_a_head():
  shape, chip = cycles.SHAPES["vit"], cycles.CHIPS["v5e"]
  figure, _ = cycles.judge({"a": 40_000, "b": 8_000}, chip, shape, False)
  assert figure == 1000
