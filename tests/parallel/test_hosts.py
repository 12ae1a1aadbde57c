"""One process is a valid run; half a description of several is not."""

import jax
import numpy as np
import pytest

from mmjax import errors
from mmjax.parallel import hosts

NAMES = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


@pytest.fixture
def calls(monkeypatch):
  """No process is joined: the call is recorded."""
  for name in (*NAMES, "TPU_WORKER_HOSTNAMES", "JAX_COORDINATOR_PORT"):
    monkeypatch.delenv(name, raising=False)
  made = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *a: made.append(a))
  return made


def test_alone_does_nothing(calls):
  hosts.initialize()
  hosts.initialize()
  assert calls == []
  assert hosts.is_lead() and hosts.index() == 0 and hosts.count() == 1


def test_arguments_go_before_the_environment(calls, monkeypatch):
  for name, value in zip(NAMES, ("host:1", "4", "3"), strict=True):
    monkeypatch.setenv(name, value)
  hosts.initialize()
  hosts.initialize(process=2)
  assert calls == [("host:1", 4, 3), ("host:1", 4, 2)]


def test_a_second_call_is_idle_once_joined(calls, monkeypatch):
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  hosts.initialize("host:1", 2, 0)
  assert calls == []


def test_a_pod_is_left_to_jax_on_the_port_that_is_open(calls, monkeypatch):
  monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
  monkeypatch.setenv("JAX_COORDINATOR_PORT", "8476")
  monkeypatch.delenv("JAX_COORDINATOR_PORT")
  hosts.initialize()
  assert calls == [(None, None, None)]
  assert hosts.os.environ["JAX_COORDINATOR_PORT"] == "8476"


def test_half_a_description(calls, monkeypatch):
  monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
  with pytest.raises(errors.InputError, match="JAX_COORDINATOR_ADDRESS"):
    hosts.initialize()
  monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
  with pytest.raises(errors.InputError, match="'two'"):
    hosts.initialize()


def test_one_process_talks_to_itself():
  hosts.barrier("here")
  np.testing.assert_array_equal(hosts.broadcast({"a": 3})["a"], 3)
  assert hosts.allgather({"a": np.ones(2)})["a"].shape == (1, 2)
