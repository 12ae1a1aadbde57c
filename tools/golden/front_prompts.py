r"""PaliGemma's prompts with and without suffixes, as its processor makes them.

Recorded in tests/golden/front/prompts.npz:

  prompts, suffixes  JSON: texts
  cases         JSON: {case: {"files": {name: n}, "image": id of "<image>",
                "places": image tokens of a prompt}}
  file/<n>      bytes of a file, uint8 [n]
  output/<case>/<with|without>/<field>  of the processor's batch, padded to the
                longest: input_ids, attention_mask, token_type_ids, labels
  output/<case>/pixel_values  float32 [B 3 Y X]
  image         uint8 [B Y X 3]
"""

import json
import pathlib
import tempfile

import numpy as np
from golden.front_texts import CORPUS
from make_golden import FOLDER

SIDE, PATCH = 8, 4
PROMPTS = [
  "answer en what is in the photo?",
  "<image>detect cat ; dog",
  "",
  " segment  the red house\nby the lake ",
]
SUFFIXES = [
  "two cats",
  "<loc0002><loc0009><loc1023> cat ; <loc0000> dog",
  "a long old tree that stands in front of it",
  "<loc0002><seg000><seg127> house<loc2000>",
]
PLACES = ["<loc0000>", "<loc0002>", "<loc0009>", "<loc1023>"]
PLACES += ["<seg000>", "<seg127>"]


def make() -> None:
  """Records the cases."""
  from transformers import GemmaTokenizer, PaliGemmaProcessor
  from transformers.models.siglip.image_processing_pil_siglip import (
    SiglipImageProcessorPil,
  )

  rng = np.random.default_rng(5)
  image = rng.integers(0, 256, (len(PROMPTS), 11, 7, 3), np.uint8)
  count = (SIDE // PATCH) ** 2
  reader = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
  reader.image_seq_length = count
  config = json.loads(reader.to_json_string())
  config |= dict(image_seq_length=count)
  cases, arrays, blobs = {}, {}, []
  for name, files, said in _cases():
    said = {"tokenizer_class": "GemmaTokenizer", **said}
    files = {
      **files,
      "tokenizer_config.json": json.dumps(said).encode(),
      "preprocessor_config.json": json.dumps(config).encode(),
    }
    with tempfile.TemporaryDirectory() as folder:
      for file, data in files.items():
        (pathlib.Path(folder) / file).write_bytes(data)
        if data not in blobs:
          blobs.append(data)
      tokenizer = GemmaTokenizer.from_pretrained(folder)
    processor = PaliGemmaProcessor(reader, tokenizer)
    for kind, suffix in (("with", SUFFIXES), ("without", None)):
      # Where one says "<image>", all must.
      prompts = [f"<image>{p.removeprefix('<image>')}" for p in PROMPTS]
      found = processor(
        images=[[x] for x in image],
        text=prompts,
        suffix=suffix,
        padding="longest",
        return_tensors="np",
        input_data_format="channels_last",
      )
      for field, value in found.items():
        if field == "pixel_values":
          arrays[f"output/{name}/{field}"] = np.asarray(value, np.float32)
        else:
          value = np.asarray(value, np.int32)
          arrays[f"output/{name}/{kind}/{field}"] = value
    cases[name] = dict(
      files={file: blobs.index(data) for file, data in files.items()},
      image=processor.image_token_id,
      places=count,
    )
  np.savez_compressed(
    FOLDER / "front" / "prompts.npz",
    allow_pickle=False,
    prompts=np.array(json.dumps(PROMPTS)),
    suffixes=np.array(json.dumps(SUFFIXES)),
    cases=np.array(json.dumps(cases)),
    image=image,
    **{f"file/{n}": np.frombuffer(x, np.uint8) for n, x in enumerate(blobs)},
    **arrays,
  )
  size = (FOLDER / "front" / "prompts.npz").stat().st_size
  print(f"front/prompts: {len(cases)} cases, {size / 1024:.0f} KiB")


def _cases():
  """Yields name, files, tokenizer_config."""
  pieces, pipeline = _pieces(), _pipeline()
  yield "json", pipeline, {}
  right = dict(padding_side="right", image_token="<image>")
  yield "json_right", pipeline, right
  yield "pieces", pieces, {}
  yield "pieces_right", pieces, dict(padding_side="right")


def _pieces() -> dict[str, bytes]:
  import io

  import sentencepiece

  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS),
    model_writer=model,
    vocab_size=600,
    model_type="bpe",
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    pad_piece="<pad>",
    eos_piece="<eos>",
    bos_piece="<bos>",
    user_defined_symbols=["<mask>", "\n", "\u2581\u2581", *PLACES],
    byte_fallback=True,
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    normalization_rule_name="identity",
    minloglevel=2,
  )
  return {"tokenizer.model": model.getvalue()}


def _pipeline() -> dict[str, bytes]:
  from golden.front_texts import _gemma

  files = _gemma("<bos> $A", "<bos> $A <bos>:1 $B:1")
  state = json.loads(files["tokenizer.json"])
  vocab = state["model"]["vocab"]
  for token in PLACES:
    vocab[token] = len(vocab)
    added = dict(state["added_tokens"][0], id=vocab[token], content=token)
    state["added_tokens"].append(dict(added, special=False))
  return {"tokenizer.json": json.dumps(state).encode()}
