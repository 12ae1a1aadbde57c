"""CLIP's ids of real texts, with its whole vocabulary.

The vocabulary is in the package open-clip-torch 3.3.0, of which one file is
taken; tests/golden/front/clip_vocabulary.npz holds texts and ids only.
"""

import gzip
import json
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
from golden.front_texts import TEXTS
from make_golden import FOLDER

PACKAGE = "open-clip-torch==3.3.0"
FILE = "open_clip/bpe_simple_vocab_16e6.txt.gz"


def make() -> None:
  """Records the ids."""
  from transformers import CLIPTokenizer

  from mmjax.build import build

  source = build("data.sources", name="emoji", split="test")
  texts = [*TEXTS, *(source[i]["name"] for i in range(0, len(source), 5))]
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    lay_out(root)
    tokenizer = CLIPTokenizer.from_pretrained(root)
    ids = [
      tokenizer(t, truncation=True, max_length=77)["input_ids"] for t in texts
    ]
  np.savez_compressed(
    FOLDER / "front" / "clip_vocabulary.npz",
    allow_pickle=False,
    texts=np.array(json.dumps(texts)),
    ids=np.array(json.dumps(ids)),
  )
  print(f"front/clip_vocabulary: {len(texts)} texts")


def lay_out(folder: pathlib.Path) -> None:
  """Writes CLIP's vocabulary as the hub does, from the package."""
  command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
  subprocess.run([*command, "--dest", folder, PACKAGE], check=True)
  (wheel,) = folder.glob("open_clip_torch-*.whl")
  with zipfile.ZipFile(wheel) as archive:
    lines = gzip.decompress(archive.read(FILE)).decode().split("\n")
  merges = lines[1 : 49152 - 256 - 2 + 1]
  # The order of the 256 bytes: printable ones first, as GPT-2 lists them.
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  letters = [chr(b) for b in printable]
  letters += [chr(256 + n) for n in range(256 - len(letters))]
  tokens = [*letters, *(f"{x}</w>" for x in letters)]
  tokens += [merge.replace(" ", "") for merge in merges]
  tokens += ["<|startoftext|>", "<|endoftext|>"]
  vocab = {token: i for i, token in enumerate(tokens)}
  (folder / "vocab.json").write_text(json.dumps(vocab))
  text = "\n".join(["#version: 0.2", *merges])
  (folder / "merges.txt").write_text(text, encoding="utf-8")
  config = dict(tokenizer_class="CLIPTokenizer")
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
