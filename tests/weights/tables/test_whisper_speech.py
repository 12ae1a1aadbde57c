"""What the released configs mean, as the reference reads them."""

import pytest

from mmjax.weights.tables import whisper_speech as speech

# openai/whisper-tiny.en and whisper-tiny, generation_config.json, in short.
ENGLISH = dict(
  decoder_start_token_id=50257,
  forced_decoder_ids=[[1, 50362]],
  no_timestamps_token_id=50362,
  eos_token_id=50256,
  pad_token_id=50256,
  suppress_tokens=[1, 2],
  begin_suppress_tokens=[220, 50256],
)
SEVERAL = dict(
  decoder_start_token_id=50258,
  forced_decoder_ids=[[1, None], [2, 50359]],
  no_timestamps_token_id=50363,
  eos_token_id=50257,
  lang_to_id={"<|en|>": 50259, "<|de|>": 50261},
  task_to_id={"transcribe": 50359, "translate": 50358},
)


def test_english_only():
  found = speech.of_hub(ENGLISH, {})
  assert found == dict(
    prompt=(50257, 50362),
    languages=(),
    eos_ids=(50256,),
    pad_id=50256,
    suppress=(1, 2),
    begin_suppress=(220, 50256),
  )
  # Older directories say it in config.json.
  assert speech.of_hub({}, ENGLISH) == found


@pytest.mark.parametrize(
  "change, prompt",
  [
    ({}, (50258, -1, 50359, 50363)),
    ({"language": "de"}, (50258, 50261, 50359, 50363)),
    (
      {"language": "<|en|>", "task": "translate"},
      (50258, 50259, 50358, 50363),
    ),
    ({"task": "translate"}, (50258, -1, 50358, 50363)),
    ({"forced_decoder_ids": None}, (50258, -1, 50363)),
    ({"no_timestamps_token_id": None}, (50258, -1, 50359)),
    ({"language": "xx"}, ()),
    ({"decoder_start_token_id": None}, ()),
  ],
)
def test_several_languages(change, prompt):
  found = speech.of_hub({**SEVERAL, **change}, {})
  assert found["prompt"] == prompt
  assert found["languages"] == ((50259, 50261) if -1 in prompt else ())


def test_a_released_vocabulary_tells_its_marks():
  english, first, third = map(speech.of_vocabulary, (51864, 51865, 51866))
  assert english["prompt"] == (50257, 50362) and not english["languages"]
  assert english["eos_ids"] == (50256,)
  assert first["prompt"] == (50258, -1, 50359, 50363)
  assert first["languages"] == tuple(range(50259, 50358))
  assert first["suppress"] == (50258, *range(50358, 50363))
  assert third["prompt"] == (50258, -1, 50360, 50364)
  assert speech.of_vocabulary(53) == {}


def test_ctranslate2_names_what_is_no_speech():
  config = dict(suppress_ids=[1, 7], suppress_ids_begin=None)
  found = speech.of_ctranslate2(51864, config)
  assert found["suppress"] == (1, 7)
  assert found["begin_suppress"] == (220, 50256)
  assert found["prompt"] == (50257, 50362)
