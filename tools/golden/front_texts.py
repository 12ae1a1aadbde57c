"""Texts as the hub's tokenizers encode them, with small trained vocabularies.

Recorded in tests/golden/front/texts.npz:

  texts              JSON: sentences
  cases              JSON: {case: {"files": {name: n}, "length": m, "left":
                     whether it pads on the left}}
  file/<n>           bytes of a file, uint8 [n]; "files" of a case names those
                     of its folder
  output/<case>      JSON: for each text {"plain": ids without special tokens,
                     "ids": padded and cut, "types", "pair": {"ids", "types"}
                     with the next text, "decoded": of the ids}
"""

import io
import json
import pathlib
import tempfile

import numpy as np
from make_golden import FOLDER

LENGTH = 19
TEXTS = [
  "a photo of a cat",
  "A Photo of TWO cats, and 3 dogs!",
  "It's a dog's life; they'll say we've won't, I'd guess.",
  "  two  spaces\tand a tab\nand a line ",
  "Crème brûlée à la façon de l'École, naïve Ångström",
  "Cre\u0300me e\u0301cole",  # decomposed
  "赤い猫と青い犬。東京タワー 2024年",
  "смешанный text ελληνικά עברית العربية",
  "\U0001f600 emoji \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f!",
  "12345 3.14 1,000,000 x2 ½ ²",
  "control \x00\x07 chars \u200b zero\ufeff width\u00a0space\u3000wide",
  "quotes \u201cdouble\u201d \u2018single\u2019 \u2014 dash &amp; &lt;b&gt;",
  "under_score hyphen-ated #tag @user http://a.b/c?d=e",
  "",
  " ",
  "...!!!???",
  "İstanbul STRASSE straße ﬁne Ⅳ \uff46\uff55\uff4c\uff4c",
  "special <|endoftext|> [SEP] </s> <pad> tokens <mask> inside",
  "a very long text that goes on and on and on about the cats and the dogs, "
  "the red house by the lake, and the old tree that stands in front of it",
  "supercalifragilisticexpialidocious antidisestablishmentarianism",
  "\u2581underline \u2581 of pieces",
  "<extra_id_0> walks in <extra_id_1> park",
]
CORPUS = [
  *TEXTS[:9],
  "the red house by the lake, and the old tree that stands in front of it",
  "a photo of the two cats and the three dogs on the red sofa",
  "an image of the city at night with tall towers and bright lights",
  "It's not what they said, we've seen that they'll do it and I'd say so",
  "the quick brown fox jumps over the lazy dog in the garden",
] * 4
CLIP_SPECIALS = ["<|startoftext|>", "<|endoftext|>"]
BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def make() -> None:
  """Records the cases."""
  import transformers

  transformers.logging.set_verbosity_error()
  cases, arrays, blobs = {}, {}, []
  for name, cls, files, config in _cases():
    with tempfile.TemporaryDirectory() as folder:
      root = pathlib.Path(folder)
      config = {"tokenizer_class": cls, **config}
      files = {**files, "tokenizer_config.json": json.dumps(config).encode()}
      for file, data in files.items():
        (root / file).write_bytes(data)
        if data not in blobs:
          blobs.append(data)
      tokenizer = _reference(cls).from_pretrained(folder)
      found = [_record(tokenizer, i) for i in range(len(TEXTS))]
    left = tokenizer.padding_side == "left"
    named = {file: blobs.index(data) for file, data in files.items()}
    cases[name] = dict(length=LENGTH, left=left, files=named)
    arrays[f"output/{name}"] = np.array(json.dumps(found))
  folder = FOLDER / "front"
  folder.mkdir(exist_ok=True)
  np.savez_compressed(
    folder / "texts.npz",
    allow_pickle=False,
    texts=np.array(json.dumps(TEXTS)),
    cases=np.array(json.dumps(cases)),
    **{f"file/{n}": np.frombuffer(x, np.uint8) for n, x in enumerate(blobs)},
    **arrays,
  )
  size = (folder / "texts.npz").stat().st_size
  print(f"front/texts: {len(cases)} cases, {size / 1024:.0f} KiB")


