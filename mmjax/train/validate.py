"""Every mistake in a config that can be found before long work."""

import inspect
import types
from collections.abc import Mapping
from typing import Any

from mmjax import errors
from mmjax.build import check, load
from mmjax.data import framing, preprocess
from mmjax.data import tokenizers as tokenizer_kinds
from mmjax.train import cadence, inputs, optimizers
from mmjax.train.step import NAN_POLICIES

_REQUIRED = object()
FIELDS: Mapping[str, Any] = {
  "seed": 0,
  "steps": _REQUIRED,
  "batch_size": _REQUIRED,
  "mesh": {"data": -1},
  "dtype": "float32",
  "tokenizers": {},
  "data": _REQUIRED,
  "task": _REQUIRED,
  "optimizer": _REQUIRED,
  "evals": {},
  "log_every": 50,
  "checkpoint": {},
  "nan": "stop",
}
_CHECKPOINT = {"every": 1000, "keep": 1}
_DTYPES = ("float32", "bfloat16")


def resolve(config: Any) -> dict[str, Any]:
  """Returns the config as a dict of all `FIELDS`, checked for names and types.

  Raises:
    InputError: unknown, missing or impossible field.
  """
  given = config.to_dict() if hasattr(config, "to_dict") else dict(config)
  for name in given:
    if name not in FIELDS:
      raise errors.unknown("config", name, FIELDS)
  c = {**FIELDS, **given}
  for name, value in c.items():
    if value is _REQUIRED:
      raise errors.InputError(
        f"config.{name} is missing; add it, experiments/emoji/siglip.py shows "
        "one of each field."
      )
  for name in ("mesh", "tokenizers", "data", "task", "optimizer", "evals"):
    if not isinstance(c[name], Mapping):
      raise errors.InputError(
        f"config.{name} = {c[name]!r}: it must be a dict of keywords."
      )
  for name in ("steps", "batch_size"):
    _whole(name, c[name], 1)
  if isinstance(c["seed"], bool) or not isinstance(c["seed"], int):
    raise errors.InputError(
      f"config.seed = {c['seed']!r}: it must be a whole number, such as 0."
    )
  for name, known in (("nan", NAN_POLICIES), ("dtype", _DTYPES)):
    if c[name] not in known:
      raise errors.unknown(f"config.{name}", c[name], known)
  for name in c["checkpoint"]:
    if name not in _CHECKPOINT:
      raise errors.unknown("config.checkpoint", name, _CHECKPOINT)
  c["checkpoint"] = {**_CHECKPOINT, **c["checkpoint"]}
  _whole("checkpoint.keep", c["checkpoint"]["keep"], 1)
  cadence.parse(c["log_every"], "log_every")
  cadence.parse(c["checkpoint"]["every"], "checkpoint.every")
  if "lr" not in c["optimizer"]:
    raise errors.InputError(
      "config.optimizer.lr is missing; add the peak learning rate, such as "
      "1e-3."
    )
  optimizers.check(steps=c["steps"], **c["optimizer"])
  return c


def _whole(name: str, value: Any, least: int) -> None:
  if isinstance(value, bool) or not isinstance(value, int) or value < least:
    raise errors.InputError(
      f"config.{name} = {value!r}: it must be a whole number of at least "
      f"{least}."
    )


def check_batch(c: Mapping[str, Any], shards: int, processes: int) -> None:
  """Checks that a global batch splits over the mesh and the processes.

  Raises:
    InputError: it does not; names the nearest sizes that do.
  """
  size, micro = c["batch_size"], c["task"].get("microbatches") or 1
  if shards % processes:
    raise errors.InputError(
      f"mesh = {dict(c['mesh'])}: data x fsdp = {shards} parts of the batch "
      f"cannot be shared out to {processes} processes; make data x fsdp a "
      "multiple of the number of processes."
    )
  unit = shards * micro
  if size % unit:
    below, above = size // unit * unit, (size // unit + 1) * unit
    parts = f"data x fsdp = {shards} parts"
    parts += f" x {micro} microbatches" if micro > 1 else ""
    fix = f"{below} or {above}" if below else f"{above}"
    raise errors.InputError(
      f"config.batch_size = {size}: the mesh splits it into {parts}, so it "
      f"must be a multiple of {unit}; use {fix}, or change config.mesh."
    )


def check_names(c: Mapping[str, Any]) -> None:
  """Checks every plug-in that the config names, and its keywords.

  Raises:
    InputError: unknown plug-in or keyword, with the nearest known.
  """
  _check("tasks", "task", c["task"])
  if isinstance(c["task"].get("model"), Mapping):
    _check_models("task.model", c["task"]["model"])
  check_data(c["data"])
  check_tokenizers(c["tokenizers"])
  for name, spec in c["evals"].items():
    given = dict.fromkeys(("task", "tokenizers", "layout"))
    _check("evals", f"evals.{name}", {**given, **own(spec)})
    if isinstance(spec.get("data"), Mapping):
      _check("data.sources", f"evals.{name}.data", spec["data"])
    cadence.parse(spec.get("every"), f"evals.{name}.every")
  check_specs(c)


