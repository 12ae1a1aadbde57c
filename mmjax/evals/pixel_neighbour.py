"""Retrieval by raw pixels and words alone: the baseline to print beside.

It learns nothing and ignores the variables. Images are compared by Euclidean
distance of pixels, and the training set leads from images to texts. Two
protocols, for two questions:

  vendor (known concepts, unknown drawings; every test text occurs in
    training): an image and a text are as near as the image and the nearest
    training image with that text. Both ways.
  concept (concepts never seen): text to image: the training texts nearest to
    the query by tf-idf over words lead to their training images; test images
    are ranked by their distance to the nearest of these. Image to text: the
    nearest training image leads to its texts; test texts are ranked by tf-idf
    cosine with these. A query that shares no word with training is a tie of
    all, that is, chance.

tf-idf: term counts times ln((1 + n) / (1 + df)) + 1 with n, df of the training
texts, rows of length 1, words in lower case; words unknown to training are
left out.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from mmjax import errors
from mmjax.build import build as build_plugin
from mmjax.data import preprocess
from mmjax.evals import ranking
from mmjax.evals.embedding import Examples
from mmjax.evals.retrieval import Data, read
from mmjax.parallel.rules import Layout
from mmjax.typing import Source, Task

PROTOCOLS = ("concept", "vendor")

# What the contract tests build it with.
TINY = dict(
  train=dict(name="emoji", split="dev", fold="dev", vendors=("noto",)),
  data=dict(name="emoji", split="test", vendors=("noto",)),
  protocol="concept",
  image_pp="decode|resize(8)",
)


class PixelNeighbour:
  """A `typing.Evaluator`; see `build` for the arguments."""

  def __init__(
    self,
    train: Source,
    source: Source,
    image_pp: preprocess.Preprocess,
    protocol: str,
    ks: Sequence[int] = (1, 5, 10),
    average_over: str | None = None,
    share_texts: bool = True,
    seed: int = 0,
  ):
    if protocol not in PROTOCOLS:
      raise errors.unknown(
        "evals.pixel_neighbour protocol", protocol, PROTOCOLS
      )
    self._train, self._source, self._seed = train, source, seed
    self._image_pp, self._protocol = image_pp, protocol
    self._ks = ranking.check_ks(ks)
    self._average_over, self._share_texts = average_over, share_texts

  def run(self, variables: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics that `ranking.report` names.

    `corrupt_records`, if there are any, counts those of both sources.
    """
    del variables
    return dict(self._result)

  @functools.cached_property
  def _result(self) -> dict[str, float]:
    known, _, train = self._read(
      self._train, None, True, field="evals.pixel_neighbour train"
    )
    pairs, groups, test = self._read(
      self._source, self._average_over, self._share_texts
    )
    pixels_ND, pixels_RD = _pixels(test), _pixels(train)
    near_NR = -distances(pixels_ND, pixels_RD)
    if self._protocol == "vendor":
      numbers = {text: i for i, text in enumerate(known.texts)}
      guides = [
        known.of_text[numbers[t]] if t in numbers else np.array([], int)
        for t in pairs.texts
      ]
      to_text = functools.partial(_by_guides, near_NR, guides)
    else:
      cosine_MU = tfidf_cosine(pairs.texts, known.texts)
      guides = [_images_of_nearest(row, known) for row in cosine_MU]
      nearest = [known.of_image[r] for r in near_NR.argmax(axis=1)]

      def to_text(images, texts):
        return np.stack(
          [cosine_MU[np.ix_(texts, nearest[i])].max(axis=1) for i in images]
        )

    found = ranking.report(
      pairs,
      groups,
      self._ks,
      to_text,
      lambda texts, images: _by_guides(near_NR, guides, images, texts).T,
    )
    corrupt = sum(x.metrics.get("corrupt_records", 0.0) for x in (train, test))
    return {**found, "corrupt_records": corrupt} if corrupt else found

  def _read(self, source: Source, *arguments: Any, **keywords: Any) -> Data:
    return read(
      source,
      self._image_pp,
      self._seed,
      *arguments,
      keep_images=True,
      **keywords,
    )


def _pixels(examples: Examples) -> np.ndarray:
  rows = [image.reshape(-1) for image in examples.images]
  if len({len(r) for r in rows}) > 1:
    raise errors.InputError(
      "evals.pixel_neighbour image_pp: images differ in size; add resize(32)."
    )
  return np.stack(rows)