def _record(tokenizer, i: int) -> dict:
  text, other = TEXTS[i], TEXTS[(i + 1) % len(TEXTS)]
  padded = dict(truncation=True, max_length=LENGTH)
  if tokenizer.pad_token is not None:
    padded["padding"] = "max_length"
  one = tokenizer(text, return_token_type_ids=True, **padded)
  # In lists, since an empty second text that stands alone counts as none.
  two = tokenizer([text], [other], return_token_type_ids=True, **padded)
  return dict(
    plain=tokenizer.encode(text, add_special_tokens=False),
    ids=one["input_ids"],
    types=one["token_type_ids"],
    pair=dict(ids=two["input_ids"][0], types=two["token_type_ids"][0]),
    decoded=tokenizer.decode(one["input_ids"], skip_special_tokens=True),
  )


def _reference(cls: str):
  import transformers

  return getattr(transformers, cls)


def _cases():
  """Yields name, class, files, tokenizer_config."""
  clip = _clip()
  yield "clip_files", "CLIPTokenizer", clip, {}
  saved = _saved("CLIPTokenizer", clip, dict(pad_token="!"))
  yield "clip_json", "CLIPTokenizer", saved, dict(pad_token="!")

  cased, uncased = _wordpiece(False), _wordpiece(True)
  yield "bert_uncased", "BertTokenizer", uncased, {}
  yield "bert_cased", "BertTokenizer", cased, dict(do_lower_case=False)
  options = dict(strip_accents=False, tokenize_chinese_chars=False)
  yield "bert_accents", "BertTokenizer", uncased, options
  saved = _saved("BertTokenizer", uncased, {})
  yield "bert_json", "BertTokenizer", saved, {}

  files = _byte_level(ROBERTA_SPECIALS)
  yield "roberta_files", "RobertaTokenizer", files, {}
  spaced = dict(add_prefix_space=True)
  yield "roberta_spaced", "RobertaTokenizer", files, spaced
  saved = _saved("RobertaTokenizer", files, {})
  yield "roberta_json", "RobertaTokenizer", saved, {}
  files = _byte_level(["<|endoftext|>"])
  yield "gpt2_files", "GPT2Tokenizer", files, {}
  framed = dict(add_bos_token=True, pad_token="<|endoftext|>")
  yield "gpt2_bos", "GPT2Tokenizer", files, framed
  yield "whisper", *_whisper(files)

  ids = dict(pad_id=0, eos_id=1, unk_id=2)
  pieces = {"spiece.model": _sentencepiece(ids)}
  yield "t5_pieces", "T5Tokenizer", pieces, dict(extra_ids=5)
  plain = _sentencepiece(ids, normalization_rule_name="identity")
  plain = {"spiece.model": plain}
  saved = _saved("T5Tokenizer", plain, dict(extra_ids=5))
  yield "t5_json", "T5Tokenizer", saved, dict(extra_ids=5)
  yield "siglip", "SiglipTokenizer", pieces, {}
  cased = dict(do_lower_case=False, pad_token="<pad>")
  yield "siglip_cased", "SiglipTokenizer", pieces, cased

  # Of tokenizer.json the frame counts, not what the config says.
  files = _gemma("<bos> $A", "<bos> $A <bos>:1 $B:1")
  yield "gemma", "GemmaTokenizer", files, dict(add_eos_token=True)
  files = _gemma("$A <eos>", "$A <eos> $B:1 <eos>:1")
  right = dict(padding_side="right", image_token="<image>")
  yield "siglip2", "Siglip2Tokenizer", files, right
  yield "file_alone", "PreTrainedTokenizerFast", files, dict(pad_token="<pad>")


def _saved(cls: str, files: dict[str, bytes], config: dict) -> dict[str, bytes]:
  """Returns the tokenizer.json that the reference makes of these files."""
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    for file, data in files.items():
      (root / file).write_bytes(data)
    tokenizer = _reference(cls).from_pretrained(folder, **config)
    tokenizer.save_pretrained(root / "saved")
    path = root / "saved" / "tokenizer.json"
    compact = json.dumps(json.loads(path.read_text()))
    return {"tokenizer.json": compact.encode()}


