"""Rows come out in order, whatever the batch, the padding and the mesh."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors
from mmjax.data import preprocess
from mmjax.data.sources import fake
from mmjax.evals import embedding

ROWS = np.random.default_rng(0).normal(size=(11, 4)).astype(np.float32)
MATRIX = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)


def predict(variables, batch):
  return jnp.tanh(batch["image"] @ variables["matrix"])


@pytest.mark.parametrize(
  "axes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]
)
@pytest.mark.parametrize("batch_size", [1, 8, 9, 64])
def test_any_batch_size(axes, batch_size, house):
  traced = []

  def counted(variables, batch):
    traced.append(batch["image"].shape)
    return predict(variables, batch)

  layout = house.layout(axes)
  embed = embedding.Embedder(counted, layout, batch_size)
  for _ in range(2):
    got = embed({"matrix": MATRIX}, 11, lambda i: {"image": ROWS[i]})
  np.testing.assert_allclose(got, np.tanh(ROWS @ MATRIX), rtol=1e-5)
  assert len(traced) == 1  # one program for all batches and runs
  assert traced[0][0] % layout.batch_shards == 0


def test_a_row_is_read_once_and_only_once(house):
  read = []

  def row(i):
    read.append(i)
    return {"image": ROWS[i]}

  embedding.Embedder(predict, house.layout(), 8)({"matrix": MATRIX}, 8, row)
  assert sorted(read) == list(range(8))


def test_rows_draw_the_same_each_time(house):
  source = house.ListSource([{"image": 0}, {"image": 0}])

  def noisy(example, rng):
    return {"image": rng.normal(size=2)}

  row = embedding.image_row(source, noisy, seed=3)
  np.testing.assert_array_equal(row(0)["image"], row(0)["image"])
  assert np.any(row(0)["image"] != row(1)["image"])


def test_corrupt_records_are_left_out(house):
  rows = [{"image": np.full(2, i), "texts": [str(i)]} for i in range(200)]
  source = house.Damaged(rows, [0, 7])
  found = embedding.read_examples(
    source, house.image_pp, 0, {"evals texts": "texts"}, keep_images=True
  )
  good = [i for i in range(200) if i not in (0, 7)]
  assert found.numbers == good
  assert found.columns == {"texts": [[str(i)] for i in good]}
  np.testing.assert_array_equal(np.stack(found.images)[:, 0], good)
  assert found.metrics == {"corrupt_records": 2.0}

  def noisy(example, rng):
    return {"image": example["image"] + rng.normal(size=2)}

  # Row i is the i-th good record, drawn by its own number.
  row = embedding.image_row(source, noisy, 3, found.numbers)
  plain = embedding.image_row(house.ListSource(rows), noisy, 3)
  np.testing.assert_array_equal(row(6)["image"], plain(8)["image"])


def test_more_than_one_percent_corrupt_is_an_error(house):
  rows = [{"image": np.zeros(2)}] * 200
  source = house.Damaged(rows, [3, 7, 150])
  with pytest.raises(errors.DataError) as caught:
    embedding.read_examples(source, house.image_pp, 0, {}, field="evals x")
  told = str(caught.value)
  assert told.startswith("evals x = list: 3 of 200 records (1.5%) are corrupt")
  assert "numbers 3, 7, 150." in told and "RIFF" in told
  with pytest.raises(errors.DataError, match=r"numbers 0, 1, .*, 9\."):
    everything = house.Damaged(rows, range(200))
    embedding.read_examples(everything, house.image_pp, 0, {})


def test_bytes_that_no_decoder_reads():
  source = fake.build(size=250, corrupt=0.01, seed=1)
  bad = [i for i in range(250) if source.is_corrupt(i)]
  assert bad
  pp = preprocess.parse("decode|resize(8)")
  found = embedding.read_examples(source, pp, 0, {})
  assert sorted({*range(250)} - {*found.numbers}) == bad


def test_bad_input(house):
  with pytest.raises(errors.InputError, match="batch_size = 0"):
    embedding.Embedder(predict, house.layout(), 0)
  embed = embedding.Embedder(predict, house.layout(), 8)
  with pytest.raises(errors.InputError, match="resize"):
    embed({"matrix": MATRIX}, 8, lambda i: {"image": ROWS[i][: 4 - i % 2]})