def _by_guides(
  near_NR: np.ndarray,
  guides: Sequence[np.ndarray],
  images: np.ndarray,
  texts: np.ndarray,
) -> np.ndarray:
  """Returns [images texts]: nearness to the nearest guide of each text."""
  scores = np.full((len(images), len(texts)), -np.inf)
  for column, text in enumerate(texts):
    if len(guides[text]):
      scores[:, column] = near_NR[np.ix_(images, guides[text])].max(axis=1)
  return scores


def _images_of_nearest(
  cosine_U: np.ndarray, known: ranking.Pairs
) -> np.ndarray:
  best = cosine_U.max()
  if best <= 0:
    return np.array([], int)
  texts = np.flatnonzero(cosine_U == best)
  return np.unique(np.concatenate([known.of_text[t] for t in texts]))


def distances(a_ND: np.ndarray, b_RD: np.ndarray) -> np.ndarray:
  """Returns squared Euclidean distances [N R] of rows of uint8 pixels.

  In float64, where sums of squares of integers are exact: equal images are at
  distance 0, and ties are ties.
  """
  a_ND, b_RD = a_ND.astype(np.float64), b_RD.astype(np.float64)
  squares = np.square(a_ND).sum(1)[:, None] + np.square(b_RD).sum(1)[None]
  return squares - 2 * a_ND @ b_RD.T


def tfidf_cosine(queries: Sequence[str], known: Sequence[str]) -> np.ndarray:
  """Returns cosines [queries known] of tf-idf vectors; see the module."""
  words: dict[str, int] = {}
  for text in known:
    for word in _words(text):
      words.setdefault(word, len(words))

  width = max(len(words), 1)

  def counts(texts: Sequence[str]) -> sparse.csr_array:
    found = [
      (i, words[w])
      for i, t in enumerate(texts)
      for w in _words(t)
      if w in words
    ]
    rows, columns = np.array(found, int).reshape(-1, 2).T
    shape = (len(texts), width)
    # Doubles are summed: these are counts.
    return sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)

  known_counts = counts(known)
  frequency = np.bincount(known_counts.indices, minlength=width)
  idf = np.log((1 + len(known)) / (1 + frequency)) + 1

  def vectors(count: sparse.csr_array) -> sparse.csr_array:
    weighted = count * idf[None]
    lengths = np.sqrt(np.asarray((weighted * weighted).sum(axis=1))).reshape(-1)
    return sparse.csr_array(weighted / np.maximum(lengths, 1e-12)[:, None])

  # Rounded, for one text given twice must tie to the last bit.
  cosines = vectors(counts(queries)) @ vectors(known_counts).T
  return np.round(cosines.toarray(), 12)


def _words(text: str) -> list[str]:
  return re.findall(r"\w+", text.lower())


def build(
  *,
  task: Task,
  tokenizers: Mapping[str, Any],
  layout: Layout,
  seed: int = 0,
  train: Mapping[str, Any],
  data: Mapping[str, Any],
  protocol: str,
  image_pp: str = "decode|resize(32)",
  ks: Sequence[int] = (1, 5, 10),
  average_over: str | None = None,
  share_texts: bool = True,
) -> PixelNeighbour:
  """Builds the baseline; its metrics are those of `retrieval`.

  Computed once, on the host, with a matrix of test times training images.

  Args:
    task: ignored.
    tokenizers: for image_pp, which hardly needs any.
    layout: ignored.
    seed: of preprocessing, if it draws.
    train: name and keywords of the source that was trained on.
    data: name and keywords of the test source, as that of `retrieval`.
    protocol: "concept" or "vendor", by what the test set holds out.
    image_pp: spec applied to an example; makes the `image` to compare.
    ks, average_over, share_texts: as in `retrieval`.

  Raises:
    InputError: unknown source, preprocessing, protocol or field; images that
      differ in size.
  """
  del task, layout
  return PixelNeighbour(
    build_plugin("data.sources", **train),
    build_plugin("data.sources", **data),
    preprocess.parse(image_pp, tokenizers),
    protocol,
    ks=ks,
    average_over=average_over,
    share_texts=share_texts,
    seed=seed,
  )
