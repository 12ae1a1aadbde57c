"""Tokenizers trained once, shapes from a record, corrupt records counted."""

import jax
import numpy as np
import pytest

from mmjax import errors
from mmjax.parallel import mesh, rules
from mmjax.train import inputs

SOURCE = dict(name="emoji", split="train", vendors=("noto",))
PP = "decode|resize(8)|tokenize('t', key='name', length=6)"
DATA = dict(source=SOURCE, pp=PP + "|keep('image', 'name')")
SPEC = {"t": dict(kind="sentencepiece", vocab_size=300)}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
  return inputs.build_tokenizers(SPEC, DATA, tmp_path_factory.mktemp("run"))


def test_trained_on_training_texts_and_kept(tmp_path, monkeypatch, tokenizers):
  seen = []
  train = inputs.tokenizers.train
  monkeypatch.setattr(
    inputs.tokenizers,
    "train",
    lambda texts, *a: train(seen.extend(texts) or iter(seen), *a),
  )
  first = inputs.build_tokenizers(SPEC, DATA, tmp_path)["t"]
  source = inputs.build("data.sources", **SOURCE)
  want = [t for i in range(len(source)) for t in source[i]["texts"]]
  assert seen == want
  file = tmp_path / "tokenizers" / "t.model"
  assert {p.name for p in file.parent.iterdir()} == {"t.model", "t.json"}

  # Resume: the file is read, nothing is trained; the ids are the same.
  seen.clear()
  again = inputs.build_tokenizers(SPEC, DATA, tmp_path)["t"]
  assert not seen
  for text in ("grinning face", "flag: Japan"):
    assert first.encode(text) == again.encode(text)
    assert first.encode(text) == tokenizers["t"].encode(text)


def test_a_model_of_another_config_is_not_taken(tmp_path):
  """A run that failed in its setup has left one, and no config.json."""
  large = inputs.build_tokenizers(SPEC, DATA, tmp_path)["t"]
  assert large.vocab_size == 300
  spec = {"t": dict(SPEC["t"], vocab_size=200)}
  assert inputs.build_tokenizers(spec, DATA, tmp_path)["t"].vocab_size == 200
  german = {"t": dict(spec["t"], source=dict(SOURCE, locale="de"))}
  ids = inputs.build_tokenizers(spec, DATA, tmp_path)["t"].encode("Japan")
  other = inputs.build_tokenizers(german, DATA, tmp_path)["t"]
  assert other.encode("Japan") != ids

  # Nobody knows what a model without its recipe was trained with.
  (tmp_path / "tokenizers" / "t.json").unlink()
  assert inputs.build_tokenizers(SPEC, DATA, tmp_path)["t"].vocab_size == 300

  # A run's own model stays, as those do which an older mmjax has trained.
  (tmp_path / "tokenizers" / "t.json").unlink()
  (tmp_path / "config.json").write_text("{}")
  assert inputs.build_tokenizers(spec, DATA, tmp_path)["t"].vocab_size == 300


def test_a_workdir_that_cannot_be_written(tmp_path, monkeypatch):
  monkeypatch.setattr(inputs.tokenizers, "train", None)  # not even begun
  (tmp_path / "file").write_text("")
  for folder in (tmp_path / "file" / "run", "/dev/null/x"):
    with pytest.raises(errors.StorageError) as caught:
      inputs.build_tokenizers(SPEC, DATA, folder)
    assert f"{folder}/tokenizers/t.model: a part of" in str(caught.value)
    assert "choose another --workdir" in str(caught.value)


def test_own_source(monkeypatch):
  seen = []
  monkeypatch.setattr(
    inputs.tokenizers, "train", lambda texts, *a: seen.extend(texts)
  )
  german = dict(SOURCE, locale="de")
  inputs.build_tokenizers({"t": dict(SPEC["t"], source=german)}, DATA)
  source = inputs.build("data.sources", **german)
  assert seen[0] == source[0]["texts"][0]


def test_shapes_and_batches_agree(tokenizers):
  made = inputs.Input.create(DATA, tokenizers, seed=3, batch_size=16)
  shapes = made.shapes()
  assert shapes["image"].shape == (16, 8, 8, 3)
  assert shapes["image"].dtype == np.uint8
  assert (shapes["name"].shape, shapes["name"].dtype) == ((16, 6), np.int32)
  layout = rules.Layout(mesh.make_mesh({"data": 8}))
  with made.feed(made.batches(2), layout) as feed:
    batch = next(feed)
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
    k: (v.shape, v.dtype) for k, v in shapes.items()
  }
  assert batch["image"].sharding == layout.batch_sharding(4)
  # Batch 2 is the third, however one gets there.
  rows = made.batches(0)
  third = [next(rows) for _ in range(3)][2]
  np.testing.assert_array_equal(jax.device_get(batch["image"]), third["image"])
  assert made.ledger.draws >= 16 and made.ledger.corrupt == 0


def test_a_mix_has_both(tokenizers):
  mix = {
    "a": dict(DATA, weight=3),
    "b": dict(DATA, source=dict(SOURCE, vendors=("fluent",))),
  }
  made = inputs.Input.create(
    dict(mix=mix, workers=0), tokenizers, seed=0, batch_size=4
  )
  assert made.weights == [3.0, 1.0] and len(made.sources) == 2
  assert set(inputs.entries(dict(mix=mix))) == {"data.mix.a", "data.mix.b"}


@pytest.mark.parametrize("pp", [PP, PP + "|keep('name', 'vendor')", "keep()"])
def test_what_is_no_array_is_refused(pp, tokenizers):
  made = inputs.Input.create(
    dict(DATA, pp=pp), tokenizers, seed=0, batch_size=8
  )
  with pytest.raises(errors.InputError, match="keep"):
    made.shapes()
