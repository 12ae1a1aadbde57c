"""Operations on `example["audio"]`: sound, and what encoders hear of it.

Each function here is a factory for preprocessing specs, as in `image_ops.py`.
`decode_audio` gives samples float32 [samples]; one of the others makes log-mel
features float32 [A F] of them, time first, as the released checkpoints of
Whisper, AST and CLAP were trained on.
"""

import math
import pathlib
from collections.abc import Callable

import numpy as np

from mmjax import errors
from mmjax.data import mel, wav
from mmjax.data.image_ops import CorruptRecord
from mmjax.typing import Example

Op = Callable[[Example, np.random.Generator], Example]

TRUNCATIONS = ("rand_trunc", "fusion")
PADDINGS = ("repeatpad", "repeat", "pad")


def decode_audio(rate: int) -> Op:
  """Reads a .wav file, and brings it to one channel at `rate`.

  The example's "audio" is the file's bytes, its path, or samples: [samples] or
  [samples channels], integers of full scale or floats in [-1, 1]. Samples are
  taken to be at the rate that the example's "rate" says, else at `rate`.

  Args:
    rate: samples a second of the result.

  Raises (when it runs):
    CorruptRecord: no .wav file, or no sample in it.
  """
  _positive(rate=rate)

  def op(example: Example, rng: np.random.Generator) -> Example:
    audio, given = example["audio"], int(example.get("rate", rate))
    if isinstance(audio, bytes | str | pathlib.Path):
      try:
        audio, given = wav.read(audio)
      except ValueError as error:
        raise CorruptRecord(
          f"audio: {error}; remove or repair the record."
        ) from error
    sound = wav.mono(np.asarray(audio))
    if not len(sound):
      raise CorruptRecord("audio: there is no sample in it; remove the record.")
    return {**example, "audio": wav.resample(sound, given, rate), "rate": rate}

  return op


