import pickle

import numpy as np
import pytest

from mmjax import errors
from mmjax.data import image_ops, preprocess
from mmjax.data.sources import fake


def test_every_modality():
  example = fake.build(image=(20, 24), audio=99, regions=(3, 5))[7]
  image = preprocess.parse("decode")(example, None)["image"]
  assert image.shape == (20, 24, 3)
  assert example["text"] in example["texts"]
  assert example["audio"].shape == (99,)
  assert example["audio"].dtype == example["regions"].dtype == np.float32
  assert example["regions"].shape == (3, 5)
  boxes = example["boxes"]
  assert boxes.shape == (3, 4) and (boxes[:, :2] <= boxes[:, 2:]).all()
  assert 0 <= example["label"] < 10


def test_records_depend_on_index_and_seed_alone():
  a, b = fake.build(), pickle.loads(pickle.dumps(fake.build()))
  other = fake.build(seed=1)
  assert a[3]["image"] == b[3]["image"]
  np.testing.assert_array_equal(a[3]["audio"], b[3]["audio"])
  assert a[3]["image"] != a[4]["image"] and a[3]["image"] != other[3]["image"]
  # Fewer modalities leave the others as they are.
  assert fake.build(modalities=("image",))[3]["image"] == a[3]["image"]


def test_corrupt_records_are_planted():
  source = fake.build(size=1000, corrupt=0.1)
  bad = [i for i in range(1000) if source.is_corrupt(i)]
  assert 70 < len(bad) < 130
  decode = image_ops.decode()
  with pytest.raises(image_ops.CorruptRecord):
    decode(source[bad[0]], None)
  good = next(i for i in range(1000) if i not in bad)
  decode(source[good], None)


def test_the_end():
  source = fake.build(size=3)
  assert len(source) == len(list(source)) == 3


def test_bad_input():
  with pytest.raises(errors.InputError, match="Did you mean 'image'"):
    fake.build(modalities=("imag",))
  with pytest.raises(errors.InputError, match="size = 0"):
    fake.build(size=0)
