"""R@k of embeddings that are dictated, against sorting."""

import numpy as np
import pytest

from mmjax import errors
from mmjax.evals import retrieval

N, D = 21, 6


@pytest.fixture
def case(house):
  """Returns make(keywords) -> evaluator, its variables and the truth."""
  rng = np.random.default_rng(0)
  image = rng.normal(size=(N, D)).astype(np.float32)
  matrix = np.eye(D, dtype=np.float32)
  # Text 2i and 2i + 1 belong to image i.
  texts = np.repeat(image, 2, axis=0) + 1.5 * rng.normal(size=(2 * N, D))
  examples = [
    {
      "image": image[i],
      "texts": [str(2 * i), str(2 * i + 1)],
      "vendor": "ab"[i % 2],
    }
    for i in range(N)
  ]

  def make(axes=None, **keywords):
    return retrieval.Retrieval(
      house.ListSource(examples),
      house.task,
      house.layout(axes),
      house.image_pp,
      house.text_pp,
      **{"ks": (1, 5), **keywords},
    )

  variables = {"matrix": matrix, "texts": texts.astype(np.float32)}
  return make, variables, image @ texts.T


def brute(scores, right, k):
  top = np.argsort(-scores, axis=1)[:, :k]
  return np.mean(
    [bool(set(t) & set(r)) for t, r in zip(top, right, strict=True)]
  )


def test_against_sorting(case):
  make, variables, scores = case
  got = make().run(variables)
  of_image = [{2 * i, 2 * i + 1} for i in range(N)]
  of_text = [{i // 2} for i in range(2 * N)]
  for k in (1, 5):
    assert got[f"image_to_text/R@{k}"] == pytest.approx(
      brute(scores, of_image, k)
    )
    assert got[f"text_to_image/R@{k}"] == pytest.approx(
      brute(scores.T, of_text, k)
    )
  assert 0 < got["text_to_image/R@1"] < 1
  assert got["chance/text_to_image/R@5"] == pytest.approx(5 / N)


def test_batch_size_and_mesh_change_nothing(case):
  make, variables, _ = case
  want = make(batch_size=64).run(variables)
  assert make(batch_size=1).run(variables) == want
  assert make({"data": 1}, batch_size=5).run(variables) == want
  assert make({"data": 2, "tensor": 4}, batch_size=7).run(variables) == want


def test_groups_are_test_sets_of_their_own(case):
  make, variables, scores = case
  got = make(average_over="vendor").run(variables)
  values = []
  for group in range(2):
    images = range(group, N, 2)
    texts = [t for i in images for t in (2 * i, 2 * i + 1)]
    part = scores[np.ix_(images, texts)]
    right = [{2 * j, 2 * j + 1} for j in range(len(part))]
    values.append(brute(part, right, 1))
    assert got[f"image_to_text/R@1/{'ab'[group]}"] == pytest.approx(values[-1])
  assert got["image_to_text/R@1"] == pytest.approx(np.mean(values))


def test_collapsed_model_is_chance(case):
  make, variables, _ = case
  variables = {k: np.zeros_like(v) for k, v in variables.items()}
  got = make().run(variables)
  for name in ("image_to_text/R@1", "text_to_image/R@5"):
    assert got[name] == pytest.approx(got[f"chance/{name}"])


def test_gallery_shows_what_is_measured(case):
  make, variables, scores = case
  rows = make(average_over="vendor", seed=1).gallery(variables, 4)
  assert [r.group for r in rows] == ["a", "b", "a", "b"]
  assert len({r.query for r in rows}) == 4
  for row in rows:
    text = int(row.query)
    images = np.arange("ab".index(row.group), N, 2)
    best = images[np.argsort(-scores[images, text])][:5]
    assert row.captions == [str(2 * i) for i in best]
    assert row.hits == [i == text // 2 for i in best]
    np.testing.assert_allclose(row.scores, scores[best, text], rtol=1e-4)
    assert all(image.dtype == np.uint8 for image in row.images)
  again = make(average_over="vendor", seed=1).gallery(variables, 4)
  other = make(average_over="vendor", seed=2).gallery(variables, 4)
  queries = [[r.query for r in g] for g in (rows, again, other)]
  assert queries[0] == queries[1] != queries[2]
  assert len(make().gallery(variables, 1000)) == N


def test_a_corrupt_record_is_no_query_and_no_candidate(house):
  rng = np.random.default_rng(3)
  count, bad = 110, 4
  image = rng.normal(size=(count, D)).astype(np.float32)
  texts = (image + rng.normal(size=image.shape)).astype(np.float32)
  # The task's texts spell numbers below 100; the others share text 99.
  examples = [
    {"image": x, "texts": [str(min(i, 99))]} for i, x in enumerate(image)
  ]

  def make(source):
    return retrieval.Retrieval(
      source,
      house.task,
      house.layout(),
      house.image_pp,
      house.text_pp,
      ks=(1, 5),
    )

  variables = {"matrix": np.eye(D, dtype=np.float32), "texts": texts}
  damaged = make(house.Damaged(examples, [bad]))
  rest = make(house.ListSource(examples[:bad] + examples[bad + 1 :]))
  got, want = damaged.run(variables), rest.run(variables)
  assert got.pop("corrupt_records") == 1.0 and "corrupt_records" not in want
  assert got == want
  rows = [x.gallery(variables, 200) for x in (damaged, rest)]
  for one, other in zip(*rows, strict=True):
    assert (one.query, one.hits) == (other.query, other.hits)
    np.testing.assert_array_equal(one.images, other.images)
  with pytest.raises(errors.DataError, match="numbers 4, 5"):
    make(house.Damaged(examples, [4, 5])).run(variables)


def test_queries_do_not_depend_on_the_model(case):
  make, variables, _ = case
  worse = {**variables, "texts": -variables["texts"]}
  queries = [
    [r.query for r in make().gallery(v, 5)] for v in (variables, worse)
  ]
  assert queries[0] == queries[1]


def test_bad_input(case, house):
  make, variables, _ = case
  with pytest.raises(errors.InputError, match="Did you mean 'vendor'"):
    make(average_over="vendors").run(variables)
  empty = make()
  empty._source = house.ListSource([])
  with pytest.raises(errors.InputError, match="no examples"):
    empty.run(variables)