def whisper_mel(
  bins: int = 80,
  samples: int | None = 480_000,
  hop: int = 160,
  size: int = 400,
  lengths: str | None = None,
) -> Op:
  """Makes Whisper's features of sound at 16 kHz (Radford et al. 2022).

  log10 of the power in Slaney's mel filters, not more than 8 below the
  greatest, / 4 + 1; the frame that would begin at the end is left out.

  Args:
    bins: F, 128 in large-v3, else 80.
    samples: to which the sound is cut or filled up with silence: 30 s. None
      takes it as long as it is.
    hop: samples from one frame to the next.
    size: samples in a frame.
    lengths: key under which the number of frames with sound is put, int32;
      None puts it nowhere.

  Returns:
    The operation; its features are [samples // hop, F].
  """
  _positive(bins=bins, samples=samples, hop=hop, size=size)
  bank = mel.filters(bins, 16_000, size, 0, 8000, "slaney", equal_area=True)
  window = mel.hann(size)

  def op(example: Example, rng: np.random.Generator) -> Example:
    sound = _sound(example, 16_000, "whisper_mel")
    if samples is not None:
      sound = sound[:samples]
    found = {lengths: np.int32(-(-len(sound) // hop))} if lengths else {}
    if samples is not None:
      sound = np.pad(sound, (0, samples - len(sound)))
    power = mel.spectrum(sound, window, hop, bank)[:-1]
    log = np.log10(np.maximum(power, 1e-10))
    if lengths:  # a last part of a frame has none of its own
      found[lengths] = np.int32(min(found[lengths], len(log)))
    log = np.maximum(log, log.max(initial=-np.inf) - 8.0)
    audio = ((log + 4.0) / 4.0).astype(np.float32)
    return {**example, "audio": audio, **found}

  return op


def ast_fbank(
  bins: int = 128,
  frames: int | None = 1024,
  mean: float | None = -4.2677393,
  std: float = 4.5689974,
  lengths: str | None = None,
) -> Op:
  """Makes AST's features of sound at 16 kHz (Gong et al. 2021).

  Kaldi's filter bank: frames of 25 ms each 10 ms, without their mean,
  pre-emphasis 0.97, a Hann window, log of the power in mel filters from 20 Hz
  to 8 kHz. Then (x - mean) / (2 std).

  Args:
    bins: F.
    frames: A; longer features are cut, shorter ones filled up with zeros
      before they are normalised. None takes them as they are.
    mean: of the features of the training data; None does not normalise.
    std: their deviation.
    lengths: as in `whisper_mel`.
  """
  _positive(bins=bins, frames=frames, std=std)
  bank = mel.filters(bins, 16_000, 512, 20, 8000, "kaldi", in_mels=True)
  window = mel.hann(400, periodic=False)
  floor = float(np.finfo(np.float32).eps)

  def op(example: Example, rng: np.random.Generator) -> Example:
    power = mel.spectrum(
      _sound(example, 16_000, "ast_fbank"),
      window,
      160,
      bank,
      centre=False,
      preemphasis=0.97,
      remove_mean=True,
    )
    x = np.log(np.maximum(power, floor))[:frames]
    found = {lengths: np.int32(len(x))} if lengths else {}
    if frames is not None:
      x = np.pad(x, ((0, frames - len(x)), (0, 0)))
    if mean is not None:
      x = (x - mean) / (2 * std)
    return {**example, "audio": x.astype(np.float32), **found}

  return op


def clap_mel(
  bins: int = 64,
  samples: int = 480_000,
  rate: int = 48_000,
  hop: int = 480,
  size: int = 1024,
  low: float = 50.0,
  high: float = 14_000.0,
  truncation: str = "rand_trunc",
  padding: str = "repeatpad",
) -> Op:
  """Makes CLAP's features (Wu et al. 2023): 10 log10 of the power in filters.

  Args:
    bins: F.
    samples: that the encoder hears: 10 s.
    rate: samples a second of the sound.
    hop: samples from one frame to the next.
    size: samples in a frame.
    low: where the first filter begins, Hz; 0 in the hub's default.
    high: where the last one ends, Hz.
    truncation: of a longer sound. "rand_trunc" takes a part of it at random;
      [A F] by Slaney's filters. "fusion" gives [4 A F] by HTK's filters: the
      whole squeezed into A frames, and three parts, at random from its
      beginning, middle and end; four times the same of a sound that is no
      longer. It puts bool "is_longer" beside them.
    padding: of a shorter sound. "repeatpad" repeats it as often as it fits,
      "repeat" until it is full, "pad" not; then silence.

  Raises:
    InputError: an unknown truncation or padding.
  """
  _positive(bins=bins, samples=samples, rate=rate, hop=hop, size=size)
  if truncation not in TRUNCATIONS:
    raise errors.unknown("clap_mel truncation", truncation, TRUNCATIONS)
  if padding not in PADDINGS:
    raise errors.unknown("clap_mel padding", padding, PADDINGS)
  fused = truncation == "fusion"
  scale = "htk" if fused else "slaney"
  bank = mel.filters(bins, rate, size, low, high, scale, equal_area=not fused)
  window, frames = mel.hann(size), samples // hop + 1

  def features(sound: np.ndarray) -> np.ndarray:
    power = mel.spectrum(sound, window, hop, bank)
    return (10.0 * np.log10(np.maximum(power, 1e-10))).astype(np.float32)

  def op(example: Example, rng: np.random.Generator) -> Example:
    sound = _sound(example, rate, "clap_mel")
    if len(sound) > samples and not fused:
      start = int(rng.integers(len(sound) - samples + 1))
      sound = sound[start : start + samples]
    elif len(sound) < samples:
      sound = _filled(sound, samples, padding)
    x = features(sound)
    if not fused:
      return {**example, "audio": x}
    longer = len(x) > frames
    if longer:
      last = len(x) - frames
      starts = [int(rng.integers(*ends)) for ends in _thirds(last + 1)]
      parts = [_squeezed(x, frames), *(x[s : s + frames] for s in starts)]
    else:
      parts = [x] * 4
    return {**example, "audio": np.stack(parts), "is_longer": np.bool_(longer)}

  return op


def _sound(example: Example, rate: int, op: str) -> np.ndarray:
  """Returns the samples of an example; raises InputError if it has none."""
  sound = example["audio"]
  if not (
    isinstance(sound, np.ndarray)
    and sound.ndim == 1
    and np.issubdtype(sound.dtype, np.floating)
  ):
    raise errors.InputError(
      f"preprocess {op}: audio is no float [samples]; put decode_audio({rate}) "
      "before it."
    )
  if int(example.get("rate", rate)) != rate:
    raise errors.InputError(
      f"preprocess {op}: the sound has {example['rate']} samples a second, "
      f"wanted are {rate}; put decode_audio({rate}) before it."
    )
  return sound


def _positive(**sizes: float | None) -> None:
  for name, size in sizes.items():
    if size is not None and size <= 0:
      raise errors.InputError(f"{name} = {size}: must be greater than 0.")


def _filled(sound: np.ndarray, samples: int, padding: str) -> np.ndarray:
  if not len(sound):
    raise CorruptRecord("audio: there is no sample in it; remove the record.")
  times = samples / len(sound)
  if padding == "repeat":
    sound = np.tile(sound, math.ceil(times))[:samples]
  elif padding == "repeatpad":
    sound = np.tile(sound, int(times))
  return np.pad(sound, (0, samples - len(sound)))


def _thirds(starts: int) -> list[tuple[int, int]]:
  """Cuts range(starts) into three; an empty one is (0, 1)."""
  parts = np.array_split(np.arange(starts), 3)
  return [(int(p[0]), int(p[-1]) + 1) if len(p) else (0, 1) for p in parts]


def _squeezed(x: np.ndarray, frames: int) -> np.ndarray:
  """Interpolates [A F] linearly to [frames F], pixel areas aligned."""
  places = (np.arange(frames) + 0.5) * (len(x) / frames) - 0.5
  places = np.clip(places, 0, len(x) - 1)
  lower = np.floor(places).astype(np.int64)
  upper = np.minimum(lower + 1, len(x) - 1)
  part = (places - lower)[:, None]
  return ((1 - part) * x[lower] + part * x[upper]).astype(np.float32)