def _vocab_files(pipeline) -> dict[str, bytes]:
  model = json.loads(pipeline.to_str())["model"]
  merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
  return {
    "vocab.json": json.dumps(model["vocab"]).encode(),
    "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode(),
  }


def _clip() -> dict[str, bytes]:
  from tokenizers import (
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
  )

  pipeline = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
  pipeline.normalizer = normalizers.Lowercase()
  pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  trainer = trainers.BpeTrainer(
    vocab_size=700,
    end_of_word_suffix="</w>",
    initial_alphabet=letters,
    show_progress=False,
  )
  pipeline.train_from_iterator(CORPUS, trainer)
  files = _vocab_files(pipeline)
  vocab = json.loads(files["vocab.json"])
  for token in (*(f"{x}</w>" for x in letters), *CLIP_SPECIALS):
    vocab.setdefault(token, len(vocab))
  return {**files, "vocab.json": json.dumps(vocab).encode()}


def _wordpiece(lower: bool) -> dict[str, bytes]:
  from tokenizers import BertWordPieceTokenizer

  trained = BertWordPieceTokenizer(lowercase=lower)
  trained.train_from_iterator(
    CORPUS, vocab_size=320, special_tokens=BERT_SPECIALS, show_progress=False
  )
  vocab = trained.get_vocab()
  lines = sorted(vocab, key=vocab.__getitem__)
  return {"vocab.txt": ("\n".join(lines) + "\n").encode()}


def _byte_level(specials: list[str]) -> dict[str, bytes]:
  from tokenizers import ByteLevelBPETokenizer

  trained = ByteLevelBPETokenizer()
  trained.train_from_iterator(
    CORPUS, vocab_size=420, special_tokens=specials, show_progress=False
  )
  return _vocab_files(trained)


def _whisper(files: dict[str, bytes]):
  from tokenizers import AddedToken

  names = ["<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>"]
  names += ["<|transcribe|>", "<|startofprev|>", "<|notimestamps|>"]
  tokens = [AddedToken(name, special=True) for name in names]
  times = [AddedToken(f"<|{i / 50:.2f}|>", normalized=False) for i in range(5)]
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    for file, data in files.items():
      (root / file).write_bytes(data)
    tokenizer = _reference("GPT2Tokenizer").from_pretrained(folder)
    tokenizer.add_tokens([*tokens, *times])
    tokenizer.save_pretrained(root)
    data = json.dumps(json.loads((root / "tokenizer.json").read_text()))
  config = dict(language="en", task="transcribe", pad_token="<|endoftext|>")
  return "WhisperTokenizer", {"tokenizer.json": data.encode()}, config


def _sentencepiece(ids: dict[str, int], **more) -> bytes:
  import sentencepiece

  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS),
    model_writer=model,
    vocab_size=300,
    hard_vocab_limit=False,
    bos_id=-1,
    minloglevel=2,
    **{**ids, **more},
  )
  return model.getvalue()


def _gemma(single: str, pair: str) -> dict[str, bytes]:
  """A BPE of pieces with spaces of their own, and bytes for the rest."""
  from tokenizers import (
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
  )

  pipeline = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
  pipeline.normalizer = normalizers.Replace(" ", "\u2581")
  pipeline.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
  bytes_ = [f"<0x{i:02X}>" for i in range(256)]
  trainer = trainers.BpeTrainer(
    vocab_size=480,
    special_tokens=specials + bytes_,
    show_progress=False,
    limit_alphabet=60,
  )
  pipeline.train_from_iterator([t.lower() for t in CORPUS], trainer)
  pipeline.post_processor = processors.TemplateProcessing(
    single=single, pair=pair, special_tokens=[("<eos>", 1), ("<bos>", 2)]
  )
  state = json.loads(pipeline.to_str())
  state["added_tokens"] = state["added_tokens"][: len(specials)]
  return {"tokenizer.json": json.dumps(state).encode()}
