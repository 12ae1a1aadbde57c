"""What tools/kernel_steps.py makes of estimates; the estimates are made up."""

import pathlib
import sys

import numpy as np
import pytest

from mmjax.ops import blocks

sys.path.append(str(pathlib.Path(__file__).parents[1] / "tools"))
import kernel_steps as steps
from kernel_steps import Cost, Found


@pytest.mark.parametrize(
  "operation, name",
  [
    ("jvp_attention_flash_.1", "forward"),
    ("transpose_jvp_attention_flash_dq__.2", "dq"),
    ("transpose_jvp_attention_flash_backward__.1", "backward"),
    ("splash_mha_fwd_residuals.3", "forward"),
    ("splash_mha_dkv_no_residuals.1", "dkv"),
    ("multiply_reduce_fusion", None),
  ],
)
def test_operations_are_known_by_their_names(operation, name):
  assert steps.kernel(operation) == name


def test_two_sizes_tell_a_row_from_a_block():
  """Of a row 30 cycles, of a block 100, whatever the order."""
  heads = steps.HEADS
  found = steps.split(
    {
      "splash_mha_fwd_residuals.2": heads * (1 * 30 + 2 * 100),
      "splash_mha_fwd_residuals.1": heads * (2 * 30 + 8 * 100),
      "splash_mha_dkv_no_residuals.1": heads * (2 * 30 + 2 * 100),
      "splash_mha_dkv_no_residuals.2": heads * (4 * 30 + 8 * 100),
      "fusion": heads * 3 * 512,
    },
    (512, 256, 256),
  )
  assert found.kernels == {"forward": Cost(30, 100), "dkv": Cost(30, 100)}
  assert found.rest == 1 and not found.bundles


def test_a_missing_size_is_an_error():
  with pytest.raises(ValueError, match="dq: 1 figures"):
    steps.split({"attention_flash_dq.1": 7}, (512, 512))


def test_blocks_of_a_causal_mask_by_hand():
  assert steps.blocks(2048, 512, 512) == {
    "rows": 4,
    "columns": 4,
    "full": 6,
    "partial": 4,
  }
  # Each block of 1024 queries: two partial ones of 512 keys below the diagonal.
  assert steps.blocks(2048, 1024, 512) == {
    "rows": 2,
    "columns": 4,
    "full": 2,
    "partial": 4,
  }


def test_rows_of_a_kernel_by_keys_are_columns():
  full = Found({"forward": Cost(0, 10), "dkv": Cost(0, 1000)}, 0.0, False)
  partial = Found({"forward": Cost(1, 20), "dkv": Cost(100, 3000)}, 0.5, False)
  found = steps.total(full, partial, 2048, (1024, 512))
  assert found == {
    "forward": 2 * 1 + 2 * 10 + 4 * 20,
    "dkv": 4 * 100 + 2 * 1000 + 4 * 3000,
    "rest": 1024,
  }


def test_bundles_are_the_larger_of_both_programs():
  found = steps.counted(
    {"attention_flash.1": 90, "attention_flash.2": 100, "copy": 7}
  )
  assert found == Found({"forward": Cost(0, 100)}, 0.0, True)


def test_the_best_forward_and_backward_may_differ():
  tries = [{"forward": 5, "dkv": 9, "rest": 1}, {"forward": 6, "dkv": 2}]
  assert steps.least(tries) == 5 + 2
  assert steps.least([]) is None


def test_no_block_of_the_veiled_mask_is_known():
  kinds = blocks.static_map(steps.veiled(), 64, 64, 16, 16)
  assert (kinds == blocks.PARTIAL).all()
  q, k = np.arange(9)[:, None], np.arange(9)[None]
  np.testing.assert_array_equal(steps.veiled().seen(q, k), k <= q)


def test_a_simulated_kernel_is_not_compared_with_a_counted_one(monkeypatch):
  def estimate(case):
    return Found({"forward": Cost(0, 1)}, 0.0, case.kind == "full")

  monkeypatch.setattr(steps, "estimate", estimate)
  found = steps.figures("v6e", "ours", (512, 512), [2048], 128)
  assert isinstance(found, str) and "alone" in found
