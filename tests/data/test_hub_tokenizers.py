"""Tokenizers of hub folders, against the reference's recorded ids."""

import importlib
import importlib.util
import json
import pathlib
import pickle

import numpy as np
import pytest

from mmjax import errors
from mmjax.data import hub_tokenizers, preprocess, tokenizers

TOOLS = pathlib.Path(__file__).parents[2] / "tools"
_spec = importlib.util.spec_from_file_location(
  "hub_folders", pathlib.Path(__file__).with_name("hub_folders.py")
)
folders = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(folders)


@pytest.mark.parametrize("case", folders.CASES)
def test_equals_the_reference(case, tmp_path):
  tokenizer = hub_tokenizers.load(folders.write(case, tmp_path))
  said, texts = folders.CASES[case], folders.TEXTS
  length, pad = said["length"], tokenizer.pad_id
  assert tokenizer.left == said["left"]

  def padded(ids, value):
    more = [] if pad is None else [value] * (length - len(ids))
    return more + ids if said["left"] else ids + more

  for i, want in enumerate(folders.outputs(case)):
    text, other = texts[i], texts[(i + 1) % len(texts)]
    one = tokenizer.frame(text, length=length)
    two = tokenizer.frame(text, other, length)
    assert tokenizer.encode(text) == want["plain"], text
    assert padded(one.ids, pad) == want["ids"], text
    assert padded(one.types, 0) == want["types"], text
    assert padded(two.ids, pad) == want["pair"]["ids"], text
    assert padded(two.types, 0) == want["pair"]["types"], text
    assert tokenizer.decode(want["ids"]) == want["decoded"], text
    assert max(want["plain"], default=0) < tokenizer.vocab_size


@pytest.mark.parametrize("case", folders.CASES)
def test_as_an_operation_and_in_another_process(case, tmp_path):
  folders.write(case, tmp_path)
  tokenizer = tokenizers.build("hub", path=str(tmp_path))
  length, pad = folders.CASES[case]["length"], tokenizer.pad_id
  spec = (
    f"tokenize_as_trained('t', length={length}, pair='b', types='y', mask='m'"
  )
  spec += ", pad=0)" if pad is None else ")"
  function = preprocess.parse(spec, {"t": tokenizer})
  function = pickle.loads(pickle.dumps(function))
  texts = folders.TEXTS
  example = {"text": texts, "b": [*texts[1:], texts[0]]}
  found = function(example, np.random.default_rng(0))
  assert found["text"].dtype == np.int32
  for row, types, mask, want in zip(
    found["text"],
    found["y"],
    found["m"],
    folders.outputs(case),
    strict=True,
  ):
    if pad is None:  # the reference does not pad then
      row, types = row[: mask.sum()], types[: mask.sum()]
    assert row.tolist() == want["pair"]["ids"]
    assert types.tolist() == want["pair"]["types"]
    if pad is not None and pad != tokenizer.eos_id:
      assert (row[mask == 0] == pad).all()


def test_special_ids(tmp_path):
  tokenizer = hub_tokenizers.load(folders.write("bert_uncased", tmp_path))
  assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 2, 3)
  assert tokenizer.token_id("[MASK]") == 4
  assert tokenizer.token_id("[NOTHING]") is None


def test_old_folders_say_their_tokens_beside(tmp_path):
  folders.write("clip_files", tmp_path, without=["tokenizer_config.json"])
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
  said = {"pad_token": {"content": "!", "lstrip": False}}
  (tmp_path / "special_tokens_map.json").write_text(json.dumps(said))
  (tmp_path / "added_tokens.json").write_text(json.dumps({"<new>": 834}))
  tokenizer = hub_tokenizers.load(tmp_path)
  assert tokenizer.pad_id == tokenizer.token_id("!")
  assert tokenizer.encode("<new>") == [834]
  want = folders.outputs("clip_files")[0]["plain"]
  assert tokenizer.encode(folders.TEXTS[0]) == want


@pytest.mark.parametrize(
  "case, without, changes, says",
  [
    (
      "clip_files",
      [],
      dict(tokenizer_class="CLIPTokeniser"),
      "'CLIPTokenizer'",
    ),
    (
      "clip_files",
      [],
      dict(tokenizer_class="XLNetTokenizer"),
      "XLNetTokenizer",
    ),
    (
      "clip_files",
      [],
      dict(truncation_side="left"),
      "truncation_side = 'left'",
    ),
    ("clip_files", ["merges.txt"], {}, "vocab.json and merges.txt"),
    ("bert_uncased", ["vocab.txt"], {}, "no tokenizer.json.*vocab.txt"),
    ("siglip", ["spiece.model"], {}, "no spiece.model"),
    ("gemma", ["tokenizer.json"], {}, "no tokenizer.model"),
    ("siglip2", ["tokenizer.json"], {}, "no tokenizer.json there; fetch"),
    ("whisper", [], dict(language="german"), "german.*by its code"),
    ("gpt2_files", ["tokenizer_config.json"], {}, "no tokenizer in it"),
  ],
)
def test_what_is_not_there_or_not_known(case, without, changes, says, tmp_path):
  folders.write(case, tmp_path, without=without, **changes)
  with pytest.raises(errors.InputError, match=says):
    hub_tokenizers.load(tmp_path)


def test_damaged_files(tmp_path):
  folders.write("clip_json", tmp_path)
  (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
  with pytest.raises(errors.InputError, match="CLIPTokenizer cannot be read"):
    hub_tokenizers.load(tmp_path)
  (tmp_path / "tokenizer_config.json").write_text("[]")
  with pytest.raises(errors.InputError, match="no JSON object"):
    hub_tokenizers.load(tmp_path)


@pytest.mark.slow
def test_clip_with_its_whole_vocabulary(tmp_path, monkeypatch):
  """Takes it from a package: needs the network."""
  monkeypatch.syspath_prepend(str(TOOLS))
  recorder = importlib.import_module("golden.front_clip_vocabulary")
  recorder.lay_out(tmp_path)
  tokenizer = tokenizers.build("hub", path=str(tmp_path))
  assert tokenizer.vocab_size == 49408
  golden = TOOLS.parent / "tests" / "golden" / "front" / "clip_vocabulary.npz"
  with np.load(golden) as file:
    texts, ids = (json.loads(str(file[key])) for key in ("texts", "ids"))
  assert len(texts) > 50
  for text, want in zip(texts, ids, strict=True):
    assert tokenizer.frame(text, length=77).ids == want, text
