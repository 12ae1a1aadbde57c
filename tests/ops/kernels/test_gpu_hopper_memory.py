"""Into which columns the rows of a head are cut."""

import pytest

from mmjax.ops.kernels import gpu_hopper_memory as hm


@pytest.mark.parametrize("width", (*range(8, 129, 8), 256))
def test_parts_cover_a_head(width):
  parts = hm.split(width)
  end = 0
  for offset, size in parts:
    assert offset == end and size in (16, 32, 64)
    end += size
  # No part is of zeros alone, nor twice as large as it need be.
  assert parts[-1].offset < width <= end
  assert parts[-1].size == 16 or width - parts[-1].offset > parts[-1].size // 2
