"""Which implementation computes an attention, and why not another.

Each implementation is a module of `kernels` with

  attend(q, k, v, *, mask, bias, scale, softcap, dropout_rate, dropout_seeds)
  refuses(...) -> str | None: why it cannot compute a call. It names as
    parameters what can matter to it, of what `choose` is given.
  reads_table(bias, length_q, length_k) -> bool: whether it computes with this
    table of `ops.bias`; without one, or elsewhere, the door hands it the dense
    form.
"""

import dataclasses
import importlib
import inspect
from types import ModuleType
from typing import Any

import jax

from mmjax import errors
from mmjax.ops.bias import Bias

# Where each runs; None is everywhere.
PLATFORMS: dict[str, str | None] = {
  "xla": None,
  "tpu": "tpu",
  "gpu": "gpu",
  "cudnn": "gpu",
}
# What is tried on a platform, best first, where no name is given.
ORDER = {"tpu": ("tpu", "xla"), "gpu": ("gpu", "cudnn", "xla")}
_MODULES = {"xla": "reference"}


@dataclasses.dataclass(frozen=True)
class Choice:
  """What computes an attention.

  impl: its name.
  platform: for which it was chosen: "cpu", "gpu" or "tpu".
  refused: the names that were not taken, each with the reason.
  """

  impl: str
  platform: str
  refused: tuple[tuple[str, str], ...]

  def __str__(self) -> str:
    lines = [f"attention on {self.platform}: {self.impl}"]
    return "\n".join(lines + [f"  not {x}: {why}" for x, why in self.refused])


def platform() -> str:
  """Returns where what is traced now will run: "cpu", "gpu" or "tpu".

  That of the mesh, which may be one of devices that are not here (compiling
  ahead of time), else that of the default device.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is not None:
    return _family(device.platform or device.device_kind)
  return _family(jax.default_backend())


def _family(name: str) -> str:
  """Returns the platform of a backend's or a device's name."""
  name = name.lower()
  if name.startswith("tpu"):
    return "tpu"
  if name.startswith("cpu"):
    return "cpu"
  return "gpu"


def candidates(impl: str | None, on: str | None = None) -> tuple[str, ...]:
  """Returns the names that are tried in turn on a platform.

  Raises:
    InputError: `impl` is the name of none.
  """
  if impl is None:
    return ORDER.get(on or platform(), ("xla",))
  if impl not in PLATFORMS:
    raise errors.unknown("attention impl", impl, tuple(PLATFORMS))
  return (impl,)


def kernel(impl: str) -> ModuleType:
  """Returns the module of an implementation."""
  name = _MODULES.get(impl, impl)
  return importlib.import_module(f"mmjax.ops.kernels.{name}")


def reads_table(impl: str, bias: Bias, length_q: int, length_k: int) -> bool:
  """Says whether an implementation computes with the table of a bias."""
  reads = getattr(kernel(impl), "reads_table", None)
  return reads is not None and reads(bias, length_q, length_k)


def choose(impl: str | None, on: str | None, call: dict[str, Any]) -> Choice:
  """Chooses for a call; a name given is taken or raises.

  Args:
    impl: a name, or None for the best that can.
    on: platform; None is the one at hand.
    call: what may matter to `refuses`; see `attention.explain_attention`.

  Raises:
    InputError: `impl` cannot, and why.
  """
  on = on or platform()
  tried = candidates(impl, on)
  found, refused = None, []
  for name in dict.fromkeys((*tried, *PLATFORMS)):
    why = None
    if name not in tried or found is not None:
      why = _elsewhere(name, on)
      why = why or (f"{found} comes first" if found else "not tried")
    else:
      why = _why_not(name, on, {**call, "named": impl is not None})
    if why is None:
      found = name
    elif impl is not None and found is None:
      raise errors.InputError(
        f"attention impl = {impl!r}: {why}. Take another, or None for the best "
        "that can."
      )
    else:
      refused.append((name, why))
  if found is None:
    raise RuntimeError(f"no attention for {on}")  # XLA refuses nothing
  return Choice(found, on, tuple(refused))


def _elsewhere(name: str, on: str) -> str | None:
  where = PLATFORMS[name]
  if where in (None, on):
    return None
  return f"runs on {where}, and this is for {on}"


def _why_not(name: str, on: str, call: dict[str, Any]) -> str | None:
  why = _elsewhere(name, on)
  if why is not None:
    return why
  module = kernel(name)
  asks = inspect.signature(module.refuses).parameters
  return module.refuses(**{x: call[x] for x in asks})
