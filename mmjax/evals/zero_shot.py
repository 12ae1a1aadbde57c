"""Zero-shot classification: classes are texts (Radford et al. 2021)."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax import errors
from mmjax.build import build as build_plugin
from mmjax.data import preprocess
from mmjax.evals import ranking
from mmjax.evals.embedding import (
  Embedder,
  Examples,
  image_row,
  read_examples,
  text_row,
)
from mmjax.parallel.rules import Layout
from mmjax.typing import Source, Task

# What the contract tests build it with.
TINY = dict(
  data=dict(name="emoji", split="test", vendors=("noto",)),
  image_pp="decode|resize(8)",
  text_pp="tokenize('words', length=6)",
  label="group",
  templates=("{}", "a picture of {}"),
)


class ZeroShot:
  """A `typing.Evaluator`; see `build` for the arguments."""

  def __init__(
    self,
    source: Source,
    task: Task,
    layout: Layout,
    image_pp: preprocess.Preprocess,
    text_pp: preprocess.Preprocess,
    label: str,
    classes: Sequence[str] | None = None,
    templates: Sequence[str] = ("{}",),
    batch_size: int = 256,
    ks: Sequence[int] = (1, 5),
    seed: int = 0,
  ):
    for template in templates:
      if template.count("{}") != 1:
        raise errors.InputError(
          f"evals.zero_shot templates: {template!r} must have one place for "
          "the class, as 'a picture of {}.' has."
        )
    if not templates or (classes is not None and not classes):
      raise errors.InputError(
        "evals.zero_shot: no templates or no classes; give at least one."
      )
    if classes is not None and len(set(classes)) < len(classes):
      raise errors.InputError(
        "evals.zero_shot classes: a name occurs twice, so that one text would "
        "stand for two classes; tell them apart."
      )
    self._source, self._seed = source, seed
    self._image_pp, self._text_pp = image_pp, text_pp
    self._label, self._classes = label, classes
    self._templates, self._ks = tuple(templates), ranking.check_ks(ks)
    self._image = Embedder(task.predict["image"], layout, batch_size)
    self._text = Embedder(task.predict["text"], layout, batch_size)

  @functools.cached_property
  def _data(self) -> tuple[list[str], np.ndarray, Examples]:
    """Returns the class names, the class number of each example, and more."""
    found = read_examples(
      self._source,
      self._image_pp,
      self._seed,
      {"evals.zero_shot label": self._label},
      field="evals.zero_shot data",
    )
    values = found.columns[self._label]
    if self._classes is None:
      names = sorted({str(v) for v in values})
      labels = np.array([names.index(str(v)) for v in values])
      names = [n.replace("-", " ").replace("_", " ") for n in names]
      return names, labels, found
    names = list(self._classes)
    return names, np.array([self._number(v, names) for v in values]), found

  def _number(self, value: Any, names: list[str]) -> int:
    if isinstance(value, (int, np.integer)):
      if 0 <= value < len(names):
        return int(value)
      raise errors.InputError(
        f"evals.zero_shot classes: there are {len(names)}, but an example has "
        f"{self._label} = {value}; give all classes, in order."
      )
    if value not in names:
      raise errors.unknown(f"evals.zero_shot {self._label}", value, names)
    return names.index(value)

  def run(self, variables: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics that `build` names."""
    names, labels, examples = self._data
    weights_CD = self._weights(variables, names)
    row = image_row(self._source, self._image_pp, self._seed, examples.numbers)
    image_ND = self._image(variables, len(labels), row)
    scores_NC = image_ND @ weights_CD.T
    right_NC = labels[:, None] == np.arange(len(names))
    hits_NK = ranking.expected_hits(
      scores_NC, right_NC, self._ks, ranking.TOLERANCE
    )
    found = {}
    for k, hits in zip(self._ks, hits_NK.T, strict=True):
      by_class = [hits[labels == c].mean() for c in np.unique(labels)]
      found[f"top{k}"] = float(hits.mean())
      found[f"mean_per_class/top{k}"] = float(np.mean(by_class))
      found[f"chance/top{k}"] = min(k / len(names), 1.0)
    return {**found, **examples.metrics}

  def _weights(
    self, variables: Mapping[str, Any], names: Sequence[str]
  ) -> np.ndarray:
    texts = [t.replace("{}", name) for name in names for t in self._templates]
    row = text_row(texts, self._text_pp, self._seed)
    text_MD = _normalise(self._text(variables, len(texts), row))
    means_CD = text_MD.reshape(len(names), len(self._templates), -1).mean(1)
    return _normalise(means_CD)


def _normalise(x: np.ndarray) -> np.ndarray:
  lengths = np.linalg.norm(x, axis=1, keepdims=True)
  return x / np.maximum(lengths, 1e-12)


def build(
  *,
  task: Task,
  tokenizers: Mapping[str, Any],
  layout: Layout,
  seed: int = 0,
  data: Mapping[str, Any],
  image_pp: str,
  text_pp: str,
  label: str,
  classes: Sequence[str] | None = None,
  templates: Sequence[str] = ("{}",),
  batch_size: int = 256,
  ks: Sequence[int] = (1, 5),
) -> ZeroShot:
  """Builds the evaluator.

  A class is the mean of the normalised embeddings of its name in each
  template, normalised again; an image belongs to the class of the highest
  cosine. Metrics: `top1`, `top5` (over images), `mean_per_class/top1` (mean
  over the classes that occur) and `chance/top1`; `corrupt_records` too if
  some images cannot be read. Ties count as in `ranking.py`.

  Args:
    task: has predict functions "image" and "text", both to [B D].
    tokenizers: for text_pp.
    layout: where the embeddings are computed.
    seed: of preprocessing, if it draws.
    data: name and keywords of the source; examples have `image` and the field
      that `label` names.
    image_pp: spec applied to an example; makes `image`.
    text_pp: spec applied to {"text": prompt}; makes `text`.
    label: field with the class: a name, or a number into `classes`.
    classes: all class names. None takes the values of the field, sorted, with
      spaces for "-" and "_" in the prompts.
    templates: prompts with {} where the name goes.
    batch_size: of embedding; changes no result.
    ks: list lengths.

  Raises:
    InputError: unknown source, preprocessing, field or class; templates
      without {}; ks or batch_size below 1.
  """
  return ZeroShot(
    build_plugin("data.sources", **data),
    task,
    layout,
    preprocess.parse(image_pp, tokenizers),
    preprocess.parse(text_pp, tokenizers),
    label=label,
    classes=classes,
    templates=templates,
    batch_size=batch_size,
    ks=ks,
    seed=seed,
  )
