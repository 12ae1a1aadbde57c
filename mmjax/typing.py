"""The axis alphabet, and the shapes of what flows between rooms.

Letters, used in signatures, einsums and comments:
  B batch, T query length, S key length, D width, N heads, K key-value heads,
  H head dimension, F mlp width, V vocabulary, C classes or channels,
  Y X image rows and columns, P patches, A audio frames, R regions.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

Example = dict[str, Any]  # one record: numpy arrays, bytes, str
Batch = dict[str, jax.Array]  # image [B Y X C], text [B T], audio [B A C], ...
Params = Mapping[str, Any]
Metrics = dict[str, jax.Array]  # scalars


class Aux(NamedTuple):
  """What a loss returns beside the loss."""

  mutable: Mapping[str, Any]
  metrics: Metrics


class Task(Protocol):
  """Model + loss + named predict functions; all that a loop needs.

  `init` returns variables boxed with logical axis names; `loss` and `predict`
  take unboxed dicts of arrays, variables = {"params": params, **mutable}.
  """

  @property
  def predict(self) -> Mapping[str, Callable[[Any, Batch], Any]]: ...

  def init(self, rng: jax.Array, batch: Batch) -> Mapping[str, Any]: ...

  def loss(
    self, params: Params, mutable: Params, batch: Batch, rngs: Any
  ) -> tuple[jax.Array, Aux]: ...


class Evaluator(Protocol):
  """Scores variables; never sees the optimizer."""

  def run(self, variables: Mapping[str, Any]) -> dict[str, float]: ...


class Source(Protocol):
  """Random access to records; picklable, for worker processes."""

  name: str

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...
