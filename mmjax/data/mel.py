"""Mel filters and mel spectra of sound, in numpy: no parameters, no examples.

Three scales are in use, and checkpoints depend on which one was: Slaney's
(Auditory Toolbox, linear below 1 kHz), HTK's and Kaldi's. Everything here is
computed in float64; the front ends of `audio_ops.py` round their results.
"""

import functools

import numpy as np

from mmjax import errors

SCALES = ("slaney", "htk", "kaldi")
_CHUNK = 1024  # frames that are in memory at a time

# Slaney: 3 mels a 200 Hz up to 1 kHz, then 27 for each factor of 6.4.
_BREAK, _LINEAR, _LOG = 1000.0, 3 / 200, 27 / np.log(6.4)
_MELS = _BREAK * _LINEAR


def to_mel(hertz: np.ndarray | float, scale: str) -> np.ndarray:
  """Maps frequencies in Hz to mels.

  Raises:
    InputError: unknown scale.
  """
  hertz = np.asarray(hertz, np.float64)
  if scale == "htk":
    return 2595.0 * np.log10(1.0 + hertz / 700.0)
  if scale == "kaldi":
    return 1127.0 * np.log1p(hertz / 700.0)
  if scale != "slaney":
    raise errors.unknown("mel scale", scale, SCALES)
  above = np.log(np.maximum(hertz, _BREAK) / _BREAK) * _LOG
  return np.where(hertz < _BREAK, hertz * _LINEAR, _MELS + above)


def to_hertz(mels: np.ndarray | float, scale: str) -> np.ndarray:
  """Maps mels to frequencies in Hz; undoes `to_mel`."""
  mels = np.asarray(mels, np.float64)
  if scale == "htk":
    return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
  if scale == "kaldi":
    return 700.0 * np.expm1(mels / 1127.0)
  if scale != "slaney":
    raise errors.unknown("mel scale", scale, SCALES)
  above = _BREAK * np.exp((np.maximum(mels, _MELS) - _MELS) / _LOG)
  return np.where(mels < _MELS, mels / _LINEAR, above)


@functools.lru_cache(maxsize=16)
def filters(
  bins: int,
  rate: int,
  size: int,
  low: float,
  high: float,
  scale: str,
  *,
  equal_area: bool = False,
  in_mels: bool = False,
) -> np.ndarray:
  """Computes triangular filters whose corners are equally spaced in mels.

  Args:
    bins: number of filters.
    rate: samples a second.
    size: of the Fourier transform, samples.
    low: where the first filter begins, Hz.
    high: where the last one ends, Hz.
    scale: one of `SCALES`.
    equal_area: divide each by half its width in Hz (Slaney); else all have
      the height 1.
    in_mels: the sides are straight over mels, as in Kaldi, not over Hz.

  Returns:
    float64 [size/2 + 1, bins], read-only. A filter may be so narrow that no
    frequency of the transform falls into it; it then hears nothing, as some
    of AST's.

  Raises:
    InputError: an unknown scale, or frequencies in no order.
  """
  if not 0 <= low < high <= rate / 2:
    raise errors.InputError(
      f"mel filters from low = {low} to high = {high} Hz: at {rate} samples a "
      f"second they must lie between 0 and {rate / 2:g}, the lower first."
    )
  corners = np.linspace(to_mel(low, scale), to_mel(high, scale), bins + 2)
  places = np.arange(size // 2 + 1) * (rate / size)
  if in_mels:
    places = to_mel(places, scale)
    hertz = to_hertz(corners, scale)
  else:
    hertz = corners = to_hertz(corners, scale)
  away = corners[None, :] - places[:, None]
  widths = np.diff(corners)
  rising = -away[:, :-2] / widths[:-1]
  falling = away[:, 2:] / widths[1:]
  found = np.maximum(0.0, np.minimum(rising, falling))
  if equal_area:
    found *= 2.0 / (hertz[2:] - hertz[:-2])
  found.flags.writeable = False
  return found


@functools.lru_cache(maxsize=16)
def hann(length: int, periodic: bool = True) -> np.ndarray:
  """Returns a Hann window; periodic leaves out the last, repeated, zero."""
  window = np.hanning(length + 1)[:-1] if periodic else np.hanning(length)
  window.flags.writeable = False
  return window


def spectrum(
  sound: np.ndarray,
  window: np.ndarray,
  hop: int,
  bank: np.ndarray,
  *,
  centre: bool = True,
  preemphasis: float = 0.0,
  remove_mean: bool = False,
) -> np.ndarray:
  """Computes the power in each mel filter at each step of time.

  Args:
    sound: [samples].
    window: multiplies each frame, whose length it gives; frames are filled up
      with zeros to the transform's size, which the bank gives.
    hop: samples from one frame to the next.
    bank: from `filters`.
    centre: frame a has its middle at sample a * hop, where the sound is
      mirrored beyond both ends; False begins it there, and leaves out what
      fills no frame.
    preemphasis: p: from each sample of a frame p times the one before is
      taken, from the first one p times itself.
    remove_mean: from each frame, before anything else.

  Returns:
    float64 [A bins].

  Raises:
    InputError: a sound too short to be mirrored.
  """
  length, size = len(window), 2 * (len(bank) - 1)
  if centre:
    if len(sound) <= length // 2:
      raise errors.InputError(
        f"a sound of {len(sound)} samples is too short for frames of {length} "
        f"samples around their middle: give {length // 2 + 1} or more, or fill "
        "it up."
      )
    sound = np.pad(sound, length // 2, mode="reflect")
  if len(sound) < length:
    return np.zeros((0, bank.shape[1]))
  frames = np.lib.stride_tricks.sliding_window_view(sound, length)[::hop]
  parts = []
  for start in range(0, len(frames), _CHUNK):
    x = frames[start : start + _CHUNK].astype(np.float64)
    if remove_mean:
      x -= x.mean(1, keepdims=True)
    if preemphasis:
      before = np.concatenate([x[:, :1], x[:, :-1]], axis=1)
      x -= preemphasis * before
    y = np.fft.rfft(x * window, n=size, axis=1)
    parts.append((y.real**2 + y.imag**2) @ bank)
  return np.concatenate(parts)
