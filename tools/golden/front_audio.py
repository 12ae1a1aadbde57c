"""Audio front ends of the hub: tests/golden/front/{whisper,ast,clap}.npz.

Each file holds a sound, int16 [samples], and "<case>/<field>" of the feature
extractor: its config as JSON, how many samples it was given, its features
[frames F] (every "step"-th frame, to keep files small), and for CLAP's long
sounds where the parts at random began.
"""

import json

import make_golden
import numpy as np


def make() -> None:
  """Records the cases."""
  folder = make_golden.FOLDER / "front"
  folder.mkdir(exist_ok=True)
  for name, found in (("whisper", _whisper()), ("ast", _ast())):
    _save(folder / f"{name}.npz", found)
  _save(folder / "clap.npz", _clap())


def _save(path, found) -> None:
  np.savez_compressed(path, allow_pickle=False, **found)
  print(f"{path.stem}: {path.stat().st_size / 1024:.0f} KiB")


def sound(samples: int, rate: int, seed: int) -> np.ndarray:
  """Draws a gliding tone with overtones, silence, clicks and noise."""
  rng = np.random.default_rng(seed)
  t = np.arange(samples) / rate
  x = sum(
    np.sin(2 * np.pi * k * (180 * t + 90 * t**2) + k) / k for k in range(1, 9)
  )
  x *= 0.1 * np.exp(-2 * (t % 0.4))
  x += 0.01 * rng.standard_normal(samples) * (0.1 + t)
  x[samples // 5 : samples // 4] = 0  # the floors of the logarithms
  x[rng.integers(samples, size=5)] += 0.3
  return np.round(x * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)


def _heard(x: np.ndarray) -> np.ndarray:
  return x.astype(np.float32) / 2**15


def _config(extractor) -> np.ndarray:
  return np.array(extractor.to_json_string())


def _whisper() -> dict:
  from transformers import WhisperFeatureExtractor

  x = sound(21_003, 16_000, 0)
  found = {"sound": x}
  for name, given, step, keywords in (
    ("padded", 21_003, 1, dict(chunk_length=2)),
    ("cut", 21_003, 3, dict(chunk_length=1, feature_size=128)),
    ("thirty", 9_001, 41, {}),
  ):
    extractor = WhisperFeatureExtractor(**keywords)
    features = extractor(
      _heard(x[:given]), sampling_rate=16_000, return_attention_mask=True
    )
    found |= {
      f"{name}/config": _config(extractor),
      f"{name}/given": np.array(given),
      f"{name}/step": np.array(step),
      f"{name}/features": np.asarray(features["input_features"])[0].T[::step],
      f"{name}/length": np.asarray(features["attention_mask"]).sum(),
    }
  return found


def _ast() -> dict:
  from transformers import ASTFeatureExtractor

  x = sound(19_771, 16_000, 1)
  found = {"sound": x}
  for name, given, step, keywords in (
    ("padded", 11_003, 1, dict(max_length=80)),
    (
      "cut",
      19_771,
      3,
      dict(max_length=97, num_mel_bins=64, mean=-3.0, std=2.0),
    ),
    ("plain", 6_400, 2, dict(max_length=48, do_normalize=False)),
    ("full", 19_771, 7, {}),
  ):
    extractor = ASTFeatureExtractor(**keywords)
    features = extractor(_heard(x[:given]), sampling_rate=16_000)
    features = np.asarray(features["input_values"])[0]
    if name == "full":
      features = features[:140]
    found |= {
      f"{name}/config": _config(extractor),
      f"{name}/given": np.array(given),
      f"{name}/step": np.array(step),
      f"{name}/features": features[::step],
    }
  return found


def _clap() -> dict:
  from transformers import ClapFeatureExtractor

  x = sound(40_000, 48_000, 2)
  found = {"sound": x}
  one = dict(max_length_s=1, frequency_min=50)  # as released
  half = dict(max_length_s=0.5, frequency_min=50)
  for name, given, step, keywords in (
    ("repeatpad", 17_003, 1, dict(one, truncation="rand_trunc")),
    ("repeat", 17_003, 2, dict(one, truncation="rand_trunc", padding="repeat")),
    ("pad", 17_003, 2, dict(one, truncation="fusion", padding="pad")),
    ("exact", 24_000, 2, dict(half, truncation="rand_trunc")),
    ("rand_trunc", 40_000, 2, dict(half, truncation="rand_trunc")),
    ("fusion", 40_000, 2, dict(half, truncation="fusion")),
    ("hardly", 24_100, 2, dict(half, truncation="fusion")),
    ("little", 24_700, 2, dict(half, truncation="fusion", frequency_min=0)),
    ("thirty", 17_003, 31, dict(frequency_min=50, truncation="rand_trunc")),
  ):
    extractor = ClapFeatureExtractor(**keywords)
    extractor.nb_max_samples = int(extractor.nb_max_samples)
    starts = []
    draw = np.random.RandomState(5)

    def randint(low, high, starts=starts, draw=draw):
      starts.append(int(draw.randint(low, high)))
      return starts[-1]

    def choice(values, starts=starts, draw=draw):
      starts.append(int(draw.choice(values)))
      return starts[-1]

    kept = np.random.randint, np.random.choice
    np.random.randint, np.random.choice = randint, choice
    try:
      mel, longer = extractor._get_input_mel(
        _heard(x[:given]),
        extractor.nb_max_samples,
        extractor.truncation,
        extractor.padding,
      )
    finally:
      np.random.randint, np.random.choice = kept
    config = json.loads(extractor.to_json_string())
    found |= {
      f"{name}/config": np.array(json.dumps(config)),
      f"{name}/given": np.array(given),
      f"{name}/step": np.array(step),
      f"{name}/features": mel[:, ::step].astype(np.float32),
      f"{name}/longer": np.array(longer),
      f"{name}/starts": np.array(starts, np.int64),
    }
  return found
