"""Recall among ranked candidates, with ties; not an evaluator.

R@k is the fraction of queries with a right candidate among the k best. Equal
scores are in no order, so each query counts with the probability that a random
order of its ties puts a right one there. A model that gives one score to all
thus gets exactly chance; it gains nothing from the order of the files. A score
that is not a number counts against the query.

Equal means within a tolerance, for the same input embedded at another place in
a batch differs in the last bits: `TOLERANCE` for cosines in float32, 0 where
scores are exact.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mmjax import errors

# (query numbers, candidate numbers) -> scores [Q G], higher is better.
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]

TOLERANCE = 1e-6


class Pairs(NamedTuple):
  """Which texts belong to which images.

  texts: all candidate texts. of_image: for each image the numbers of its
  texts. of_text: for each text the numbers of its images.
  """

  texts: list[str]
  of_image: list[np.ndarray]
  of_text: list[np.ndarray]


def pair(texts: Sequence[Sequence[str]], share: bool = True) -> Pairs:
  """Numbers the texts of images.

  Args:
    texts: for each image its texts.
    share: equal strings are one text, which belongs to all images that have
      it. Otherwise a text belongs to its own image alone, as the published
      COCO and Flickr30k protocols have it, where its few doubles are misses.

  Raises:
    InputError: an image without a text.
  """
  numbers: dict[object, int] = {}
  names, of_image, of_text = [], [], []
  for i, own in enumerate(texts):
    if not own:
      raise errors.InputError(
        f"evals data: example {i} has no texts; retrieval needs at least one "
        "an image."
      )
    mine = []
    for j, text in enumerate(dict.fromkeys(own) if share else own):
      key = text if share else (i, j)
      if key not in numbers:
        numbers[key] = len(names)
        names.append(text)
        of_text.append([])
      mine.append(numbers[key])
      of_text[numbers[key]].append(i)
    of_image.append(np.array(mine))
  return Pairs(names, of_image, [np.array(x) for x in of_text])


def expected_hits(
  scores_QG: np.ndarray,
  right_QG: np.ndarray,
  ks: Sequence[int],
  tolerance: float = 0.0,
) -> np.ndarray:
  """Returns [Q K], the probability of a right candidate among the k best.

  Args:
    scores_QG: higher is better.
    right_QG: bool, the right candidates; at least one a row.
    ks: list lengths k.
    tolerance: scores no further from the best right one's are its equals.
  """
  worst = np.where(right_QG, -np.inf, np.inf)
  scores_QG = np.where(np.isnan(scores_QG), worst, scores_QG)
  best = np.where(right_QG, scores_QG, -np.inf).max(axis=1, keepdims=True)
  above_QG = scores_QG > best + tolerance
  tied_QG = ~above_QG & (scores_QG >= best - tolerance)
  above = np.sum(above_QG, axis=1)
  tied = np.sum(tied_QG, axis=1)
  return _hits(above, tied, np.sum(tied_QG & right_QG, axis=1), ks)


def _hits(
  above: np.ndarray, tied: np.ndarray, right: np.ndarray, ks: Sequence[int]
) -> np.ndarray:
  """As expected_hits, from counts: `right` of `tied` below `above` others."""
  columns = []
  for k in ks:
    slots = np.clip(k - above, 0, tied)
    miss = np.ones(len(above))
    for j in range(int(slots.max(initial=0))):
      # No right one among j + 1 draws from the ties, without replacement.
      drawn = np.maximum(tied - right - j, 0) / np.maximum(tied - j, 1)
      miss = np.where(j < slots, miss * drawn, miss)
    columns.append(1 - miss)
  return np.stack(columns, axis=1)


def recall(
  score: Score,
  queries: np.ndarray,
  candidates: np.ndarray,
  right: Sequence[np.ndarray],
  ks: Sequence[int],
  tolerance: float = 0.0,
  chunk: int = 1024,
) -> np.ndarray:
  """Returns R@k for each k: [K].

  Args:
    score: scores of some queries and all candidates.
    queries, candidates: their numbers.
    right: for each number of a query, the numbers of its right candidates, of
      which those among `candidates` count.
    ks: list lengths k.
    tolerance: see `expected_hits`.
    chunk: queries at a time; memory is that times the candidates.
  """
  total = np.zeros(len(ks))
  for start in range(0, len(queries), chunk):
    some = queries[start : start + chunk]
    mask = np.stack([np.isin(candidates, right[q]) for q in some])
    scores = score(some, candidates)
    total += expected_hits(scores, mask, ks, tolerance).sum(axis=0)
  return total / len(queries)


def chance(
  queries: np.ndarray,
  candidates: np.ndarray,
  right: Sequence[np.ndarray],
  ks: Sequence[int],
) -> np.ndarray:
  """Returns R@k of a random order, exactly: [K]."""
  counts = np.array([np.isin(right[q], candidates).sum() for q in queries])
  zeros = np.zeros_like(counts)
  return _hits(zeros, zeros + len(candidates), counts, ks).mean(axis=0)


def parts(
  pairs: Pairs, groups: Sequence[str] | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns {group: (its images, their texts)}; one, "", without groups."""
  names = groups or [""] * len(pairs.of_image)
  found = {}
  for group in dict.fromkeys(names):
    images = np.array([i for i, name in enumerate(names) if name == group])
    texts = np.unique(np.concatenate([pairs.of_image[i] for i in images]))
    found[group] = (images, texts)
  return found


def report(
  pairs: Pairs,
  groups: Sequence[str] | None,
  ks: Sequence[int],
  image_to_text: Score,
  text_to_image: Score,
  tolerance: float = 0.0,
) -> dict[str, float]:
  """Returns R@k both ways, and what chance gives.

  Keys: `image_to_text/R@k` and `text_to_image/R@k`, the same below `chance/`,
  and `chance/R@k`, the higher of the two. With groups, queries see the
  candidates of their own group; the metrics are means over groups, and
  `image_to_text/R@k/<group>` is that of one.
  """
  found: dict[str, list[np.ndarray]] = {}
  single: dict[str, float] = {}
  for group, (images, texts) in parts(pairs, groups).items():
    for way, score, queries, candidates, right in (
      ("image_to_text", image_to_text, images, texts, pairs.of_image),
      ("text_to_image", text_to_image, texts, images, pairs.of_text),
    ):
      values = recall(score, queries, candidates, right, ks, tolerance)
      found.setdefault(way, []).append(values)
      found.setdefault(f"chance/{way}", []).append(
        chance(queries, candidates, right, ks)
      )
      for k, value in zip(ks, values, strict=True):
        single[f"{way}/R@{k}/{group}"] = float(value)
  means = {
    f"{way}/R@{k}": float(value)
    for way, values in found.items()
    for k, value in zip(ks, np.mean(values, axis=0), strict=True)
  }
  for k in ks:
    means[f"chance/R@{k}"] = max(
      means[f"chance/{way}/R@{k}"] for way in ("image_to_text", "text_to_image")
    )
  return {**means, **(single if groups else {})}


def check_ks(ks: Sequence[int]) -> tuple[int, ...]:
  """Returns ks as a tuple.

  Raises:
    InputError: none, or one that is not a whole number above 0.
  """
  if not ks or any(not isinstance(k, int) or k < 1 for k in ks):
    raise errors.InputError(
      f"evals ks = {ks!r}: must be whole numbers above 0; (1, 5, 10) is usual."
    )
  return tuple(ks)
