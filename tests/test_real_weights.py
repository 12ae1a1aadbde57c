"""tools/real_weights.py: its counting, and (slow) the models themselves."""

import importlib.util
import os
import pathlib

import numpy as np
import pytest

FILE = pathlib.Path(__file__).parents[1] / "tools" / "real_weights.py"
SPEC = importlib.util.spec_from_file_location("real_weights", FILE)
real = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(real)


def by_hand(a, b):
  """The distance of Levenshtein, by its recursion."""
  if not a or not b:
    return len(a) + len(b)
  if a[0] == b[0]:
    return by_hand(a[1:], b[1:])
  return 1 + min(by_hand(a[1:], b), by_hand(a, b[1:]), by_hand(a[1:], b[1:]))


def test_words_to_change():
  rng = np.random.default_rng(0)
  for _ in range(40):
    a, b = (list(rng.choice(list("abc"), rng.integers(0, 6))) for _ in "ab")
    assert real.distance(a, b) == by_hand(a, b)
  assert real.distance("press one now".split(), "press 1".split()) == 2


@pytest.mark.slow
def test_whisper_hears_the_prompts():
  cache = pathlib.Path(os.environ.get("MMJAX_REAL_WEIGHTS", real.CACHE))
  cache.mkdir(parents=True, exist_ok=True)
  few, _ = real.whisper(cache, limit=real.WHISPER_PROMPTS)
  assert few <= real.WHISPER_WER + 0.5
