"""How Whisper's checkpoints say what a text starts with and never holds.

All functions return keywords of `models.whisper`: prompt, in which -1 stands
for a language that is still to be heard, languages, eos_ids, pad_id, suppress,
begin_suppress.
"""

from collections.abc import Mapping
from typing import Any

HEARD = -1

# Numbers in a file of CTranslate2 that are so in every Whisper; 3 is the exact
# GELU.
SCALARS = {
  "decoder/activation": 3,
  "decoder/alibi": 0,
  "decoder/pre_norm": 1,
  "decoder/scale_embeddings": 0,
  "decoder/start_from_zero_embedding": 0,
}

# Vocabularies of the released models: text, end, start, languages, and then
# translate, transcribe, startoflm, startofprev, nospeech, notimestamps, and
# 1,501 times. The English ones end one earlier, but have the languages too.
_RELEASED = {51_864: (50_256, 99), 51_865: (50_257, 99), 51_866: (50_257, 100)}


def of_vocabulary(size: int) -> dict[str, Any]:
  """Returns what the size of a released vocabulary tells; {} of any other."""
  if size not in _RELEASED:
    return {}
  end, count = _RELEASED[size]
  start = end + 1
  languages = tuple(range(start + 1, start + 1 + count))
  translate = start + 1 + count
  transcribe, silent = translate + 1, translate + 5
  several = size > min(_RELEASED)
  return dict(
    prompt=(start, HEARD, transcribe, silent) if several else (start, silent),
    languages=languages if several else (),
    eos_ids=(end,),
    pad_id=end,
    # No text holds marks; OpenAI forbids those of silence by a rule of its own.
    suppress=(start, *range(translate, silent)),
    begin_suppress=(220, end),
  )


def of_ctranslate2(size: int, config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what the vocabulary's size and config.json tell."""
  found = of_vocabulary(size)
  for ours, theirs in (
    ("suppress", "suppress_ids"),
    ("begin_suppress", "suppress_ids_begin"),
  ):
    if config.get(theirs) is not None:
      found[ours] = tuple(config[theirs])
  return found


def of_hub(
  generation: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns what generation_config.json says, and if not it, config.json."""

  def said(name: str, default: Any = None) -> Any:
    found = generation.get(name)
    found = config.get(name) if found is None else found
    return default if found is None else found

  end = said("eos_token_id", ())
  eos_ids = tuple(end) if isinstance(end, list | tuple) else (end,)
  known = generation.get("lang_to_id") or {}
  prompt = _prompt(generation, said, known)
  return dict(
    prompt=prompt,
    languages=tuple(known.values()) if HEARD in prompt else (),
    eos_ids=eos_ids,
    pad_id=said("pad_token_id", next(iter(eos_ids), 0)),
    suppress=tuple(said("suppress_tokens", ())),
    begin_suppress=tuple(said("begin_suppress_tokens", ())),
  )


def _prompt(
  generation: Mapping[str, Any], said: Any, known: Mapping[str, int]
) -> tuple[int, ...]:
  """Returns start, language, task and no timestamps, as the reference does.

  () if there is no start, or a language without an id.
  """
  start = said("decoder_start_token_id")
  if start is None:
    return ()
  prompt = [start]
  task, language = generation.get("task"), generation.get("language")
  tasks = generation.get("task_to_id") or {}
  if language is not None:
    code = known.get(language, known.get(f"<|{language}|>"))
    if code is None:
      return ()
    prompt.append(code)
    task = task or ("transcribe" if "transcribe" in tasks else None)
  elif task is None:
    for place, token in said("forced_decoder_ids", ()):
      if place == len(prompt):
        prompt.append(HEARD if token is None else token)
  if len(prompt) == 1 and known:
    prompt.append(HEARD)
  if task in tasks:
    prompt.append(tasks[task])
  silent = generation.get("no_timestamps_token_id")
  if silent is not None and prompt[-1] != silent:
    prompt.append(silent)
  return tuple(prompt)
