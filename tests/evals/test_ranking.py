"""Against all orders of the ties, written out."""

import itertools

import numpy as np
import pytest

from mmjax import errors
from mmjax.evals import ranking


def by_enumeration(scores, right, k):
  """The mean hit over all orders of candidates that sort the scores."""
  hits = []
  for order in itertools.permutations(range(len(scores))):
    ranked = [scores[i] for i in order]
    if ranked == sorted(ranked, reverse=True):
      hits.append(any(right[i] for i in order[:k]))
  return np.mean(hits)


def test_ties_are_the_mean_over_all_orders():
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 3, (40, 6)).astype(float)
  right = rng.random((40, 6)) < 0.3
  right[:, 0] |= ~right.any(1)
  got = ranking.expected_hits(scores, right, (1, 2, 3, 6, 9))
  want = [
    [by_enumeration(list(s), r, k) for k in (1, 2, 3, 6, 9)]
    for s, r in zip(scores, right, strict=True)
  ]
  np.testing.assert_allclose(got, want, atol=1e-12)
  assert ((got > 0) & (got < 1)).any()


def test_by_hand():
  scores = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [5.0, 5.0, 1.0]])
  right = np.array([[1, 0, 0], [0, 0, 1], [1, 0, 0]], bool)
  np.testing.assert_allclose(
    ranking.expected_hits(scores, right, (1, 2, 3)),
    [[1, 1, 1], [0, 0, 1], [0.5, 1, 1]],
  )


def test_noise_below_the_tolerance_breaks_no_tie():
  scores = np.array([[0.5, 0.5 + 1e-7, 0.5 - 1e-7, 0.1]])
  right = np.array([[True, False, False, False]])
  tolerant = ranking.expected_hits(scores, right, (1, 2), ranking.TOLERANCE)
  np.testing.assert_allclose(tolerant, [[1 / 3, 2 / 3]])
  np.testing.assert_allclose(
    ranking.expected_hits(scores, right, (1, 2)), [[0, 1]]
  )


def test_not_a_number_never_helps():
  nan = np.nan
  scores = np.array([[nan, 0.0, 1.0], [1.0, nan, 0.0], [nan, nan, nan]])
  right = np.array([[True, False, False]] * 3)
  np.testing.assert_allclose(
    ranking.expected_hits(scores, right, (1, 2))[:2], [[0, 0], [0, 1]]
  )
  assert ranking.expected_hits(scores, right, (1, 2))[2].max() == 0


TEXTS = [["a", "b"], ["b", "c", "c"], ["d"]]


def test_pairs():
  shared = ranking.pair(TEXTS)
  assert shared.texts == ["a", "b", "c", "d"]
  assert [list(x) for x in shared.of_image] == [[0, 1], [1, 2], [3]]
  assert [list(x) for x in shared.of_text] == [[0], [0, 1], [1], [2]]
  own = ranking.pair(TEXTS, share=False)
  assert own.texts == ["a", "b", "b", "c", "c", "d"]
  assert [list(x) for x in own.of_text] == [[0], [0], [1], [1], [1], [2]]
  with pytest.raises(errors.InputError, match="example 1 has no texts"):
    ranking.pair([["a"], []])


def brute(scores, right, k):
  """R@k without ties, by sorting."""
  hits = []
  for row, wanted in zip(scores, right, strict=True):
    top = sorted(range(len(row)), key=lambda i: -row[i])[:k]
    hits.append(bool(set(top) & {int(w) for w in wanted}))
  return np.mean(hits)


def test_report_against_sorting_and_in_groups():
  rng = np.random.default_rng(1)
  texts = [[str(i), str(i + 100)] for i in range(20)]
  pairs = ranking.pair(texts)
  scores = rng.normal(size=(20, 40))

  def to_text(images, texts):
    return scores[np.ix_(images, texts)]

  def to_image(texts, images):
    return scores[np.ix_(images, texts)].T

  got = ranking.report(pairs, None, (1, 5), to_text, to_image)
  for k in (1, 5):
    assert got[f"image_to_text/R@{k}"] == pytest.approx(
      brute(scores, pairs.of_image, k)
    )
    assert got[f"text_to_image/R@{k}"] == pytest.approx(
      brute(scores.T, pairs.of_text, k)
    )
  # Two of 40 texts are right, so 1 - (38/40)(37/39)... for five.
  miss = np.prod([(38 - j) / (40 - j) for j in range(5)])
  assert got["chance/image_to_text/R@5"] == pytest.approx(1 - miss)
  assert got["chance/text_to_image/R@5"] == pytest.approx(5 / 20)
  assert got["chance/R@5"] == pytest.approx(max(1 - miss, 5 / 20))

  groups = ["x"] * 5 + ["y"] * 15
  got = ranking.report(pairs, groups, (1,), to_text, to_image)
  x = brute(scores[:5, :10], pairs.of_image[:5], 1)
  y = brute(scores[5:, 10:], [p - 10 for p in pairs.of_image[5:]], 1)
  assert got["image_to_text/R@1/x"] == pytest.approx(x)
  assert got["image_to_text/R@1/y"] == pytest.approx(y)
  assert got["image_to_text/R@1"] == pytest.approx((x + y) / 2)


def test_one_score_for_all_is_chance():
  pairs = ranking.pair([["a", "b"], ["c"], ["d", "a"]])

  def flat(queries, candidates):
    return np.zeros((len(queries), len(candidates)))

  got = ranking.report(pairs, None, (1, 2, 3), flat, flat)
  for way in ("image_to_text", "text_to_image"):
    for k in (1, 2, 3):
      name = f"{way}/R@{k}"
      assert got[name] == pytest.approx(got[f"chance/{name}"])


def test_chunks_change_nothing():
  scores = np.random.default_rng(2).integers(0, 5, (30, 30)).astype(float)
  right = [np.array([i]) for i in range(30)]
  everyone = np.arange(30)

  def score(queries, candidates):
    return scores[np.ix_(queries, candidates)]

  values = [
    ranking.recall(score, everyone, everyone, right, (1, 5), 0.0, chunk)
    for chunk in (1, 7, 1024)
  ]
  np.testing.assert_allclose(values[0], values[2])
  np.testing.assert_allclose(values[1], values[2])


@pytest.mark.parametrize("ks", [(), (0,), (1, 2.5)])
def test_bad_ks(ks):
  with pytest.raises(errors.InputError, match="ks"):
    ranking.check_ks(ks)
