"""Front ends against the hub's, as tools/golden/front_audio.py recorded them."""

import io
import json
import pathlib
import pickle

import numpy as np
import pytest
from scipy.io import wavfile

from mmjax import errors
from mmjax.data import audio_ops, preprocess
from mmjax.data.image_ops import CorruptRecord

FOLDER = pathlib.Path(__file__).parents[1] / "golden" / "front"
TOLERANCE = 1e-5  # of the largest value; double precision here, single there


class Drawn:
  """A generator that draws what the reference drew, if it is in range."""

  def __init__(self, starts):
    self.starts = list(starts)

  def integers(self, low, high=None):
    low, high = (0, low) if high is None else (low, high)
    value = self.starts.pop(0)
    assert low <= value < high
    return value


def case(file, name):
  with np.load(FOLDER / f"{file}.npz") as found:
    fields = {
      key.partition("/")[2]: found[key]
      for key in found.files
      if key.startswith(f"{name}/")
    }
    sound = found["sound"][: int(fields["given"])]
  return sound.astype(np.float32) / 2**15, fields


def run(op, sound, rng=None, **more):
  rng = rng or np.random.default_rng(0)
  return op({"audio": sound, **more}, rng)


def agree(got, fields, tolerance=TOLERANCE):
  want, step = fields["features"], int(fields["step"])
  got = got[..., ::step, :] if step > 1 else got
  if got.shape[-2] > want.shape[-2]:  # the end was not recorded
    got = got[..., : want.shape[-2], :]
  assert got.shape == want.shape and got.dtype == np.float32
  scale = np.abs(want).max()
  np.testing.assert_allclose(got, want, atol=tolerance * scale)
  # The comparison can fail: one frame more or less is seen.
  assert np.abs(got - np.roll(want, 1, -2)).max() > 1e-2 * scale


@pytest.mark.parametrize(
  "name, keywords",
  [
    ("padded", dict(samples=32_000)),
    ("cut", dict(bins=128, samples=16_000)),
    ("thirty", {}),
  ],
)
def test_whisper_hears_what_the_reference_hears(name, keywords):
  sound, fields = case("whisper", name)
  op = audio_ops.whisper_mel(**keywords, lengths="n")
  found = run(op, sound)
  assert len(found["audio"]) == keywords.get("samples", 480_000) // 160
  assert found["n"] == fields["length"] and found["n"].dtype == np.int32
  agree(found["audio"], fields)


def test_whisper_of_any_length():
  sound, fields = case("whisper", "padded")
  op = audio_ops.whisper_mel(samples=None, lengths="n")
  found = run(op, sound)
  assert len(found["audio"]) == found["n"] == len(sound) // 160
  # The end is mirrored instead of silent; what lies before is the same.
  inner = len(sound) // 160 - 2
  np.testing.assert_allclose(
    found["audio"][:inner], fields["features"][:inner], atol=2e-5
  )


@pytest.mark.parametrize(
  "name, keywords",
  [
    ("padded", dict(frames=80)),
    ("cut", dict(bins=64, frames=97, mean=-3.0, std=2.0)),
    ("plain", dict(frames=48, mean=None)),
    ("full", {}),
  ],
)
def test_ast_hears_what_the_reference_hears(name, keywords):
  sound, fields = case("ast", name)
  found = run(audio_ops.ast_fbank(**keywords, lengths="n"), sound)
  assert len(found["audio"]) == keywords.get("frames", 1024)
  frames = (len(sound) - 400) // 160 + 1
  assert found["n"] == min(frames, keywords.get("frames", 1024))
  agree(found["audio"], fields)


@pytest.mark.parametrize(
  "name, keywords",
  [
    ("repeatpad", dict(samples=48_000)),
    ("repeat", dict(samples=48_000, padding="repeat")),
    ("pad", dict(samples=48_000, truncation="fusion", padding="pad")),
    ("exact", dict(samples=24_000)),
    ("rand_trunc", dict(samples=24_000)),
    ("fusion", dict(samples=24_000, truncation="fusion")),
    ("hardly", dict(samples=24_000, truncation="fusion")),
    ("little", dict(samples=24_000, truncation="fusion", low=0.0)),
    ("thirty", {}),
  ],
)
def test_clap_hears_what_the_reference_hears(name, keywords):
  sound, fields = case("clap", name)
  rng = Drawn(fields["starts"])
  found = run(audio_ops.clap_mel(**keywords), sound, rng)
  assert not rng.starts
  if keywords.get("truncation") == "fusion":
    assert found["is_longer"] == fields["longer"]
    agree(found["audio"], fields)
  else:
    assert "is_longer" not in found
    agree(found["audio"][None], fields)


