"""From a preprocessor_config.json for sound to a spec of `data/audio_ops.py`.

The reference takes no notice of some fields, and of others only in one
combination. Each field is therefore of one kind here: it goes into the spec;
it must have the one value that we follow; it must agree with the fields that
it is computed from; or it changes nothing. What is none of these is refused.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from mmjax import errors
from mmjax.data import audio_ops

Fields = Mapping[str, Any]

# They change no feature. `return_attention_mask` adds a mask to Whisper's
# features, which its encoder does not read.
_SILENT = {
  "_commit_hash",
  "auto_map",
  "feature_extractor_type",
  "mel_filters",
  "mel_filters_slaney",
  "processor_class",
  "return_attention_mask",
  "transformers_version",
  "window",
}
_PADDED = {"padding_side": "right", "padding_value": 0.0}


def audio_spec(preprocessor: Fields) -> dict[str, str]:
  """Returns {"audio": spec} that does what a preprocessor_config.json says.

  The features are those of WhisperFeatureExtractor ([A F], theirs turned),
  ASTFeatureExtractor or ClapFeatureExtractor. With CLAP's "fusion" the spec
  keeps "is_longer" too; the reference marks one sound of a batch at random if
  none is longer, the spec does not.

  Args:
    preprocessor: what the file says; or processor_config.json, which holds it
      under "feature_extractor".

  Returns:
    {} if the file is empty.

  Raises:
    InputError: a feature extractor or a field's value that we cannot follow;
      names it.
  """
  preprocessor = preprocessor.get("feature_extractor", preprocessor)
  if not preprocessor:
    return {}
  kind = preprocessor.get("feature_extractor_type")
  if kind not in _KINDS:
    raise errors.unknown(
      "preprocessor_config.json feature_extractor_type", kind, _KINDS
    )
  defaults, fixed, derived, silent, write = _KINDS[kind]
  values = {**defaults, **preprocessor}
  for name, value in preprocessor.items():
    if name in fixed and value != fixed[name]:
      raise _refused(
        kind, name, value, f"the spec can do {name} = {fixed[name]!r} only"
      )
    if name not in {*defaults, *fixed, *derived, *silent, *_SILENT}:
      raise errors.unknown(
        f"preprocessor_config.json ({kind}) field",
        name,
        {*defaults, *fixed, *derived},
      )
  spec = write(values)  # checks the values, of which these are computed
  for name in derived.keys() & preprocessor.keys():
    want = derived[name](values)
    if not _same(preprocessor[name], want):
      raise _refused(
        kind,
        name,
        preprocessor[name],
        f"it contradicts other fields, which give {want!r}",
      )
  return {"audio": spec}


def _same(a: Any, b: Any) -> bool:
  return isinstance(a, int | float) and math.isclose(a, b)


def _refused(
  kind: str, name: str, value: object, why: str
) -> errors.InputError:
  return errors.InputError(
    f"preprocessor_config.json ({kind}) {name} = {value!r}: {why}; change the "
    "file if you know better, or give features to the model yourself."
  )


def _whole(kind: str, name: str, value: Any, least: int = 1) -> int:
  """Returns a number that must be a whole one."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise _refused(kind, name, value, "it must be a number")
  if value != int(value) or value < least:
    raise _refused(kind, name, value, f"it must be whole, {least} or more")
  return int(value)


def _number(kind: str, name: str, value: Any) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise _refused(kind, name, value, "it must be a number")
  return float(value)


def _whisper(said: Fields) -> str:
  kind = "WhisperFeatureExtractor"
  bins, hop, size, samples = (
    _whole(kind, name, said[name])
    for name in ("feature_size", "hop_length", "n_fft", "chunk_length")
  )
  samples *= 16_000
  odd = "" if (hop, size) == (160, 400) else f", hop={hop}, size={size}"
  return (
    f"decode_audio(16000)|whisper_mel({bins}, samples={samples}{odd})"
    "|keep('audio')"
  )


