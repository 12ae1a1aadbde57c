"""The embedded data set: 1,831 emoji drawn by three vendors, in 20 languages.

Pictures are 64 px WebP on white (Noto, Twemoji, Fluent; see NOTICE); names and
tags come from Unicode CLDR through emojibase. `tools/prepare_emoji.py` makes
the files that this module reads.
"""

import functools
import hashlib
import importlib.resources
import itertools
import json
import lzma
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from mmjax import errors
from mmjax.typing import Example

VENDORS = ("noto", "twemoji", "fluent")
SPLITS = ("train", "test", "dev", "all")
HOLDOUTS = ("concept", "vendor", "none")
CAPTIONS = ("name", "tags", "name+tags", "each")
FOLDS = (0, 1, 2, 3, 4, "dev")
FOLD_SIZE = 200


def _read(file: str) -> bytes:
  folder = importlib.resources.files("mmjax.data") / "assets" / "emoji"
  return (folder / file).read_bytes()


@functools.cache
def table() -> dict[str, Any]:
  """Returns all that is known beside the pictures, in concept order.

  Keys: concepts (hexcodes), bases, groups, subgroups, and per locale in
  `locales` the names and tags.
  """
  return json.loads(lzma.decompress(_read("table.json.xz")))


@functools.cache
def _pictures(vendor: str) -> tuple[bytes, list[int]]:
  sizes = table()["sizes"][vendor]
  return _read(f"{vendor}.bin"), [0, *itertools.accumulate(sizes)]


def picture(vendor: str, concept: int) -> bytes:
  """Returns the WebP file of a concept by its index in `table()`."""
  blob, offsets = _pictures(vendor)
  return blob[offsets[concept] : offsets[concept + 1]]


@functools.cache
def _decoded(vendor: str, concept: int) -> np.ndarray:
  data = np.frombuffer(picture(vendor, concept), np.uint8)
  image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
  assert image is not None, "the installed emoji files are damaged"
  image.setflags(write=False)
  return image


@functools.cache
def folds() -> dict[int | str, tuple[int, ...]]:
  """Returns the concepts of the five test folds and of `dev`, by index.

  Each holds 200 concepts and whole base code points, so that no variant of a
  tested concept (man cook, woman cook) is seen in training; no two overlap.
  The order of the base code points is that of a hash, fixed for ever.
  """
  members: dict[str, list[int]] = {}
  for index, base in enumerate(table()["bases"]):
    members.setdefault(base, []).append(index)

  def rank(base: str) -> bytes:
    return hashlib.sha256(f"mmjax/emoji/{base.upper()}".encode()).digest()

  filled: dict[int | str, list[int]] = {fold: [] for fold in FOLDS}
  for base in sorted(members, key=rank):
    # The first fold that is not full; what overfills it is never tested.
    fold = next((f for f in filled.values() if len(f) < FOLD_SIZE), None)
    if fold is not None and len(fold) + len(members[base]) <= FOLD_SIZE:
      fold += members[base]
  return {name: tuple(sorted(fold)) for name, fold in filled.items()}


class EmojiSource:
  """Random access to the examples of one split; see `build`."""

  name = "emoji"

  def __init__(
    self,
    keys: Sequence[tuple[str, int]],
    locales: Sequence[str],
    captions: str,
    decoded: bool,
  ):
    self._keys = tuple(keys)
    self._locales = tuple(locales)
    self._captions = captions
    self._load = _decoded if decoded else picture

  def __len__(self) -> int:
    return len(self._keys)

  def __getitem__(self, index: int) -> Example:
    vendor, concept = self._keys[index]
    names = table()["locales"][self._locales[0]]["names"]
    tags = table()["locales"][self._locales[0]]["tags"]
    return {
      "image": self._load(vendor, concept),
      "texts": self._texts(concept),
      "name": names[concept],
      "tags": list(tags[concept]),
      "vendor": vendor,
      "concept": table()["concepts"][concept],
      "label": concept,
      "base": table()["bases"][concept],
      "group": table()["groups"][concept],
      "subgroup": table()["subgroups"][concept],
    }

  def _texts(self, concept: int) -> list[str]:
    found = []
    for locale in self._locales:
      words = table()["locales"][locale]
      name, tags = words["names"][concept], words["tags"][concept]
      joined = ", ".join(tags) or name
      if self._captions == "name":
        found.append(name)
      elif self._captions == "tags":
        found.append(joined)
      elif self._captions == "name+tags":
        found.append(f"{name}: {joined}" if tags else name)
      else:
        found += [name, *tags]
    return found


