"""What a run reads: the tokenizers, sources and preprocessing of a config."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmjax import errors
from mmjax.build import build
from mmjax.data import feed, pipeline, preprocess, tokenizers
from mmjax.parallel import hosts, rules
from mmjax.train import resilience
from mmjax.train import workdir as workdirs
from mmjax.typing import Source


def entries(data: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
  """Returns `config.data` as {field: {source, pp, weight}}, one per source."""
  if "mix" in data:
    return {f"data.mix.{name}": spec for name, spec in data["mix"].items()}
  return {"data": data}


def texts(source: Source) -> Iterator[str]:
  """Yields every text of a source: `texts`, or else `text`, of each record."""
  for index in range(len(source)):
    example = source[index]
    found = example.get("texts", example.get("text", ()))
    yield from [found] if isinstance(found, str) else found


def build_tokenizers(
  specs: Mapping[str, Mapping[str, Any]],
  data: Mapping[str, Any],
  workdir: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
  """Builds `config.tokenizers`, and trains those that are not yet.

  A SentencePiece tokenizer without a path is trained on the texts of its
  `source`, or without one on those of all training sources; never on what an
  evaluator reads. With a workdir it is trained once and kept there.

  Args:
    specs: {name: {kind, source, ...keywords of `tokenizers.build`}}.
    data: `config.data`, for its sources.
    workdir: of the run; tokenizers/<name>.model in it, and beside it
      <name>.json, what it was trained with.

  Raises:
    InputError: as `tokenizers.build`.
    StorageError: the workdir cannot be written.
  """
  return {
    name: _tokenizer(name, dict(spec), data, workdir)
    for name, spec in specs.items()
  }


def _tokenizer(
  name: str,
  spec: dict[str, Any],
  data: Mapping[str, Any],
  workdir: str | os.PathLike[str] | None,
) -> Any:
  own = spec.pop("source", None)
  if spec.get("kind") != "sentencepiece" or spec.get("path") is not None:
    return tokenizers.build(**spec)

  sources = [own] if own else [e["source"] for e in entries(data).values()]

  def train() -> Any:
    built = [build("data.sources", **source) for source in sources]
    found = (text for source in built for text in texts(source))
    return tokenizers.build(**spec, texts=found)

  if workdir is None:
    return train()
  path = pathlib.Path(workdir) / "tokenizers" / f"{name}.model"
  recipe = json.dumps({**spec, "sources": sources}, indent=2, sort_keys=True)
  if hosts.is_lead() and not _is_kept(path, recipe):
    beside = path.with_suffix(".json")
    with resilience.storage(path):  # before the work: it may be in vain
      path.parent.mkdir(parents=True, exist_ok=True)
      beside.unlink(missing_ok=True)
    trained = train()
    with resilience.storage(path):
      # Whoever is killed while writing leaves no half of a model behind, and
      # no recipe beside the model of another.
      trained.save(path.with_suffix(".partial"))
      path.with_suffix(".partial").replace(path)
      workdirs.write_atomically(beside, recipe)
  hosts.barrier(f"tokenizer {name}")
  return tokenizers.build(kind="sentencepiece", path=str(path))


def _is_kept(path: pathlib.Path, recipe: str) -> bool:
  """Is there a model, and was it trained with this recipe?

  A run that fails in its setup leaves a model in a folder that is nobody's
  yet; the next config there may be another. Once the folder has a config, the
  model belongs to the checkpoints and is never trained anew: `workdir.check`
  refuses a run with another tokenizer, and evaluating changes nothing.
  """
  if not os.path.exists(path):
    return False
  if os.path.exists(path.parents[1] / "config.json"):
    return True
  beside = path.with_suffix(".json")
  return os.path.exists(beside) and beside.read_text() == recipe


@dataclasses.dataclass(frozen=True, eq=False)
class Input:
  """The training data of a run.

  Attributes:
    sources, functions, weights: one of each per source.
    seed: of order and preprocessing.
    batch_size: global.
    workers: processes that prepare batches.
    ledger: counts corrupt records of all feeds of this run.
  """

  sources: Sequence[Source]
  functions: Sequence[preprocess.Preprocess]
  weights: Sequence[float]
  seed: int
  batch_size: int
  workers: int = 0
  ledger: pipeline.CorruptLedger = dataclasses.field(
    default_factory=pipeline.CorruptLedger
  )

  @classmethod
  def create(
    cls,
    data: Mapping[str, Any],
    tokenizers: Mapping[str, Any],
    *,
    seed: int,
    batch_size: int,
  ) -> "Input":
    """Builds the sources and functions of `config.data`.

    Raises:
      InputError: a source or spec that cannot be.
    """
    parts = list(entries(data).values())
    return cls(
      sources=[build("data.sources", **part["source"]) for part in parts],
      functions=[preprocess.parse(part["pp"], tokenizers) for part in parts],
      weights=[float(part.get("weight", 1.0)) for part in parts],
      seed=seed,
      batch_size=batch_size,
      workers=data.get("workers", 0),
    )

  def batches(self, start_step: int = 0) -> Iterator[pipeline.HostBatch]:
    """Yields this process's part of each batch; see `pipeline.batches`."""
    return self._batches(self.batch_size, start_step, self.workers)

  def _batches(self, size: int, start: int, workers: int) -> Any:
    return pipeline.batches(
      self.sources,
      self.functions,
      weights=self.weights,
      seed=self.seed,
      global_batch=size,
      process_index=hosts.index(),
      process_count=hosts.count(),
      start_step=start,
      workers=workers,
    )

  def feed(self, batches: Any, layout: rules.Layout) -> feed.Feed:
    """Returns global batches, one step ahead; corrupt records are counted.

    Raises:
      DataError: from `next`, when too many records are corrupt.
    """
    return feed.Feed(self.ledger.watch(batches), layout)

  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the global batch's shapes, by preprocessing a record or a few.

    Raises:
      InputError: preprocessing leaves what is no array of numbers.
      DataError: no good record is found.
    """
    # The real pipeline, but for the workers; two rows, so that records that
    # differ in shape are found before anything is compiled.
    rows = self._batches(2 * hosts.count(), 0, 0)
    example = next(rows)
    rows.close()
    found = {}
    for key, value in example.items():
      if key == pipeline.CORRUPT:
        continue
      if not (np.issubdtype(value.dtype, np.number) or value.dtype == bool):
        raise errors.InputError(
          f"config.data pp = {self.functions[0].spec!r}: it leaves {key!r}, "
          "which is no array of numbers; end it with |keep(...) of what the "
          "task reads."
        )
      dtype = jax.dtypes.canonicalize_dtype(value.dtype)
      shape = (self.batch_size, *value.shape[1:])
      found[key] = jax.ShapeDtypeStruct(shape, dtype)
    if not found:
      raise errors.InputError(
        f"config.data pp = {self.functions[0].spec!r}: it keeps nothing; name "
        "what the task reads in keep(...)."
      )
    return found
