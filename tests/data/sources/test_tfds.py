import io
import pickle
import sys
from typing import ClassVar

import cv2
import numpy as np
import pytest
import tensorflow_datasets

from mmjax import errors
from mmjax.data import preprocess
from mmjax.data.sources import tfds


class Tiny(tensorflow_datasets.core.GeneratorBasedBuilder):
  """Twelve one-coloured images with captions."""

  VERSION = tensorflow_datasets.core.Version("1.0.0")
  url_infos: ClassVar = {}  # nothing to download, so no checksums to look for

  def _info(self):
    features = tensorflow_datasets.features
    return tensorflow_datasets.core.DatasetInfo(
      builder=self,
      features=features.FeaturesDict(
        {
          "image": features.Image(shape=(None, None, 3)),
          "captions": features.Sequence(features.Text()),
          "title": features.Text(),
          "label": features.ClassLabel(num_classes=5),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(12)}

  def _generate_examples(self, count):
    for i in range(count):
      png = cv2.imencode(".png", np.full((6, 8, 3), i, np.uint8))[1]
      yield (
        i,
        {
          "image": io.BytesIO(png.tobytes()),
          "captions": [f"number {i}", "ü"],
          "title": f"t{i}",
          "label": i % 5,
        },
      )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp("tfds"))
  builder = Tiny(data_dir=folder, file_format="array_record")
  builder.download_and_prepare(file_format="array_record")
  return str(builder.data_dir)


def test_records(path):
  source = tfds.build(path=path, rename={"captions": "texts"})
  assert len(source) == 12
  decode = preprocess.parse("decode")
  seen = set()
  for index in range(12):
    example = source[index]
    assert isinstance(example["image"], bytes)
    number = int(example["title"][1:])
    image = decode(example, None)["image"]
    np.testing.assert_array_equal(image, np.full((6, 8, 3), number))
    assert example["texts"] == [f"number {number}", "ü"]
    assert example["label"] == number % 5
    seen.add(number)
  assert seen == set(range(12))


def test_decoding_by_tfds_and_slices(path):
  source = tfds.build(path=path, split="train[:50%]", decode_images=True)
  assert len(source) == 6
  assert source[0]["image"].shape == (6, 8, 3)


def test_pickle(path):
  source = tfds.build(path=path)
  again = pickle.loads(pickle.dumps(source))
  assert again[4]["title"] == source[4]["title"]


def test_no_tensorflow(path):
  tfds.build(path=path)[0]
  assert "tensorflow" not in sys.modules


def test_bad_input(path, tmp_path):
  with pytest.raises(errors.InputError, match="no dataset_info"):
    tfds.build(path=str(tmp_path))
  with pytest.raises(errors.InputError, match="Did you mean 'train'"):
    tfds.build(path=path, split="trian")
