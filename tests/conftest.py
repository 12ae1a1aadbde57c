"""Eight fake devices, rank promotion raises, programs compile fast."""

import gc
import os
import shutil
import tempfile

import jax
import numpy as np
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
  "xla_cpu_parallel_codegen_split_count": 1,  # both cores have tests
}
if jax.__version_info__ < (0, 11):
  FAST["xla_cpu_use_fusion_emitters"] = False  # gone from later ones
os.environ["XLA_FLAGS"] = " ".join(
  [os.environ.get("XLA_FLAGS", "")]
  + [f"--{flag}={str(value).lower()}" for flag, value in FAST.items()]
)

# Tracing makes millions of objects that live on: looking for cycles among
# them each 700 took a tenth of the time.
gc.set_threshold(50_000, 20, 50)

# No call stack of a hundred frames beside each operation of a program.
jax.config.update("jax_traceback_in_locations_limit", 0)
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"

# A program that two processes of a session need is compiled once. Workers of
# xdist inherit the folder; whoever made it takes it away.
PROGRAMS = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  PROGRAMS = tempfile.mkdtemp(prefix="mmjax-programs-")
  jax.config.update("jax_compilation_cache_dir", PROGRAMS)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"


def pytest_unconfigure():
  if PROGRAMS:
    shutil.rmtree(PROGRAMS, ignore_errors=True)


@pytest.fixture
def key():
  return jax.random.key(0)


@pytest.fixture(scope="session")
def draw():
  """Takes a model and its inputs; returns its variables, drawn by numpy.

  Boxed, as `init` returns them; norms and biases do nothing yet; a parameter
  is the same whatever others there are. To compile `init`, with a generator of
  random numbers for each parameter, takes longer than to compile the model.
  """

  def leaf(seed, path, x):
    rng = np.random.default_rng((seed, *jax.tree_util.keystr(path).encode()))
    name = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)][-1]
    if name in ("scale", "var"):
      return np.ones(x.shape, x.dtype)
    if name in ("bias", "mean"):
      return np.zeros(x.shape, x.dtype)
    return (0.2 * rng.standard_normal(x.shape)).astype(x.dtype)

  def variables(model, *args, seed=0, **keywords):
    shapes = jax.eval_shape(
      lambda: model.init(jax.random.key(0), *args, **keywords)
    )
    return jax.tree_util.tree_map_with_path(
      lambda path, x: jax.device_put(leaf(seed, path, x)), shapes
    )

  return variables


@pytest.fixture
def one_device(monkeypatch):
  """Commands see one device: for eight, all takes three times as long."""
  first = jax.devices()[:1]
  monkeypatch.setattr(jax, "devices", lambda *_: first)
