import collections
import itertools
import subprocess
import sys

import numpy as np
import pytest

from mmjax import errors
from mmjax.build import build
from mmjax.data import pipeline, preprocess

SPEC = "decode|random_crop(24)|flip|choose|keep('image', 'index', 'text')"


def fake(**keywords):
  return build("data.sources", name="fake", **keywords)


def take(count, *, sources=None, spec=SPEC, global_batch=8, **keywords):
  iterator = pipeline.batches(
    sources or [fake(size=20)],
    preprocess.parse(spec),
    global_batch=global_batch,
    **keywords,
  )
  found = list(itertools.islice(iterator, count))
  iterator.close()
  return found


def same(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b, strict=True):
    assert x.keys() == y.keys()
    for key in x:
      np.testing.assert_array_equal(x[key], y[key])


def test_batches_are_stacked_examples():
  (batch,) = take(1)
  assert batch["image"].shape == (8, 24, 24, 3)
  assert batch["image"].dtype == np.uint8
  assert (batch[pipeline.CORRUPT] == -1).all()


def test_each_epoch_has_every_record_once_in_a_new_order():
  found = take(5, sources=[fake(size=20)], spec="keep('index')")
  epochs = np.concatenate([b["index"] for b in found]).reshape(2, 20)
  for epoch in epochs:
    assert sorted(epoch) == list(range(20))
  assert (epochs[0] != epochs[1]).any()
  assert (epochs[0] != np.arange(20)).any()


def test_the_same_seed_gives_the_same_batches_and_another_others():
  same(take(4, seed=3), take(4, seed=3))
  a, b = take(1, seed=3)[0], take(1, seed=4)[0]
  assert (a["index"] != b["index"]).any()


def test_resuming_is_a_slice():
  whole = take(7)
  same(whole[4:], take(3, start_step=4))


def test_workers_change_nothing():
  whole = take(5)
  same(whole[1:], take(4, start_step=1, workers=2))


def test_two_processes_together_see_what_one_sees():
  def rows(batch):
    return [
      (int(i), image.tobytes(), text)
      for i, image, text in zip(
        batch["index"], batch["image"], batch["text"], strict=True
      )
    ]

  # In its order too: what dropout takes away depends on the row.
  one = take(4)
  two = [take(4, process_index=i, process_count=2) for i in range(2)]
  for step in range(4):
    parts = [rows(p[step]) for p in two]
    assert [len(p) for p in parts] == [4, 4]
    assert parts[0] + parts[1] == rows(one[step])


def test_an_example_is_augmented_anew_in_each_epoch():
  found = take(2, sources=[fake(size=8)], spec="decode|random_crop(24)")
  images = []
  for batch in found:
    images.append(batch["image"][np.argsort(batch["index"])])
  changed = (images[0] != images[1]).any((1, 2, 3))
  assert changed.mean() > 0.5


def test_mixing_weights():
  sources = [fake(size=50), fake(size=30, seed=1)]
  # Each source's spec marks its texts.
  iterator = pipeline.batches(
    sources,
    [
      preprocess.parse("template('a {}')|keep('text', 'index')"),
      preprocess.parse("template('b {}')|keep('text', 'index')"),
    ],
    weights=[3, 1],
    global_batch=8,
  )
  texts, numbers = [], collections.Counter()
  for batch in itertools.islice(iterator, 50):
    texts += list(batch["text"])
    for text, number in zip(batch["text"], batch["index"], strict=True):
      if text[0] == "b":
        numbers[int(number)] += 1
  assert sum(t[0] == "a" for t in texts) == 300
  # 100 draws of 30 records: each three or four times.
  assert set(numbers) == set(range(30)) and set(numbers.values()) == {3, 4}


def test_corrupt_records_are_replaced_and_told():
  source = fake(size=100, corrupt=0.1)
  bad = {i for i in range(100) if source.is_corrupt(i)}
  assert 3 < len(bad) < 20
  spec = "decode|keep('image', 'index')"
  found = take(10, sources=[source], spec=spec, global_batch=10)
  told = np.concatenate([b[pipeline.CORRUPT] for b in found])
  seen = np.concatenate([b["index"] for b in found])
  assert set(told[told >= 0]) == bad
  assert not set(seen.tolist()) & bad
  # A good record comes as itself, a bad one as the next good one.
  good = [i for i in range(100) if i not in bad]
  for number, index in zip(told, seen, strict=True):
    if number >= 0:
      assert index == next(i for i in itertools.cycle(good) if i > number)


def test_nothing_but_corrupt_records():
  with pytest.raises(errors.DataError, match="all corrupt"):
    take(1, sources=[fake(size=5, corrupt=1.0)], spec="decode")


def marked(size, corrupt):
  found = np.full(size, -1, np.int32)
  found[:corrupt] = np.arange(corrupt) + 40
  return {"x": np.zeros(size), pipeline.CORRUPT: found}


def test_ledger_counts_and_tolerates_one_percent():
  ledger = pipeline.CorruptLedger()
  found = list(ledger.watch([marked(100, 1) for _ in range(4)]))
  assert all(list(b) == ["x"] for b in found)
  assert (ledger.draws, ledger.corrupt, ledger.records) == (400, 4, {40})


def test_ledger_stops_beyond_one_percent_but_not_too_early():
  ledger = pipeline.CorruptLedger()
  ledger.take(marked(100, 50))
  with pytest.raises(errors.DataError, match=r"53 of 200.*26\.5%.*40, 41"):
    ledger.take(marked(100, 3))


def test_ledger_stops_a_real_stream():
  source = fake(size=300, corrupt=0.05)
  iterator = pipeline.batches(
    [source], preprocess.parse("decode|keep('image')"), global_batch=50
  )
  with pytest.raises(errors.DataError, match="corrupt"):
    list(itertools.islice(pipeline.CorruptLedger().watch(iterator), 10))


def test_workers_report_errors():
  with pytest.raises(errors.DataError, match="all corrupt"):
    take(1, sources=[fake(size=4, corrupt=1.0)], spec="decode", workers=1)


@pytest.mark.parametrize(
  "keywords, says",
  [
    (dict(global_batch=9, process_count=2), "batch_size = 9.*multiple of 2"),
    (dict(global_batch=0), "batch_size = 0"),
    (dict(weights=[1.0, 2.0]), "1 sources.*2 weights"),
    (dict(weights=[0.0]), "must be positive"),
  ],
)
def test_bad_input(keywords, says):
  with pytest.raises(errors.InputError, match=says):
    take(1, **keywords)


def test_shapes_that_differ():
  class Ragged:
    name = "ragged"

    def __len__(self):
      return 4

    def __getitem__(self, index):
      return {"x": np.zeros(index + 1)}

  with pytest.raises(errors.InputError, match="'x' differs in shape"):
    take(1, sources=[Ragged()], spec="")


def test_tensorflow_is_never_imported():
  code = (
    "import sys\n"
    "from mmjax.build import build\n"
    "from mmjax.data import feed, pipeline, preprocess, tokenizers\n"
    "source = build('data.sources', name='emoji')\n"
    "next(pipeline.batches([source], preprocess.parse('decode|'\n"
    "  'keep(\"image\")'), global_batch=4))\n"
    "assert not any(m.split('.')[0] == 'tensorflow' for m in sys.modules)\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