def check_data(data: Mapping[str, Any]) -> None:
  """Checks `config.data`: {source, pp, workers}, or {mix, workers}.

  `mix` is {name: {source, pp, weight}}.

  Raises:
    InputError: unknown or missing field, unknown source or keyword of one,
      or a number of workers that cannot be.
  """
  if "mix" in data:
    _check_fields("data", data, ("mix",), ("workers",))
    required, optional = ("source", "pp"), ("weight",)
  else:
    required, optional = ("source", "pp"), ("workers",)
  _whole("data.workers", data.get("workers", 0), 0)
  for field, entry in inputs.entries(data).items():
    _check_fields(field, entry, required, optional)
    _check("data.sources", f"{field}.source", entry["source"])


def check_tokenizers(specs: Mapping[str, Any]) -> None:
  """Checks `config.tokenizers`: {name: {kind, source, ...}}.

  Raises:
    InputError: unknown or missing field, kind or source.
  """
  known = set(inspect.signature(tokenizer_kinds.build).parameters) - {"texts"}
  for name, spec in specs.items():
    field = f"tokenizers.{name}"
    _check_fields(field, spec, ("kind",), (*(known - {"kind"}), "source"))
    if spec["kind"] not in tokenizer_kinds.KINDS:
      raise errors.unknown(
        f"config.{field}.kind", spec["kind"], tokenizer_kinds.KINDS
      )
    if spec.get("source") is not None:
      _check("data.sources", f"{field}.source", spec["source"])


def check_specs(c: Mapping[str, Any]) -> None:
  """Reads every preprocessing spec, before any tokenizer is trained.

  Raises:
    InputError: as `preprocess.parse`.
  """
  names = c["tokenizers"]
  ids = dict(pad_id=0, bos_id=1, eos_id=2, vocab_size=3)
  plain = types.SimpleNamespace(**ids)
  hub = types.SimpleNamespace(
    **ids, left=False, frame=lambda text: framing.Framed([], [])
  )
  stand_ins = {
    name: hub if spec["kind"] == "hub" else plain
    for name, spec in names.items()
  }
  specs = [entry["pp"] for entry in inputs.entries(c["data"]).values()]
  for evaluator in c["evals"].values():
    specs += [v for k, v in evaluator.items() if k == "pp" or k[-3:] == "_pp"]
  for spec in specs:
    if spec is not None:
      preprocess.parse(spec, stand_ins)


def _check_fields(
  field: str,
  given: Mapping[str, Any],
  required: tuple[str, ...],
  optional: tuple[str, ...],
) -> None:
  for key in given:
    if key not in (*required, *optional):
      raise errors.unknown(f"config.{field}", key, (*required, *optional))
  for key in required:
    if key not in given:
      raise errors.InputError(f"config.{field}.{key} is missing; add it.")


def _check(folder: str, field: str, spec: Mapping[str, Any]) -> None:
  if "name" not in spec:
    raise errors.InputError(
      f"config.{field}.name is missing; add the name of a file in "
      f"mmjax/{folder.replace('.', '/')}/."
    )
  load(folder, spec["name"], f"config.{field}.name")
  check(folder, **spec)


def _check_models(field: str, spec: Mapping[str, Any]) -> None:
  _check("models", field, spec)
  for key, value in spec.items():
    if isinstance(value, Mapping) and "name" in value:
      _check_models(f"{field}.{key}", value)


def own(spec: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an evaluator's keywords, without those of the loop."""
  return {k: v for k, v in spec.items() if k != "every"}


def takes(task: str, keyword: str) -> bool:
  """Has the builder of this task such a keyword?"""
  return keyword in inspect.signature(load("tasks", task).build).parameters


def fill_vocab(
  spec: Mapping[str, Any], tokenizers: Mapping[str, Any], field: str = "task"
) -> dict[str, Any]:
  """Replaces every `vocab_size` that is None or a tokenizer's name.

  Args:
    spec: keywords of a task, nested.
    tokenizers: by name. None means the only one.
    field: where spec stands in the config.

  Raises:
    InputError: no such tokenizer, several to choose from, or a number below
      the size of the only tokenizer.
  """
  filled = {}
  for key, value in spec.items():
    if isinstance(value, Mapping):
      value = fill_vocab(value, tokenizers, f"{field}.{key}")
    elif key == "vocab_size":
      value = _vocab(value, tokenizers, f"config.{field}.vocab_size")
    filled[key] = value
  return filled


def _vocab(value: Any, tokenizers: Mapping[str, Any], field: str) -> int:
  if value is None and len(tokenizers) == 1:
    (value,) = tokenizers
  if isinstance(value, int):
    sizes = [t.vocab_size for t in tokenizers.values()]
    if len(sizes) == 1 and value < sizes[0]:
      raise errors.InputError(
        f"{field} = {value}: the tokenizer has {sizes[0]} ids; give that, or "
        "None to take it from the tokenizer."
      )
    return value
  if value is None:
    raise errors.InputError(
      f"{field} = None: there are {len(tokenizers)} tokenizers; write the name "
      "of one there."
    )
  if value not in tokenizers:
    raise errors.unknown(field, value, tokenizers)
  return tokenizers[value].vocab_size