def _ast(said: Fields) -> str:
  kind = "ASTFeatureExtractor"
  bins, frames = (
    _whole(kind, name, said[name]) for name in ("num_mel_bins", "max_length")
  )
  mean, std = None, 1.0
  if said["do_normalize"]:
    mean, std = (_number(kind, name, said[name]) for name in ("mean", "std"))
    if std <= 0:
      raise _refused(kind, "std", std, "it must be greater than 0")
  return (
    f"decode_audio(16000)|ast_fbank({bins}, frames={frames}, mean={mean!r}, "
    f"std={std!r})|keep('audio')"
  )


def _clap(said: Fields) -> str:
  kind = "ClapFeatureExtractor"
  for name, known in (
    ("truncation", audio_ops.TRUNCATIONS),
    ("padding", audio_ops.PADDINGS),
  ):
    if said[name] not in known:
      raise errors.unknown(
        f"preprocessor_config.json ({kind}) {name}", said[name], known
      )
  fused = said["truncation"] == "fusion"
  bins, rate, hop, size = (
    _whole(kind, name, said[name])
    for name in (
      "feature_size",
      "sampling_rate",
      "hop_length",
      "fft_window_size",
    )
  )
  if fused and bins != 64:
    raise _refused(
      kind,
      "feature_size",
      bins,
      "truncation = 'fusion' has 64 in the reference",
    )
  seconds = _number(kind, "max_length_s", said["max_length_s"])
  samples = _whole(kind, "max_length_s", seconds * rate)
  low, high = (
    _number(kind, name, said[name])
    for name in ("frequency_min", "frequency_max")
  )
  if not 0 <= low < high <= rate / 2:
    raise _refused(kind, "frequency_max", high, f"not in ({low}, {rate / 2}]")
  keys = "'audio', 'is_longer'" if fused else "'audio'"
  return (
    f"decode_audio({rate})|clap_mel({bins}, samples={samples}, rate={rate}, "
    f"hop={hop}, size={size}, low={low}, high={high}, "
    f"truncation={said['truncation']!r}, padding={said['padding']!r})"
    f"|keep({keys})"
  )


# For each feature extractor: what the reference takes for fields that are not
# there, of those that go into the spec; fields with one value; fields that
# follow from others; fields without any effect; and the spec.
_Kind = tuple[
  Fields,
  Fields,
  Mapping[str, Callable[[Fields], Any]],
  set[str],
  Callable[[Fields], str],
]
_KINDS: dict[str, _Kind] = {
  "WhisperFeatureExtractor": (
    dict(feature_size=80, hop_length=160, n_fft=400, chunk_length=30),
    {**_PADDED, "sampling_rate": 16_000, "dither": 0.0},
    {
      "n_samples": lambda said: said["chunk_length"] * 16_000,
      "nb_max_frames": lambda said: (
        said["chunk_length"] * 16_000 // said["hop_length"]
      ),
    },
    {"do_normalize"},  # an argument of the call there, never a default
    _whisper,
  ),
  "ASTFeatureExtractor": (
    dict(
      num_mel_bins=128,
      max_length=1024,
      do_normalize=True,
      mean=-4.2677393,
      std=4.5689974,
    ),
    # At other rates the reference's two ways differ from each other.
    {**_PADDED, "sampling_rate": 16_000, "feature_size": 1},
    {},
    set(),
    _ast,
  ),
  "ClapFeatureExtractor": (
    dict(
      feature_size=64,
      sampling_rate=48_000,
      hop_length=480,
      max_length_s=10,
      fft_window_size=1024,
      frequency_min=0,
      frequency_max=14_000,
      truncation="fusion",
      padding="repeatpad",
    ),
    {**_PADDED, "top_db": None},
    {
      "n_fft": lambda said: said["fft_window_size"],
      "nb_frequency_bins": lambda said: said["fft_window_size"] // 2 + 1,
      "chunk_length_s": lambda said: said["max_length_s"],
      "nb_max_samples": lambda said: (
        said["max_length_s"] * said["sampling_rate"]
      ),
      "nb_max_frames": lambda said: (
        said["max_length_s"] * said["sampling_rate"] // said["hop_length"]
      ),
    },
    set(),
    _clap,
  ),
}
