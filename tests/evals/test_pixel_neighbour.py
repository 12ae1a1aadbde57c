"""The baseline by hand and against loops."""

import numpy as np
import pytest

from mmjax import errors
from mmjax.evals import pixel_neighbour, ranking


def image_of(*values):
  return np.array(values, np.uint8).reshape(1, -1, 1)


def source(house, *rows):
  return house.ListSource(
    [{"image": image_of(*pixels), "texts": list(t)} for pixels, *t in rows]
  )


def run(house, train, test, protocol, **keywords):
  return pixel_neighbour.PixelNeighbour(
    train, test, house.image_pp, protocol, **{"ks": (1, 2), **keywords}
  ).run({})


def test_vendor_by_hand(house):
  # Two vendors drew sun and moon; the test drawings are nearer to their own
  # but the second moon, which looks like a sun.
  train = source(
    house,
    ((250, 10), "sun"),
    ((255, 30), "sun"),
    ((10, 240), "moon"),
    ((90, 90), "star"),
  )
  test = source(
    house, ((240, 20), "sun"), ((200, 60), "moon"), ((80, 100), "star")
  )
  got = run(house, train, test, "vendor")
  # Images: sun and star right, moon is read as sun. Squared distances of the
  # moon: sun 3925, moon 68500, star 13000: third.
  assert got["image_to_text/R@1"] == pytest.approx(2 / 3)
  assert got["image_to_text/R@2"] == pytest.approx(2 / 3)
  # Texts: "moon" is nearest to the star (24500), then the moon (68500).
  assert got["text_to_image/R@1"] == pytest.approx(2 / 3)
  assert got["text_to_image/R@2"] == pytest.approx(1.0)


def test_concept_by_hand(house):
  train = source(
    house, ((250, 10), "red car"), ((10, 250), "blue sea"), ((99, 99), "tree")
  )
  test = source(house, ((240, 30), "fast car"), ((30, 220), "deep sea"))
  got = run(house, train, test, "concept")
  assert got["image_to_text/R@1"] == got["text_to_image/R@1"] == 1.0
  # Negative control: words that lead nowhere give chance.
  test = source(house, ((240, 30), "xyz"), ((30, 220), "abc"))
  got = run(house, train, test, "concept")
  assert got["image_to_text/R@1"] == got["text_to_image/R@1"] == 0.5


def by_loops(train, test, ks):
  """The concept protocol with loops; scores both ways."""
  texts = list(dict.fromkeys(t for e in test.examples for t in e["texts"]))
  known = list(dict.fromkeys(t for e in train.examples for t in e["texts"]))
  df = {}
  for text in known:
    for word in set(text.split()):
      df[word] = df.get(word, 0) + 1

  def vector(text):
    v = {}
    for word in text.split():
      if word in df:
        idf = np.log((1 + len(known)) / (1 + df[word])) + 1
        v[word] = v.get(word, 0) + idf
    return v

  def cosine(a, b):
    a, b = vector(a), vector(b)
    dot = sum(a[w] * b.get(w, 0) for w in a)
    lengths = [np.sqrt(sum(x * x for x in v.values())) for v in (a, b)]
    return round(dot / max(lengths[0] * lengths[1], 1e-12), 9)

  def distance(a, b):
    a, b = a["image"].astype(int), b["image"].astype(int)
    return int(((a - b) ** 2).sum())

  to_image = np.zeros((len(texts), len(test)))
  for j, text in enumerate(texts):
    best = max(cosine(text, k) for k in known)
    if best > 0:
      near = {k for k in known if cosine(text, k) == best}
      guides = [e for e in train.examples if near & set(e["texts"])]
      to_image[j] = [
        -min(distance(e, g) for g in guides) for e in test.examples
      ]
  to_text = np.zeros((len(test), len(texts)))
  for i, example in enumerate(test.examples):
    guide = min(train.examples, key=lambda g: distance(example, g))
    to_text[i] = [
      max(cosine(text, t) for t in guide["texts"]) for text in texts
    ]
  return texts, to_image, to_text


def test_concept_against_loops(house):
  rng = np.random.default_rng(0)
  words = np.array(list("abcdefgh"))

  def rows(count):
    return source(
      house,
      *(
        (
          tuple(rng.integers(0, 256, 3)),
          *(" ".join(rng.choice(words, 3)) for _ in range(2)),
        )
        for _ in range(count)
      ),
    )

  train, test = rows(30), rows(12)
  got = run(house, train, test, "concept", ks=(1, 5))
  texts, to_image, to_text = by_loops(train, test, (1, 5))
  right = np.array([[t in e["texts"] for t in texts] for e in test.examples])
  for way, scores, wanted in (
    ("image_to_text", to_text, right),
    ("text_to_image", to_image, right.T),
  ):
    want = ranking.expected_hits(scores, wanted, (1, 5)).mean(axis=0)
    for k, value in zip((1, 5), want, strict=True):
      assert got[f"{way}/R@{k}"] == pytest.approx(value), (way, k)


def test_distances_are_exact():
  rng = np.random.default_rng(0)
  a, b = rng.integers(0, 256, (2, 5, 3072)).astype(np.uint8)
  got = pixel_neighbour.distances(a, b)
  want = [
    [int(((x.astype(int) - y.astype(int)) ** 2).sum()) for y in b] for x in a
  ]
  np.testing.assert_array_equal(got, want)
  assert np.diag(pixel_neighbour.distances(a, a)).max() == 0


def test_tfidf_by_hand():
  # "a" is in both known texts, idf 1; "b" in one, idf ln(3 / 2) + 1.
  got = pixel_neighbour.tfidf_cosine(["A, b!", "zzz"], ["a", "a b"])
  idf = np.log(1.5) + 1
  np.testing.assert_allclose(
    got, [[1 / np.hypot(1, idf), 1], [0, 0]], atol=1e-9
  )


@pytest.mark.parametrize("protocol", pixel_neighbour.PROTOCOLS)
def test_corrupt_records_are_left_out_and_counted(house, protocol):
  rng = np.random.default_rng(0)
  rows = [
    (tuple(rng.integers(0, 256, 3)), f"{'abcdefgh'[i % 8]} {i}")
    for i in range(110)
  ]
  whole = source(house, *rows).examples

  def without(i):
    return house.ListSource(whole[:i] + whole[i + 1 :])

  def damaged(*broken):
    return house.Damaged(whole, broken)

  got = run(house, damaged(3), damaged(9), protocol)
  assert got.pop("corrupt_records") == 2.0
  assert got == run(house, without(3), without(9), protocol)
  with pytest.raises(errors.DataError, match=r"neighbour train .*numbers 3, 8"):
    run(house, damaged(3, 8), damaged(), protocol)
  with pytest.raises(errors.DataError, match=r"evals data .*numbers 3, 8"):
    run(house, damaged(), damaged(3, 8), protocol)


def test_bad_input(house):
  train, test = source(house, ((1, 2), "a")), source(house, ((1, 2), "a"))
  with pytest.raises(errors.InputError, match="Did you mean 'concept'"):
    run(house, train, test, "concepts")
  test = source(house, ((1, 2), "a"), ((1, 2, 3), "b"))
  with pytest.raises(errors.InputError, match=r"resize\(32\)"):
    run(house, train, test, "concept")
