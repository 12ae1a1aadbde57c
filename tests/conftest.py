"""Eight fake devices, rank promotion raises, programs compile fast."""

import os
import shutil
import tempfile

import jax
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tests compile much and compute little: LLVM works less hard. What is traced,
# partitioned and computed stays. Processes that tests start inherit this.
FAST = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}
if jax.__version_info__ < (0, 11):
  FAST["xla_cpu_use_fusion_emitters"] = False  # gone from later ones
os.environ["XLA_FLAGS"] = " ".join(
  [os.environ.get("XLA_FLAGS", "")]
  + [f"--{flag}={str(value).lower()}" for flag, value in FAST.items()]
)

# A program that two processes of a session need is compiled once. Workers of
# xdist inherit the folder; whoever made it takes it away.
PROGRAMS = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  PROGRAMS = tempfile.mkdtemp(prefix="mmjax-programs-")
  jax.config.update("jax_compilation_cache_dir", PROGRAMS)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


def pytest_unconfigure():
  if PROGRAMS:
    shutil.rmtree(PROGRAMS, ignore_errors=True)


@pytest.fixture
def key():
  return jax.random.key(0)


@pytest.fixture
def one_device(monkeypatch):
  """Commands see one device: for eight, all takes three times as long."""
  first = jax.devices()[:1]
  monkeypatch.setattr(jax, "devices", lambda *_: first)
