"""Mel scales against their definitions; spectra against sums written out."""

import numpy as np
import pytest

from mmjax import errors
from mmjax.data import mel


@pytest.mark.parametrize("scale", mel.SCALES)
def test_scales_come_back(scale):
  hertz = np.array([0.0, 20, 440, 999, 1000, 1001, 6400, 14_000])
  mels = mel.to_mel(hertz, scale)
  assert (np.diff(mels) > 0).all()
  np.testing.assert_allclose(mel.to_hertz(mels, scale), hertz, atol=1e-9)


def test_scales_at_points_of_their_definitions():
  # 1000 Hz are 1000 mels of HTK and of Kaldi, nearly, and 15 of Slaney's,
  # whose 6.4 kHz are 27 further.
  np.testing.assert_allclose(mel.to_mel(1000.0, "htk"), 999.9855, atol=1e-3)
  np.testing.assert_allclose(mel.to_mel(1000.0, "kaldi"), 999.9907, atol=1e-2)
  np.testing.assert_allclose(
    mel.to_mel([200.0, 1000, 6400], "slaney"), [3, 15, 42], atol=1e-12
  )


def test_filters_are_triangles_between_their_neighbours():
  bank = mel.filters(20, 16_000, 2048, 100, 7000, "htk")
  assert bank.shape == (1025, 20)
  corners = mel.to_hertz(
    np.linspace(mel.to_mel(100, "htk"), mel.to_mel(7000, "htk"), 22), "htk"
  )
  hertz = np.arange(1025) * 16_000 / 2048
  for i in range(20):
    want = np.interp(hertz, corners[i : i + 3], [0, 1, 0], 0, 0)
    np.testing.assert_allclose(bank[:, i], want, atol=1e-12)
  equal = mel.filters(20, 16_000, 2048, 100, 7000, "htk", equal_area=True)
  # Each then has the integral 1 over Hz.
  np.testing.assert_allclose(equal.sum(0) * 16_000 / 2048, 1, rtol=0.05)
  with pytest.raises(ValueError, match="read-only"):
    bank[0, 0] = 1


def test_filters_over_mels_are_straight_there():
  bank = mel.filters(9, 16_000, 512, 20, 8000, "kaldi", in_mels=True)
  places = mel.to_mel(np.arange(257) * 31.25, "kaldi")
  corners = np.linspace(
    mel.to_mel(20.0, "kaldi"), mel.to_mel(8000.0, "kaldi"), 11
  )
  for i in range(9):
    want = np.interp(places, corners[i : i + 3], [0, 1, 0], 0, 0)
    np.testing.assert_allclose(bank[:, i], want, atol=1e-12)


@pytest.mark.parametrize("centre", [True, False])
def test_spectrum_is_the_transform_of_each_frame(centre):
  rng = np.random.default_rng(0)
  sound = rng.normal(size=103)
  window = mel.hann(16)
  bank = np.eye(11)  # of a transform of 20 samples
  found = mel.spectrum(
    sound, window, 7, bank, centre=centre, preemphasis=0.9, remove_mean=True
  )
  where = np.arange(-8, 103 + 8) if centre else np.arange(103)
  whole = sound[np.where(where < 0, -where, np.minimum(where, 204 - where))]
  starts = range(0, len(whole) - 15, 7)
  assert found.shape == (len(starts), 11)
  angles = np.outer(np.arange(11), np.arange(16)) / 20
  wave = np.exp(-2j * np.pi * angles)
  for row, start in zip(found, starts, strict=True):
    x = whole[start : start + 16]
    x = x - x.mean()
    x = np.array([x[0] * 0.1, *(x[1:] - 0.9 * x[:-1])]) * window
    np.testing.assert_allclose(row, np.abs(wave @ x) ** 2, atol=1e-10)


def test_long_sounds_are_the_same_in_parts():
  sound = np.random.default_rng(1).normal(size=9000)
  bank = mel.filters(8, 16_000, 16, 0, 8000, "htk")
  whole = mel.spectrum(sound, mel.hann(16), 4, bank, centre=False)
  assert len(whole) > 2 * mel._CHUNK
  later = mel.spectrum(sound[4 * 1500 :], mel.hann(16), 4, bank, centre=False)
  np.testing.assert_allclose(whole[1500:], later, rtol=1e-12)


def test_hann_windows():
  np.testing.assert_allclose(mel.hann(4), [0, 0.5, 1, 0.5], atol=1e-15)
  assert mel.hann(5, periodic=False)[-1] < 1e-15


def test_too_short_or_out_of_order_says_so():
  bank = mel.filters(2, 16_000, 16, 0, 8000, "htk")
  with pytest.raises(errors.InputError, match=r"8 samples.*give 9 or more"):
    mel.spectrum(np.ones(8), mel.hann(16), 4, bank)
  none = mel.spectrum(np.ones(15), mel.hann(16), 4, bank, centre=False)
  assert none.shape == (0, 2)
  with pytest.raises(errors.InputError, match="between 0 and 8000"):
    mel.filters(4, 16_000, 512, 0, 9000, "htk")
  with pytest.raises(errors.InputError, match="slaney"):
    mel.filters(4, 16_000, 512, 0, 8000, "slany")
