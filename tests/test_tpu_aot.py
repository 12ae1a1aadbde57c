"""The attention kernels, through the real TPU compiler: nothing is executed."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

CHIPS = ("v5e", "v5p", "v6e", "tpu7x")
PROGRAM = pathlib.Path(__file__).with_name("compile_kernels.py")
TPU = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-16",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="pip install -e '.[tpu]'"
)
@pytest.mark.parametrize("chip", CHIPS)
def test_kernels_compile(chip):
  """Forward and backward at the shapes of real models; a process a chip."""
  done = subprocess.run(
    [sys.executable, str(PROGRAM), chip],
    env={**os.environ, **TPU},
    capture_output=True,
    text=True,
  )
  print(done.stdout)
  assert done.returncode == 0, done.stdout + done.stderr[-3000:]
