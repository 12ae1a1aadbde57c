"""Several processes that run one program: start, wait, tell, ask."""

import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mmjax import errors


def initialize(
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
) -> None:
  """Joins this process to the others; call before anything touches a device.

  Each argument falls back on JAX's own environment variable:
  JAX_COORDINATOR_ADDRESS ("host:port"), JAX_NUM_PROCESSES, JAX_PROCESS_ID. On
  a TPU pod (TPU_WORKER_HOSTNAMES names several hosts) and under Slurm with
  several tasks JAX finds all three by itself. Without any of these, and when
  called again, it does nothing: one process is a valid run.

  Raises:
    InputError: only some of the three are given, or a number is not one.
  """
  if jax.distributed.is_initialized():
    return
  env = os.environ
  coordinator = coordinator or env.get("JAX_COORDINATOR_ADDRESS")
  processes = _number("JAX_NUM_PROCESSES", processes)
  process = _number("JAX_PROCESS_ID", process)
  given = {
    "JAX_COORDINATOR_ADDRESS": coordinator,
    "JAX_NUM_PROCESSES": processes,
    "JAX_PROCESS_ID": process,
  }
  missing = [name for name, value in given.items() if value is None]
  if not missing:
    jax.distributed.initialize(coordinator, processes, process)
  elif _in_cluster():
    # The default port changed to 8482 in jax 0.8.1; the firewall rule that
    # Google Cloud makes for TPU VMs opens 8476.
    env.setdefault("JAX_COORDINATOR_PORT", "8476")
    jax.distributed.initialize(coordinator, processes, process)
  elif len(missing) < len(given):
    raise errors.InputError(
      f"{missing[0]} is not set, while other variables of a multi-process run "
      f"are; set {', '.join(missing)} in every process, or none of the three "
      "to run as one process."
    )


def _number(variable: str, value: int | None) -> int | None:
  text = os.environ.get(variable) if value is None else value
  if text is None:
    return None
  try:
    return int(text)
  except ValueError:
    raise errors.InputError(
      f"{variable} = {text!r}: it must be a whole number; correct it."
    ) from None


def _in_cluster() -> bool:
  env = os.environ
  return (
    "," in env.get("TPU_WORKER_HOSTNAMES", "")
    or "MEGASCALE_COORDINATOR_ADDRESS" in env
    or int(env.get("SLURM_NTASKS", "1")) > 1
  )


def index() -> int:
  """Returns this process's number."""
  return jax.process_index()


def count() -> int:
  """Returns the number of processes."""
  return jax.process_count()


def is_lead() -> bool:
  """Is this the process that writes logs and files which all share?"""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits until every process has come to the barrier of this name."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def broadcast(tree: Any) -> Any:
  """Returns the lead's tree of numpy arrays, in every process.

  Shapes and dtypes must be the same in all processes.
  """
  if jax.process_count() == 1:
    return jax.tree.map(np.asarray, tree)
  return multihost_utils.broadcast_one_to_all(tree)


def allgather(tree: Any) -> Any:
  """Returns every process's tree, stacked: each leaf becomes [processes ...].

  Shapes and dtypes must be the same in all processes.
  """
  if jax.process_count() == 1:
    return jax.tree.map(lambda x: np.asarray(x)[None], tree)
  return multihost_utils.process_allgather(tree, tiled=False)
