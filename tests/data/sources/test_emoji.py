import importlib.util
import itertools
import pathlib
import pickle

import cv2
import numpy as np
import pytest

from mmjax import errors
from mmjax.data.sources import emoji

ROOT = pathlib.Path(emoji.__file__).parents[3]
FOLDS = (0, 1, 2, 3, 4, "dev")


def concepts(**keywords):
  source = emoji.build(**keywords)
  return {source[i]["concept"] for i in range(len(source))}


def bases(**keywords):
  source = emoji.build(**keywords)
  return {source[i]["base"] for i in range(len(source))}


def test_sizes():
  assert len(emoji.build(split="all")) == 1831 * 3
  assert len(emoji.table()["locales"]) >= 8
  for words in emoji.table()["locales"].values():
    assert len(words["names"]) == len(words["tags"]) == 1831
    assert all(words["names"])


def test_an_example():
  source = emoji.build(split="all", vendors="twemoji")
  (cat,) = (
    e for e in (source[i] for i in range(len(source))) if e["name"] == "cat"
  )
  assert cat["concept"] == cat["base"] == "1f408"
  assert cat["vendor"] == "twemoji" and cat["subgroup"] == "animal-mammal"
  assert cat["texts"] == ["cat: " + ", ".join(cat["tags"])]
  assert "pet" in cat["tags"]
  image = cv2.imdecode(np.frombuffer(cat["image"], np.uint8), 1)
  assert image.shape == (64, 64, 3)


def test_every_picture_can_be_decoded():
  source = emoji.build(split="all")
  for index in range(0, len(source), 7):
    data = np.frombuffer(source[index]["image"], np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    assert image.shape == (64, 64, 3) and image.std() > 0


def test_pictures_belong_to_their_names():
  # Red, on white: an offset by one in the blobs would not give that thrice.
  source = emoji.build(split="all", decoded=True)
  found = [source[i] for i in range(len(source))]
  hearts = [e for e in found if e["name"] == "green heart"]
  assert [e["vendor"] for e in hearts] == list(emoji.VENDORS)
  for heart in hearts:
    red, green, blue = heart["image"][28:36, 28:36].reshape(-1, 3).mean(0)
    assert green > red + 40 and green > blue + 40
    assert (heart["image"][0, 0] > 240).all()


def test_folds_are_disjoint_and_whole():
  tests = {f: concepts(split="test", fold=f, vendors="noto") for f in FOLDS}
  assert all(len(found) == 200 for found in tests.values())
  for a, b in itertools.combinations(FOLDS, 2):
    assert not tests[a] & tests[b]
  for fold in FOLDS:
    trained = bases(split="train", fold=fold, vendors="noto")
    assert not trained & bases(split="test", fold=fold)
    assert len(concepts(split="train", fold=fold)) == 1631


def test_folds_stay_what_they_are():
  # Numbers in reports depend on these; they must never move.
  assert [sum(emoji.folds()[fold]) for fold in FOLDS] == [
    177166,
    191359,
    187526,
    180273,
    178541,
    192978,
  ]


def test_dev_is_the_test_split_of_the_fold_dev():
  assert concepts(split="dev", fold="dev") == concepts(split="test", fold="dev")
  with pytest.raises(errors.InputError, match="trained on"):
    emoji.build(split="dev", fold=0)


def test_variants_share_a_base():
  words = emoji.table()
  names = words["locales"]["en"]["names"]
  base = dict(zip(names, words["bases"], strict=True))
  cooks = {base[f"{who}cook"] for who in ("", "man ", "woman ")}
  assert cooks == {"1f373"}
  assert base["woman detective"] == base["man detective"] == "1f575"
  assert base["flag: France"] != base["flag: Finland"]
  assert base["keycap: 1"] != base["keycap: 2"]


def test_vendor_holdout_leaves_flags_out():
  keywords = dict(holdout="vendor", fold="fluent")
  train, test = (emoji.build(split=s, **keywords) for s in ("train", "test"))
  shown = [train[i] for i in range(len(train))]
  assert {e["vendor"] for e in shown} == {"noto", "twemoji"}
  assert "flags" not in {e["group"] for e in shown}
  tested = [test[i] for i in range(len(test))]
  assert {e["vendor"] for e in tested} == {"fluent"}
  assert {e["concept"] for e in tested} == {e["concept"] for e in shown}
  assert len(emoji.build(split="test", holdout="vendor", fold=2)) == len(test)


def test_captions():
  def texts(captions, **keywords):
    source = emoji.build(split="all", captions=captions, **keywords)
    return source[0]["texts"]

  (name,), (tags,) = texts("name"), texts("tags")
  assert name == "grinning face" and "smile" in tags
  assert texts("name+tags") == [f"{name}: {tags}"]
  assert texts("each") == [name, *tags.split(", ")]
  assert texts("name", locale=("en", "de")) == [name, "grinsendes Gesicht"]


def test_decoded_images_are_shared_and_read_only():
  source = emoji.build(decoded=True)
  image = source[5]["image"]
  assert image.shape == (64, 64, 3) and image is source[5]["image"]
  with pytest.raises(ValueError):
    image[0] = 0


def test_pickle_is_small_and_equal():
  source = emoji.build(decoded=True)
  data = pickle.dumps(source)
  assert len(data) < 200_000
  assert pickle.loads(data)[7]["name"] == source[7]["name"]


@pytest.mark.parametrize(
  "keywords, says",
  [
    (dict(split="trian"), "Did you mean 'train'"),
    (dict(fold=7), "fold = 7"),
    (dict(holdout="vendors"), "Did you mean 'vendor'"),
    (dict(holdout="vendor", fold="apple"), "'apple'"),
    (dict(vendors=("noto", "twemogi")), "Did you mean 'twemoji'"),
    (dict(vendors=()), "nothing is left"),
    (dict(locale="xx"), "locale = 'xx'"),
    (dict(captions="names"), "Did you mean 'name'"),
  ],
)
def test_bad_input(keywords, says):
  with pytest.raises(errors.InputError, match=says):
    emoji.build(**keywords)


def test_notices_are_shipped():
  text = (ROOT / "mmjax/data/assets/emoji/NOTICE").read_text()
  for word in ("Apache", "CC-BY 4.0", "Microsoft", "Miles Johnson", "Unicode"):
    assert word in text
  size = sum(f.stat().st_size for f in ROOT.glob("mmjax/data/assets/emoji/*"))
  assert size < 5.2e6


def test_the_tool_finds_bases():
  pytest.importorskip("PIL")
  path = ROOT / "tools" / "prepare_emoji.py"
  spec = importlib.util.spec_from_file_location("prepare_emoji", path)
  tool = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(tool)
  words = emoji.table()
  assert [tool.base(c) for c in words["concepts"]] == words["bases"]
  assert tool.code("1F468-200D-2764-FE0F") == "1f468-200d-2764"
