"""When to do something: every N steps, examples or seconds."""

import dataclasses
import time

from mmjax import errors
from mmjax.parallel import hosts

UNITS = ("steps", "examples", "seconds")


@dataclasses.dataclass
class Cadence:
  """Says after each step whether it is time.

  Steps and examples depend on the step alone, so that a resumed run does the
  same things at the same steps; seconds do not, and suit only what leaves no
  trace in the results, such as checkpoints.

  Attributes:
    every: how many units; 0 is never.
    unit: one of `UNITS`.
    batch_size: global, for examples.
    last: clock of the last time, for seconds.
  """

  every: float
  unit: str = "steps"
  batch_size: int = 1
  last: float = dataclasses.field(default_factory=time.monotonic)

  def due(self, step: int) -> bool:
    """Is it time after this step (counted from 1)? In all processes alike."""
    if not self.every or step < 1:
      return False
    if self.unit == "seconds":
      # The clocks of processes differ, and they must not: evaluating and
      # saving are done together or not at all.
      now = time.monotonic()
      if not bool(hosts.broadcast(now - self.last >= self.every)):
        return False
      self.last = now
      return True
    size = self.batch_size if self.unit == "examples" else 1
    return step * size // self.every > (step - 1) * size // self.every


def parse(
  spec: int | str | None, field: str, *, batch_size: int = 1
) -> Cadence:
  """Reads a cadence: 400, "400 steps", "1e6 examples", "600 seconds", None.

  Args:
    spec: a number counts steps; None is never.
    field: where it stands in the config, for the error.
    batch_size: examples in one step.

  Raises:
    InputError: not a positive number, or an unknown unit.
  """
  if spec is None:
    return Cadence(0)
  number, _, unit = str(spec).strip().partition(" ")
  unit = unit.strip() or "steps"
  if unit not in UNITS:
    raise errors.unknown(f"config.{field} unit", unit, UNITS)
  try:
    every = float(number)
  except ValueError:
    every = 0.0
  if not 0 < every < float("inf") or (unit == "steps" and every % 1):
    raise errors.InputError(
      f"config.{field} = {spec!r}: give a positive number of steps such as "
      '400, or "1e6 examples" or "600 seconds".'
    )
  return Cadence(every, unit, batch_size)
