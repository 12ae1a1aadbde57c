"""Files of every sample format; tones that stay what they are."""

import io

import numpy as np
import pytest
from scipy.io import wavfile

from mmjax import errors
from mmjax.data import wav


def file(data, rate=8000):
  out = io.BytesIO()
  wavfile.write(out, rate, data)
  return out.getvalue()


WAVE = 0.5 * np.sin(np.arange(400) / 7)


@pytest.mark.parametrize(
  "data, error",
  [
    (np.round(WAVE * 128 + 128).astype(np.uint8), 1 / 128),
    (np.round(WAVE * 2**15).astype(np.int16), 2**-15),
    (np.round(WAVE * 2**31).astype(np.int32), 1e-7),
    (WAVE.astype(np.float32), 1e-7),
    (WAVE, 1e-7),
  ],
)
def test_sample_formats_are_brought_to_full_scale(data, error, tmp_path):
  sound, rate = wav.read(file(data))
  assert rate == 8000 and sound.dtype == np.float32
  np.testing.assert_allclose(sound, WAVE, atol=error)
  (tmp_path / "x.wav").write_bytes(file(data, 11_025))
  again, rate = wav.read(str(tmp_path / "x.wav"))
  assert rate == 11_025
  np.testing.assert_array_equal(again, sound)


def test_24_bits():
  levels = np.array([0, 1, -1, 2**22, -(2**23)])
  body = b"".join(int(n).to_bytes(3, "little", signed=True) for n in levels)
  head = file(np.zeros(1, np.int16))[:44]
  head = bytearray(head)
  head[4:8] = (36 + len(body)).to_bytes(4, "little")
  head[28:32] = (8000 * 3).to_bytes(4, "little")  # bytes a second
  head[32:36] = b"\x03\x00\x18\x00"  # bytes and bits a sample
  head[40:44] = len(body).to_bytes(4, "little")
  sound, _ = wav.read(bytes(head) + body)
  np.testing.assert_allclose(sound, levels / 2**23, atol=1e-9)


def test_channels_are_averaged():
  data = np.stack([WAVE, 3 * WAVE], axis=1).astype(np.float32)
  sound, _ = wav.read(file(data))
  np.testing.assert_allclose(sound, 2 * WAVE, atol=1e-6)
  integers = np.array([[2**14, 0], [-(2**15), -(2**15)]], np.int16)
  np.testing.assert_allclose(wav.mono(integers), [0.25, -1])


@pytest.mark.parametrize("data", [b"", b"RIFF", b"no sound at all" * 9])
def test_what_is_no_wav(data):
  with pytest.raises(ValueError, match=r"no \.wav file"):
    wav.read(data)


def test_a_file_that_is_not_there_is_named(tmp_path):
  with pytest.raises(errors.InputError, match=r"gone\.wav.*no such file"):
    wav.read(tmp_path / "gone.wav")


@pytest.mark.parametrize(
  "rate, to", [(8000, 16_000), (44_100, 16_000), (16_000, 48_000)]
)
def test_a_tone_stays_a_tone(rate, to):
  x = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
  found = wav.resample(x, rate, to)
  assert found.shape == (to,) and found.dtype == np.float32
  want = np.sin(2 * np.pi * 440 * np.arange(to) / to)
  inner = slice(to // 10, -to // 10)
  np.testing.assert_allclose(found[inner], want[inner], atol=2e-3)
  assert wav.resample(x, rate, rate) is x


def test_what_is_too_high_for_the_rate_vanishes():
  x = np.sin(2 * np.pi * 7000 * np.arange(16_000) / 16_000)
  found = wav.resample(x.astype(np.float32), 16_000, 8000)
  assert np.abs(found[800:-800]).max() < 0.01
