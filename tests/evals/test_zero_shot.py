"""Accuracy of dictated embeddings, against the protocol written out."""

import numpy as np
import pytest

from mmjax import errors
from mmjax.evals import zero_shot

D = 4
LABELS = [0, 0, 0, 1, 1, 2, 2, 2, 2]


@pytest.fixture
def case(house):
  rng = np.random.default_rng(0)
  image = rng.normal(size=(len(LABELS), D)).astype(np.float32)
  # Texts spell "<class><template>": 0, 1, 2 and 01, 11, 21 with two templates.
  texts = rng.normal(size=(30, D)).astype(np.float32)
  examples = [
    {"image": x, "label": c, "kind": "012"[c]}
    for x, c in zip(image, LABELS, strict=True)
  ]

  def make(axes=None, **keywords):
    return zero_shot.ZeroShot(
      house.ListSource(examples),
      house.task,
      house.layout(axes),
      house.image_pp,
      house.text_pp,
      **{"label": "kind", "ks": (1, 2), **keywords},
    )

  return make, {"matrix": np.eye(D, dtype=np.float32), "texts": texts}, image


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_prompt_ensemble(case):
  make, variables, image = case
  got = make(templates=("{}", "{}5", "{}7")).run(variables)
  texts = variables["texts"]
  weights = unit(
    np.stack(
      [
        (unit(texts[c]) + unit(texts[10 * c + 5]) + unit(texts[10 * c + 7])) / 3
        for c in range(3)
      ]
    )
  )
  order = np.argsort(-image @ weights.T, axis=1)
  labels = np.array(LABELS)
  hit = order[:, 0] == labels
  assert got["top1"] == pytest.approx(hit.mean())
  assert got["top2"] == pytest.approx(
    (order[:, :2] == labels[:, None]).any(1).mean()
  )
  assert got["mean_per_class/top1"] == pytest.approx(
    np.mean([hit[labels == c].mean() for c in range(3)])
  )
  assert got["chance/top1"] == pytest.approx(1 / 3)
  assert got["top1"] != got["mean_per_class/top1"]


def test_an_ensemble_is_no_mean_of_raw_embeddings(case):
  # Negative control: a long embedding must not outvote the others.
  make, variables, _ = case
  long = {**variables, "texts": variables["texts"].copy()}
  long["texts"][5] *= 100
  templates = ("{}", "{}5")
  assert make(templates=templates).run(variables) == pytest.approx(
    make(templates=templates).run(long)
  )


def test_classes_by_list_field_or_number(case):
  make, variables, _ = case
  want = make().run(variables)
  assert make(classes=["2", "0", "1"]).run(variables) == want
  assert make(classes=["0", "1", "2"], label="label").run(variables) == want
  assert make({"data": 1}, batch_size=2).run(variables) == want


def test_corrupt_records_are_left_out_and_counted(house):
  rng = np.random.default_rng(0)
  examples = [
    {"image": x, "kind": "012"[i % 3]}
    for i, x in enumerate(rng.normal(size=(120, D)).astype(np.float32))
  ]
  variables = {
    "matrix": np.eye(D, dtype=np.float32),
    "texts": rng.normal(size=(30, D)).astype(np.float32),
  }

  def run(source):
    return zero_shot.ZeroShot(
      source,
      house.task,
      house.layout(),
      house.image_pp,
      house.text_pp,
      label="kind",
      ks=(1,),
    ).run(variables)

  got = run(house.Damaged(examples, [7]))
  assert got.pop("corrupt_records") == 1.0
  assert got == run(house.ListSource(examples[:7] + examples[8:]))
  with pytest.raises(errors.DataError, match=r"zero_shot data .*numbers 7, 9"):
    run(house.Damaged(examples, [7, 9]))


@pytest.mark.parametrize(
  ("keywords", "word"),
  [
    ({"templates": ("a picture",)}, "one place for the class"),
    ({"templates": ()}, "at least one"),
    ({"classes": ["a", "a"]}, "twice"),
    ({"classes": ["0", "1"]}, "'2'"),
    ({"classes": ["0", "1"], "label": "label"}, "there are 2"),
    ({"label": "kin"}, "Did you mean 'kind'"),
  ],
)
def test_bad_input(case, keywords, word):
  make, variables, _ = case
  with pytest.raises(errors.InputError) as error:
    make(**keywords).run(variables)
  assert word in str(error.value)
