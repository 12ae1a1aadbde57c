"""Retrieval between images and texts: R@k both ways."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmjax import errors
from mmjax.build import build as build_plugin
from mmjax.data import preprocess
from mmjax.evals import ranking
from mmjax.evals.embedding import Embedder, image_row, text_row
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
  def _data(self) -> tuple[ranking.Pairs, list[str] | None]:
    """Returns the pairs of images and texts, and the group of each image."""
    return read(self._source, self._average_over, self._share_texts)

  def run(self, variables: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics that `ranking.report` names."""
    pairs, groups = self._data
    image_ND, text_MD = self._embed(variables)
    return ranking.report(
      pairs,
      groups,
      self._ks,
      lambda images, texts: image_ND[images] @ text_MD[texts].T,
      lambda texts, images: text_MD[texts] @ image_ND[images].T,
      ranking.TOLERANCE,
    )

  def gallery(
    self, variables: Mapping[str, Any], n: int = 8
  ) -> list[GalleryRow]:
    """Searches images for n texts, the top five for each.

    The queries are drawn by the evaluator's seed before any score is seen,
    from all groups in turn, and are the first texts of their images. A query
    is ranked within its group, as in the metrics.
    """
    pairs, groups = self._data
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
    pairs, _ = self._data
    row = image_row(self._source, self._image_pp, self._seed)
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
    texts = self._data[0].texts
    return (
      self._image(
        variables,
        len(self._source),
        image_row(self._source, self._image_pp, self._seed),
      ),
      self._text(
        variables, len(texts), text_row(texts, self._text_pp, self._seed)
      ),
    )


def read(
  source: Source, average_over: str | None, share_texts: bool
) -> tuple[ranking.Pairs, list[str] | None]:
  """Reads the texts, and the group, of all examples of a source.

  Raises:
    InputError: no examples, or one without `texts` or the field that
      `average_over` names.
  """
  if not len(source):
    raise errors.InputError(
      f"evals data = {source.name}: there are no examples; choose a split "
      "that has some."
    )
  texts, groups = [], []
  for i in range(len(source)):
    example = source[i]
    for field, key in (("texts", "texts"), ("average_over", average_over)):
      if key is not None and key not in example:
        raise errors.unknown(f"evals {field}", key, example)
    texts.append(list(example["texts"]))
    if average_over is not None:
      groups.append(str(example[average_over]))
  return ranking.pair(texts, share_texts), groups or None


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
