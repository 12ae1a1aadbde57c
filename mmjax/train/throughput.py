"""Step time, model FLOPs, MFU, and the share of time that Python costs."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

FORMULA = (
  "MFU = 3 x matmul and convolution FLOPs of one forward pass "
  "/ (step seconds x chips x peak FLOP/s in bfloat16)"
)

# Dense bfloat16 FLOP/s of one JAX device, by what its `device_kind` starts
# with; the longest fits. v2, v3 and tpu7x show two devices a chip.
PEAKS = {
  "TPU v2": 22.5e12,
  "TPU v3": 61.5e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "TPU7x": 1153.5e12,
  "NVIDIA A100": 312e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H200": 989e12,
}


def peak(kind: str) -> float | None:
  """Returns the peak FLOP/s of a device kind, or None where it is unknown.

  A CPU has none: its clock and vector width are no part of its name.
  """
  found = [name for name in PEAKS if kind.lower().startswith(name.lower())]
  return PEAKS[max(found, key=len)] if found else None


def forward_flops(f: Callable[..., Any], *shapes: Any) -> float:
  """Counts the FLOPs of the matrix products and convolutions of f.

  Counted in the traced program, where a scan has its length; the compiler's
  own cost analysis counts the body of a loop once. A Pallas kernel counts as
  what it says it costs, which of attention leaves out the blocks that a mask
  empties; kernels for Hopper say nothing before JAX 0.12.

  Args:
    f: any function of arrays.
    *shapes: its arguments, arrays or `jax.ShapeDtypeStruct`.
  """
  return _count(jax.make_jaxpr(f)(*shapes).jaxpr)


def _count(jaxpr: Any) -> float:
  total = 0.0
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    if name == "dot_general":
      (contract, _), _ = eqn.params["dimension_numbers"]
      left = eqn.invars[0].aval.shape
      depth = math.prod(left[i] for i in contract)
      total += 2.0 * math.prod(eqn.outvars[0].aval.shape) * depth
    elif name == "conv_general_dilated":
      kernel = eqn.invars[1].aval.shape
      out = eqn.params["dimension_numbers"].rhs_spec[0]
      depth = math.prod(kernel) // kernel[out]
      total += 2.0 * math.prod(eqn.outvars[0].aval.shape) * depth
    elif eqn.params.get("cost_estimate") is not None:
      total += eqn.params["cost_estimate"].flops
    elif name == "cond":
      total += max(_count(b.jaxpr) for b in eqn.params["branches"])
    else:
      total += _times(eqn) * sum(map(_count, _inner(eqn)))
  return total


def _times(eqn: Any) -> int:
  """Returns how often the inner program of an equation runs."""
  if eqn.primitive.name == "scan":
    return eqn.params["length"]
  if eqn.primitive.name == "shard_map":
    # Its inner shapes are those of one part.
    return math.prod(eqn.params["mesh"].shape.values())
  return 1


def _inner(eqn: Any) -> list[Any]:
  if eqn.primitive.name.startswith("custom_"):
    # The function itself; its derivative rules are parameters too.
    for key in ("call_jaxpr", "fun_jaxpr", "jaxpr"):
      if key in eqn.params:
        return [getattr(eqn.params[key], "jaxpr", eqn.params[key])]
  found = []
  for value in eqn.params.values():
    for x in value if isinstance(value, tuple | list) else (value,):
      x = getattr(x, "jaxpr", x)
      if hasattr(x, "eqns"):
        found.append(x)
  return found


class Meter:
  """Measures the steps between two readings.

  Attributes:
    batch_size: global.
    flops: model FLOPs of one step (forward and backward), 0 if unknown.
    chips: devices of the mesh.
    peak: FLOP/s of one device, or None.
  """

  def __init__(
    self, batch_size: int, flops: float, chips: int, peak: float | None
  ) -> None:
    self.batch_size, self.flops = batch_size, flops
    self.chips, self.peak = chips, peak
    self.reset()

  def reset(self) -> None:
    """Forgets all; the next reading begins here."""
    self._steps, self._inside, self._wait = 0, 0.0, 0.0
    self._start, self._paused = time.perf_counter(), 0.0

  @contextlib.contextmanager
  def inside(self) -> Iterator[None]:
    """Around the call of the compiled step, and around waiting for it."""
    start = time.perf_counter()
    yield
    self._inside += time.perf_counter() - start

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Around taking the next batch."""
    start = time.perf_counter()
    yield
    self._wait += time.perf_counter() - start

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Around what is no part of a step: evaluating, saving."""
    start = time.perf_counter()
    yield
    self._paused += time.perf_counter() - start

  def step(self) -> None:
    """Counts a step."""
    self._steps += 1

  def read(self) -> dict[str, float]:
    """Returns the figures since the last reading, and begins anew.

    Returns:
      time/step_s: seconds a step. time/examples_per_s, and per chip.
      time/host_share: share of the time in which the loop was neither in the
        compiled step nor waiting for it; work that ran beside the device
        counts too, so this is an upper bound.
      time/data_share: share spent waiting for the next batch, a part of the
        former.
      time/tflops_per_chip: model FLOP/s, if the FLOPs are known. time/mfu: by
        `FORMULA`, if the peak is.
    """
    wall = time.perf_counter() - self._start - self._paused
    steps, inside, wait = self._steps, self._inside, self._wait
    self.reset()
    if not steps or wall <= 0:
      return {}
    rate = self.batch_size * steps / wall
    out = {
      "time/step_s": wall / steps,
      "time/examples_per_s": rate,
      "time/examples_per_s_per_chip": rate / self.chips,
      "time/host_share": max(0.0, 1.0 - inside / wall),
      "time/data_share": wait / wall,
    }
    speed = self.flops * steps / wall / self.chips
    if speed:
      out["time/tflops_per_chip"] = speed / 1e12
    if speed and self.peak:
      out["time/mfu"] = speed / self.peak
    return out