def build(
  *,
  split: str = "train",
  fold: int | str = 0,
  holdout: str = "concept",
  vendors: Sequence[str] = VENDORS,
  locale: str | Sequence[str] = "en",
  captions: str = "name+tags",
  decoded: bool = False,
) -> EmojiSource:
  """Builds the source of one split.

  An example has `image` (WebP bytes), `texts` (its captions), `name`, `tags`,
  `vendor`, `concept` (hexcode), `label` (the concept's index, 0 to 1,830),
  `base`, `group` and `subgroup`.

  Args:
    split: "train", "test", "all", or "dev" (the test split of fold="dev").
    fold: what is tested. With holdout="concept" one of 0 to 4, or "dev", the
      fold for tuning, disjoint from the five. With holdout="vendor" the
      vendor's name, or its number in `VENDORS`.
    holdout: "concept" tests concepts never seen; "vendor" tests the drawings
      of an unseen vendor and leaves flags out, for vendors draw these nearly
      alike; "none" puts everything into both splits.
    vendors: whose drawings are used.
    locale: language of the texts, or several: `texts` then holds the captions
      of all of them, `name` and `tags` those of the first.
    captions: "name", "tags" (joined by commas), "name+tags" (one caption
      "name: tag, tag"), or "each": the name and every tag as captions of
      their own.
    decoded: `image` is a read-only uint8 RGB array [64 64 3], decoded once
      and kept in memory (67 MB for all).

  Raises:
    InputError: an argument that does not exist, or a fold that does not go
      with the holdout.
  """
  field = "data.sources.emoji"
  vendors = (vendors,) if isinstance(vendors, str) else tuple(vendors)
  locales = (locale,) if isinstance(locale, str) else tuple(locale)
  for key, values, options in (
    ("split", (split,), SPLITS),
    ("holdout", (holdout,), HOLDOUTS),
    ("captions", (captions,), CAPTIONS),
    ("vendors", vendors, VENDORS),
    ("locale", locales, table()["locales"]),
  ):
    for value in values:
      if value not in options:
        raise errors.unknown(f"{field}.{key}", value, options)
    if not values:
      raise errors.InputError(
        f"{field}.{key} = (): nothing is left; name at least one of "
        f"{', '.join(map(str, options))}."
      )
  if split == "dev" and (holdout, fold) != ("concept", "dev"):
    raise errors.InputError(
      f"{field}.split = 'dev': those concepts are trained on with holdout="
      f"{holdout!r} and fold={fold!r}; set fold='dev' (holdout='concept') for "
      "training and evaluation alike."
    )
  keys = [(v, c) for v in vendors for c in range(len(table()["concepts"]))]
  if holdout == "vendor":
    held = VENDORS[fold] if fold in (0, 1, 2) else fold
    if held not in vendors:
      raise errors.unknown(f"{field}.fold", fold, vendors)
    groups = table()["groups"]
    keys = [(v, c) for v, c in keys if groups[c] != "flags"]
    tested = [(v, c) for v, c in keys if v == held]
  elif holdout == "concept":
    if fold not in FOLDS:
      raise errors.unknown(f"{field}.fold", fold, map(str, FOLDS))
    concepts = set(folds()[fold])
    tested = [(v, c) for v, c in keys if c in concepts]
  else:
    tested = keys
  if split == "train" and holdout != "none":
    held_out = set(tested)
    keys = [key for key in keys if key not in held_out]
  elif split in ("test", "dev"):
    keys = tested
  return EmojiSource(keys, locales, captions, decoded)
