"""Specs from recorded configs give the recorded features; the rest is named."""

import json
import pathlib

import numpy as np
import pytest

from mmjax import errors
from mmjax.data import preprocess
from mmjax.weights import audio_front

FOLDER = pathlib.Path(__file__).parents[1] / "golden" / "front"
WHISPER = {"feature_extractor_type": "WhisperFeatureExtractor"}
AST = {"feature_extractor_type": "ASTFeatureExtractor"}
CLAP = {"feature_extractor_type": "ClapFeatureExtractor"}
# laion/clap-htsat-unfused, as published.
UNFUSED = CLAP | {
  "chunk_length_s": 10,
  "feature_size": 64,
  "fft_window_size": 1024,
  "frequency_max": 14000,
  "frequency_min": 50,
  "hop_length": 480,
  "max_length_s": 10,
  "n_fft": 1024,
  "nb_frequency_bins": 513,
  "nb_max_frames": 1000,
  "nb_max_samples": 480000,
  "padding": "repeatpad",
  "padding_side": "right",
  "padding_value": 0.0,
  "processor_class": "ClapProcessor",
  "return_attention_mask": False,
  "sampling_rate": 48000,
  "top_db": None,
  "truncation": "rand_trunc",
}


class Drawn:
  def __init__(self, starts):
    self.starts = list(starts)

  def integers(self, low, high=None):
    return self.starts.pop(0)


CASES = [
  (file, name)
  for file, names in (
    ("whisper", ("padded", "cut", "thirty")),
    ("ast", ("padded", "cut", "plain", "full")),
    ("clap", ("repeatpad", "repeat", "pad", "rand_trunc", "fusion", "little")),
  )
  for name in names
]


@pytest.mark.parametrize("file, name", CASES)
def test_the_spec_of_a_recorded_config_gives_its_features(file, name):
  with np.load(FOLDER / f"{file}.npz") as found:
    config = json.loads(str(found[f"{name}/config"]))
    sound = found["sound"][: int(found[f"{name}/given"])]
    want, step = found[f"{name}/features"], int(found[f"{name}/step"])
    starts = found[f"{name}/starts"] if file == "clap" else []
  spec = audio_front.audio_spec(config)["audio"]
  out = preprocess.parse(spec)({"audio": sound}, Drawn(starts))
  got = out["audio"][..., ::step, :][..., : want.shape[-2], :]
  fused = config.get("truncation") == "fusion"
  assert out.keys() == ({"audio", "is_longer"} if fused else {"audio"})
  if file == "clap" and not fused:
    got = got[None]
  assert got.shape == want.shape
  np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_what_is_not_said_is_the_references_default():
  spec = audio_front.audio_spec
  assert spec(WHISPER) == {
    "audio": "decode_audio(16000)|whisper_mel(80, samples=480000)|keep('audio')"
  }
  assert spec(AST)["audio"].startswith(
    "decode_audio(16000)|ast_fbank(128, frames=1024, mean=-4.2677393, "
    "std=4.5689974)"
  )
  assert "low=0.0, high=14000.0, truncation='fusion'" in spec(CLAP)["audio"]
  unfused = spec(UNFUSED)["audio"]
  assert "low=50.0, high=14000.0, truncation='rand_trunc'" in unfused
  odd = spec(WHISPER | {"hop_length": 200, "n_fft": 512})["audio"]
  assert "hop=200, size=512" in odd
  assert spec({}) == {}
  whole = {"feature_extractor": AST, "processor_class": "X"}
  assert spec(whole) == spec(AST)


def test_fields_without_effect_have_none():
  more = {"mel_filters": [[0.1]], "return_attention_mask": True}
  assert audio_front.audio_spec(WHISPER | more) == (
    audio_front.audio_spec(WHISPER)
  )


@pytest.mark.parametrize(
  "config, name",
  [
    (WHISPER | {"sampling_rate": 8000}, "sampling_rate = 8000"),
    (WHISPER | {"dither": 0.1}, "dither = 0.1"),
    (WHISPER | {"padding_side": "left"}, "padding_side = 'left'"),
    (WHISPER | {"padding_value": 1.0}, "padding_value = 1.0"),
    (WHISPER | {"n_samples": 1}, "n_samples = 1: .* give 480000"),
    (WHISPER | {"nb_max_frames": 1500}, "nb_max_frames = 1500"),
    (WHISPER | {"feature_size": "80"}, "feature_size = '80'"),
    (WHISPER | {"chunk_length": 0}, "chunk_length = 0"),
    (WHISPER | {"chunk_lenght": 3}, "chunk_lenght.*chunk_length"),
    (AST | {"sampling_rate": 44100}, "sampling_rate = 44100"),
    (AST | {"std": 0.0}, "std = 0.0"),
    (AST | {"max_length": 10.5}, "max_length = 10.5"),
    (AST | {"mean": None}, "mean = None"),
    (CLAP | {"truncation": "cut"}, "truncation = 'cut'"),
    (CLAP | {"padding": "mirror"}, "padding = 'mirror'"),
    (CLAP | {"top_db": 80}, "top_db = 80"),
    (CLAP | {"feature_size": 128}, "feature_size = 128"),
    (CLAP | {"frequency_max": 30_000}, "frequency_max = 30000"),
    (CLAP | {"nb_max_samples": 1}, "nb_max_samples = 1"),
    (CLAP | {"n_fft": 512}, "n_fft = 512"),
    ({"feature_extractor_type": "EncodecFeatureExtractor"}, "EncodecFeature"),
    ({"sampling_rate": 16_000}, "feature_extractor_type = None"),
  ],
)
def test_what_we_cannot_follow_is_named(config, name):
  with pytest.raises(errors.InputError, match=name):
    audio_front.audio_spec(config)
