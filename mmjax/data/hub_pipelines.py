"""What the model hub's tokenizer classes are made of, as `tokenizers` parts.

A class says how text is cleaned, cut into words and framed by special tokens;
vocabulary and merges come from its files. CLIP, BERT (WordPiece), RoBERTa,
GPT-2 and Whisper (bytes), T5 (Unigram), Gemma and SigLIP 2 (BPE with bytes for
what it does not know).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tokenizers as hf
from tokenizers import decoders, normalizers, processors
from tokenizers import pre_tokenizers as words

from mmjax import errors
from mmjax.data import hub_vocabularies

# What Whisper writes between what was said.
TIMESTAMPS = r"<\|\d+\.\d+\|>"
_CLIP_WORDS = (
  r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
  r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
_END = "<|endoftext|>"


class Family(NamedTuple):
  """A class of tokenizers.

  Attributes:
    tokens: its special tokens by role: "bos", "eos", "unk", "sep", "pad",
      "cls", "mask".
    configure: gives a pipeline the class's cleaning, words, decoder and frame;
      takes the special tokens by role and tokenizer_config.json, too.
    model: makes a pipeline of the content of `files`, the special tokens and
      tokenizer_config.json; None if only tokenizer.json holds it.
    files: what there may be in place of a tokenizer.json.
    left: it pads on the left.
    strip: decoded text has no spaces around it.
    hidden: regular expression of what is no text in decoded text.
  """

  tokens: Mapping[str, str]
  configure: Callable[[hf.Tokenizer, Mapping[str, str], Mapping], None]
  model: Callable[..., hf.Tokenizer] | None = None
  files: Sequence[str] = ()
  left: bool = False
  strip: bool = False
  hidden: str | None = None


def _frame(
  pipeline: hf.Tokenizer, single: str, pair: str, tokens: list[str]
) -> None:
  ids = [
    (token, pipeline.token_to_id(token)) for token in dict.fromkeys(tokens)
  ]
  pipeline.post_processor = processors.TemplateProcessing(
    single=single, pair=pair, special_tokens=ids
  )


def frame_by_flags(
  pipeline: hf.Tokenizer, tokens: Mapping[str, str], config: Mapping[str, Any]
) -> None:
  """Frames texts by "add_bos_token" and "add_eos_token", where they are said.

  Without them the frame of tokenizer.json stays.
  """
  flags = [config.get(f"add_{role}_token") for role in ("bos", "eos")]
  if pipeline.post_processor is not None and flags == [None, None]:
    return
  bos, eos = (
    [tokens[role]] if flag and role in tokens else []
    for role, flag in zip(("bos", "eos"), flags, strict=True)
  )

  def around(text: str, kind: int) -> list[str]:
    return [f"{x}:{kind}" for x in (*bos, text, *eos)]

  single = around("$A", 0)
  _frame(
    pipeline,
    " ".join(single),
    " ".join(single + around("$B", 1)),
    bos + eos,
  )


def _clip(pipeline, tokens, config) -> None:
  pipeline.normalizer = normalizers.Sequence(
    [
      normalizers.NFC(),
      normalizers.Replace(hf.Regex(r"\s+"), " "),
      normalizers.Lowercase(),
    ]
  )
  pipeline.pre_tokenizer = words.Sequence(
    [
      words.Split(hf.Regex(_CLIP_WORDS), "removed", invert=True),
      words.ByteLevel(add_prefix_space=False),
    ]
  )
  pipeline.decoder = decoders.Sequence(
    [decoders.ByteLevel(), decoders.Replace("</w>", " ")]
  )
  _like_roberta(pipeline, tokens["eos"], tokens["bos"])


def _bert(pipeline, tokens, config) -> None:
  pipeline.normalizer = normalizers.BertNormalizer(
    clean_text=True,
    handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    strip_accents=config.get("strip_accents"),
    lowercase=config.get("do_lower_case", True),
  )
  pipeline.pre_tokenizer = words.BertPreTokenizer()
  pipeline.decoder = decoders.WordPiece(prefix="##")
  cls, sep = tokens["cls"], tokens["sep"]
  single = f"{cls}:0 $A:0 {sep}:0"
  _frame(pipeline, single, f"{single} $B:1 {sep}:1", [cls, sep])


def _bytes(pipeline, config) -> None:
  spaced = bool(config.get("add_prefix_space", False))
  pipeline.normalizer = None
  pipeline.pre_tokenizer = words.ByteLevel(add_prefix_space=spaced)
  pipeline.decoder = decoders.ByteLevel()


def _roberta(pipeline, tokens, config) -> None:
  _bytes(pipeline, config)
  _like_roberta(pipeline, tokens["sep"], tokens["cls"])


def _like_roberta(pipeline, sep: str, cls: str) -> None:
  pipeline.post_processor = processors.RobertaProcessing(
    (sep, pipeline.token_to_id(sep)),
    (cls, pipeline.token_to_id(cls)),
    trim_offsets=False,
    add_prefix_space=False,
  )


def _gpt2(pipeline, tokens, config) -> None:
  _bytes(pipeline, config)
  frame_by_flags(pipeline, tokens, config)


def _whisper(pipeline, tokens, config) -> None:
  _bytes(pipeline, config)
  names = ["startoftranscript", config.get("language"), config.get("task")]
  if not config.get("predict_timestamps", False):
    names.append("notimestamps")
  first = [f"<|{name}|>" for name in names if name]
  for token in first:
    if pipeline.token_to_id(token) is None:
      raise errors.InputError(
        f"tokenizer_config.json: it asks for the token {token!r}, which the "
        "tokenizer has not; a language is given by its code, such as 'en'."
      )
  before = " ".join(f"{token}:0" for token in first)
  _frame(
    pipeline,
    f"{before} $A:0 {tokens['eos']}:0",
    f"{before} $A:0 $B:1 {tokens['eos']}:1",
    [*first, tokens["eos"]],
  )


def _t5(pipeline, tokens, config) -> None:
  pipeline.pre_tokenizer = words.Sequence(
    [words.WhitespaceSplit(), words.Metaspace(prepend_scheme="always")]
  )
  pipeline.decoder = decoders.Metaspace(prepend_scheme="always")
  eos = tokens["eos"]
  _frame(pipeline, f"$A:0 {eos}:0", f"$A:0 {eos}:0 $B:0 {eos}:0", [eos])


def _gemma(pipeline, tokens, config) -> None:
  pipeline.normalizer = normalizers.Replace(" ", "\u2581")
  pipeline.pre_tokenizer = words.Split(" ", "merged_with_previous")
  pipeline.decoder = decoders.Sequence(
    [
      decoders.Replace("\u2581", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
    ]
  )
  frame_by_flags(pipeline, tokens, config)


def _siglip2(pipeline, tokens, config) -> None:
  _gemma(pipeline, tokens, config)
  pipeline.normalizer = normalizers.Sequence(
    [normalizers.Lowercase(), pipeline.normalizer]
  )


_BPE_FILES = ("vocab.json", "merges.txt")
_GEMMA = dict(bos="<bos>", eos="<eos>", unk="<unk>", pad="<pad>", mask="<mask>")
FAMILIES = {
  "BertTokenizer": Family(
    dict(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]"),
    _bert,
    hub_vocabularies.wordpiece_model,
    ("vocab.txt",),
  ),
  "CLIPTokenizer": Family(
    dict(bos="<|startoftext|>", eos=_END, unk=_END, pad=_END),
    _clip,
    hub_vocabularies.clip_model,
    _BPE_FILES,
    strip=True,
  ),
  "GPT2Tokenizer": Family(
    dict(bos=_END, eos=_END, unk=_END),
    _gpt2,
    hub_vocabularies.byte_model,
    _BPE_FILES,
  ),
  "GemmaTokenizer": Family(_GEMMA, _gemma, left=True),
  "PreTrainedTokenizer": Family({}, frame_by_flags),  # all in its file
  "RobertaTokenizer": Family(
    dict(
      bos="<s>",
      eos="</s>",
      unk="<unk>",
      sep="</s>",
      pad="<pad>",
      cls="<s>",
      mask="<mask>",
    ),
    _roberta,
    hub_vocabularies.byte_model,
    _BPE_FILES,
  ),
  "Siglip2Tokenizer": Family(_GEMMA, _siglip2, left=True),
  "T5Tokenizer": Family(
    dict(eos="</s>", unk="<unk>", pad="<pad>"),
    _t5,
    hub_vocabularies.t5_model,
    ("spiece.model",),
  ),
  "WhisperTokenizer": Family(
    dict(bos=_END, eos=_END, unk=_END),
    _whisper,
    hub_vocabularies.byte_model,
    _BPE_FILES,
    hidden=TIMESTAMPS,
  ),
}
# Other names of the same.
ALIASES = {
  "BartTokenizer": "RobertaTokenizer",
  "DistilBertTokenizer": "BertTokenizer",
  "ElectraTokenizer": "BertTokenizer",
  "LongformerTokenizer": "RobertaTokenizer",
  "LxmertTokenizer": "BertTokenizer",
  "TokenizersBackend": "PreTrainedTokenizer",
}
# The class of folders that do not name one, by model_type.
OF_MODELS = {
  "bart": "RobertaTokenizer",
  "bert": "BertTokenizer",
  "blip": "BertTokenizer",
  "clap": "RobertaTokenizer",
  "clip": "CLIPTokenizer",
  "gemma": "GemmaTokenizer",
  "gpt2": "GPT2Tokenizer",
  "gpt_neo": "GPT2Tokenizer",
  "lxmert": "BertTokenizer",
  "paligemma": "GemmaTokenizer",
  "roberta": "RobertaTokenizer",
  "siglip": "SiglipTokenizer",
  "t5": "T5Tokenizer",
  "vilt": "BertTokenizer",
  "whisper": "WhisperTokenizer",
}
