"""Retrieval between images and texts: R@k both ways."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmjax.build import build as build_plugin
from mmjax.data import preprocess
from mmjax.evals import ranking
from mmjax.evals.embedding import (
  Embedder,
  Examples,
  Row,
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
  average_over="vendor",
)


class GalleryRow(NamedTuple):
  """A query text and the images found for it, best first."""

  query: str
  images: list[np.ndarray]  # uint8 [Y X C]
  hits: list[bool]
  captions: list[str]
  scores: list[float]
  group: str


class Retrieval:
  """A `typing.Evaluator` with a gallery; see `build` for the arguments."""

  def __init__(
    self,
    source: Source,
    task: Task,
    layout: Layout,
    image_pp: preprocess.Preprocess,
    text_pp: preprocess.Preprocess,
    batch_size: int = 256,
    ks: Sequence[int] = (1, 5, 10),
    average_over: str | None = None,
    share_texts: bool = True,
    seed: int = 0,
  ):
    self._source, self._seed = source, seed
    self._image_pp, self._text_pp = image_pp, text_pp
    self._ks = ranking.check_ks(ks)
    self._average_over, self._share_texts = average_over, share_texts
    self._image = Embedder(task.predict["image"], layout, batch_size)
    self._text = Embedder(task.predict["text"], layout, batch_size)

  @functools.cached_property
  def _data(self) -> "Data":
    return read(
      self._source,
      self._image_pp,
      self._seed,
      self._average_over,
      self._share_texts,
    )

  def run(self, variables: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics that `ranking.report` names.

    `corrupt_records` is among them if some images cannot be read.
    """
    pairs, groups, examples = self._data
    image_ND, text_MD = self._embed(variables)
    found = ranking.report(
      pairs,
      groups,
      self._ks,
      lambda images, texts: image_ND[images] @ text_MD[texts].T,
      lambda texts, images: text_MD[texts] @ image_ND[images].T,
      ranking.TOLERANCE,
    )
    return {**found, **examples.metrics}

  def gallery(
    self, variables: Mapping[str, Any], n: int = 8
  ) -> list[GalleryRow]:
    """Searches images for n texts, the top five for each.

    The queries are drawn by the evaluator's seed before any score is seen,
    from all groups in turn, and are the first texts of their images. A query
    is ranked within its group, as in the metrics.
    """
    pairs, groups, _ = self._data
    image_ND, text_MD = self._embed(variables)
    rng = np.random.default_rng(self._seed)
    parts = list(ranking.parts(pairs, groups).items())
    shuffled = [rng.permutation(images) for _, (images, _) in parts]
    rows, seen = [], set()
    # Vendors draw the same concepts: a text is asked for only once.
    for i in range(max(map(len, shuffled))):
      for (group, (images, _)), order in zip(parts, shuffled, strict=True):
        if i >= len(order) or len(rows) == n:
          continue
        text = int(pairs.of_image[order[i]][0])
        if text in seen:
          continue
        seen.add(text)
        scores = image_ND[images] @ text_MD[text]
        top = np.argsort(-scores, kind="stable")[:5]
        rows.append(self._row(text, images[top], scores[top], group))
    return rows

  def _row(
    self, text: int, images: np.ndarray, scores: np.ndarray, group: str
  ) -> GalleryRow:
    pairs, row = self._data.pairs, self._image_row()
    return GalleryRow(
      query=pairs.texts[text],
      images=[_as_uint8(row(int(i))["image"]) for i in images],
      hits=[bool(i in pairs.of_text[text]) for i in images],
      captions=[pairs.texts[pairs.of_image[i][0]] for i in images],
      scores=[float(s) for s in scores],
      group=group,
    )

  def _embed(
    self, variables: Mapping[str, Any]
  ) -> tuple[np.ndarray, np.ndarray]:
    texts = self._data.pairs.texts
    return (
      self._image(
        variables, len(self._data.examples.numbers), self._image_row()
      ),
      self._text(
        variables, len(texts), text_row(texts, self._text_pp, self._seed)
      ),
    )

  def _image_row(self) -> Callable[[int], Row]:
    numbers = self._data.examples.numbers
    return image_row(self._source, self._image_pp, self._seed, numbers)


class Data(NamedTuple):
  """Images and their texts, the group of each image, and what was read."""

  pairs: ranking.Pairs
  groups: list[str] | None
  examples: Examples


def read(
  source: Source,
  image_pp: preprocess.Preprocess,
  seed: int,
  average_over: str | None,
  share_texts: bool,
  *,
  field: str = "evals data",
  keep_images: bool = False,
) -> Data:
  """Reads the texts, and the group, of a source's examples.

  Corrupt ones are left out, as `embedding.read_examples` says.

  Args:
    source: examples with `image` and `texts`.
    image_pp, seed, field, keep_images: see `embedding.read_examples`.
    average_over: key of the group, or None.
    share_texts: see `ranking.pair`.

  Raises:
    InputError: no examples, or one without `texts` or the field that
      `average_over` names.
    DataError: more than 1 % of the records are corrupt.
  """
  keys = {"evals texts": "texts"}
  if average_over is not None:
    keys["evals average_over"] = average_over
  examples = read_examples(
    source, image_pp, seed, keys, field=field, keep_images=keep_images
  )
  texts = [list(own) for own in examples.columns["texts"]]
  groups = None
  if average_over is not None:
    groups = [str(g) for g in examples.columns[average_over]]
  return Data(ranking.pair(texts, share_texts), groups, examples)


def _as_uint8(image: np.ndarray) -> np.ndarray:
  if image.dtype == np.uint8:
    return image
  return np.clip((image + 1) * 127.5, 0, 255).round().astype(np.uint8)


def build(
  *,
  task: Task,
  tokenizers: Mapping[str, Any],
  layout: Layout,
  seed: int = 0,
  data: Mapping[str, Any],
  image_pp: str,
  text_pp: str,
  batch_size: int = 256,
  ks: Sequence[int] = (1, 5, 10),
  average_over: str | None = None,
  share_texts: bool = True,
) -> Retrieval:
  """Builds the evaluator.

  An image finds its texts if any of them is among the k best; a text finds
  its image. `ranking.py` says how ties count and what the metrics are called.

  Args:
    task: has predict functions "image" and "text", both to [B D].
    tokenizers: for text_pp.
    layout: where the embeddings are computed.
    seed: of preprocessing, if it draws, and of the gallery's queries.
    data: name and keywords of the source; examples have `image` and `texts`,
      a list of one text or more.
    image_pp: spec applied to an example; makes `image`.
    text_pp: spec applied to {"text": one of the texts}; makes `text`.
    batch_size: of embedding; changes no result.
    ks: list lengths k of R@k.
    average_over: field of the examples, such as "vendor": each value is a
      test set of its own, and metrics are means over them.
    share_texts: equal texts of two images are right for both; False is the
      published protocol of COCO and Flickr30k, right for its own image only.

  Raises:
    InputError: unknown source, preprocessing or field; ks or batch_size
      below 1.
  """
  return Retrieval(
    build_plugin("data.sources", **data),
    task,
    layout,
    preprocess.parse(image_pp, tokenizers),
    preprocess.parse(text_pp, tokenizers),
    batch_size=batch_size,
    ks=ks,
    average_over=average_over,
    share_texts=share_texts,
    seed=seed,
  )
