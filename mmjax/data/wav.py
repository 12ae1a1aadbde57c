"""Sound from .wav files: float32 in [-1, 1], one channel, at any rate."""

import io
import math
import pathlib
import warnings

import numpy as np
import scipy  # which imports its parts, over a second, when first used

from mmjax import errors


def read(source: bytes | str | pathlib.Path) -> tuple[np.ndarray, int]:
  """Reads a .wav file: integers of 8 to 32 bits, or floats.

  Args:
    source: the file's bytes, or its path.

  Returns:
    float32 [samples], the mean of its channels; and its samples a second.

  Raises:
    InputError: there is no such file.
    ValueError: it is no .wav file, or a damaged one.
  """
  if isinstance(source, bytes):
    file: io.BytesIO | pathlib.Path = io.BytesIO(source)
  else:
    file = pathlib.Path(source)
    if not file.is_file():
      raise errors.InputError(f"sound {str(source)!r}: no such file.")
  try:
    with warnings.catch_warnings():
      # Of chunks that hold no sound: titles, cue points.
      warnings.simplefilter("ignore", scipy.io.wavfile.WavFileWarning)
      rate, data = scipy.io.wavfile.read(file)
  except Exception as error:  # a damaged head raises anything
    raise ValueError(f"no .wav file that can be read ({error})") from error
  return mono(data), rate


def mono(data: np.ndarray) -> np.ndarray:
  """Brings samples [samples] or [samples channels] to float32 [samples].

  Integers are divided by what they can hold, so that 1 is full scale; uint8
  is silent at 128. Floats stay as they are. Channels are averaged.
  """
  if data.dtype == np.uint8:
    found = (data.astype(np.float32) - 128) / 128
  elif np.issubdtype(data.dtype, np.signedinteger):
    found = data / np.float64(-int(np.iinfo(data.dtype).min))
  else:
    found = data
  if found.ndim == 2:
    found = found.mean(1)
  return found.astype(np.float32)


def resample(sound: np.ndarray, rate: int, to: int) -> np.ndarray:
  """Changes the samples a second, by a polyphase filter.

  Args:
    sound: float32 [samples].
    rate: its samples a second.
    to: those of the result.

  Returns:
    float32 [ceil(samples * to / rate)].
  """
  if rate == to:
    return sound
  common = math.gcd(rate, to)
  found = scipy.signal.resample_poly(sound, to // common, rate // common)
  return found.astype(np.float32)