def test_clap_draws_all_places_of_each_third():
  sound, _ = case("clap", "fusion")
  op = audio_ops.clap_mel(samples=38_000, truncation="fusion")
  same = audio_ops.clap_mel(samples=len(sound), truncation="fusion")
  whole = run(same, sound)["audio"][0]
  frames, places = 38_000 // 480 + 1, [set(), set(), set()]
  for seed in range(40):
    audio = run(op, sound, np.random.default_rng(seed))["audio"]
    for part, seen in zip(audio[1:], places, strict=True):
      seen.add(
        next(
          i
          for i in range(len(whole) - frames + 1)
          if np.array_equal(whole[i : i + frames], part)
        )
      )
  assert places == [{0, 1}, {2, 3}, {4}]


def wave(sound, rate):
  out = io.BytesIO()
  wavfile.write(out, rate, sound)
  return out.getvalue()


def test_a_wav_becomes_samples_at_the_rate(tmp_path):
  with np.load(FOLDER / "whisper.npz") as file:
    sound = file["sound"]
  op = audio_ops.decode_audio(16_000)
  found = run(op, wave(sound, 16_000))
  np.testing.assert_array_equal(found["audio"], sound / np.float32(2**15))
  assert found["rate"] == 16_000
  (tmp_path / "x.wav").write_bytes(wave(sound, 16_000))
  again = run(op, str(tmp_path / "x.wav"))["audio"]
  np.testing.assert_array_equal(again, found["audio"])
  # Arrays are at the rate that the example says, or at the one wanted.
  np.testing.assert_array_equal(run(op, sound)["audio"], found["audio"])
  half = run(op, sound, rate=32_000)
  assert len(half["audio"]) == -(-len(sound) // 2) and half["rate"] == 16_000
  assert len(run(op, wave(sound, 48_000))["audio"]) == -(-len(sound) // 3)


@pytest.mark.parametrize("data", [b"", b"no sound", np.zeros(0, np.float32)])
def test_a_corrupt_record(data):
  with pytest.raises(CorruptRecord, match="audio"):
    run(audio_ops.decode_audio(16_000), data)


def test_specs_name_the_operations_and_are_picklable():
  spec = (
    "decode_audio(16000)|whisper_mel(80, samples=32000, lengths='lengths')"
    "|keep('audio', 'lengths')"
  )
  sound, fields = case("whisper", "padded")
  function = pickle.loads(pickle.dumps(preprocess.parse(spec)))
  data = wave(np.round(sound * 2**15).astype(np.int16), 16_000)
  found = function({"audio": data, "text": "x"}, np.random.default_rng(0))
  assert found.keys() == {"audio", "lengths"}
  agree(found["audio"], fields)
  with pytest.raises(errors.InputError, match="whisper_mel"):
    preprocess.parse("whisper_mle(80)")


def test_mistakes_are_named():
  op = audio_ops.whisper_mel()
  with pytest.raises(errors.InputError, match=r"put decode_audio\(16000\)"):
    run(op, b"bytes")
  with pytest.raises(errors.InputError, match="44100 samples a second"):
    run(op, np.zeros(9, np.float32), rate=44_100)
  with pytest.raises(errors.InputError, match="truncation = 'random'"):
    audio_ops.clap_mel(truncation="random")
  with pytest.raises(errors.InputError, match="padding = 'mirror'"):
    audio_ops.clap_mel(padding="mirror")
  with pytest.raises(errors.InputError, match="bins = 0"):
    preprocess.parse("ast_fbank(0)")
  with pytest.raises(CorruptRecord, match="no sample"):
    run(audio_ops.clap_mel(), np.zeros(0, np.float32))


def test_the_recordings_are_what_their_configs_say():
  # The keywords above are no guess: they follow from the recorded configs.
  _, fields = case("clap", "repeatpad")
  config = json.loads(str(fields["config"]))
  assert config["frequency_min"] == 50 and config["nb_max_samples"] == 48_000
