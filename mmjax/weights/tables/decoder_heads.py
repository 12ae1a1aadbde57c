"""The hub's decoder language models: their tables, and what reads them.

No table: what those of GPT-2, GPT-Neo and Gemma share. A model is bare, has a
head of words (the table of tokens, or its own), or classifies.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.weights import rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.rename import LINEAR, Rule
from mmjax.weights.tables import hub

WORDS = "lm_head.weight"
# What classifies, and what of. Gemma calls both heads "score": that of tokens
# has a bias.
READERS = {"score": "text", "classifier": "tokens", "qa_outputs": "spans"}


def table(checkpoint: Checkpoint, config: Mapping[str, Any], name: str) -> str:
  """Returns the name of a table of tokens, which may stand as the tied head."""
  tied = [WORDS] if config["tie_word_embeddings"] else []
  return hub.either(checkpoint.tensors, name, *tied)


def ends(
  checkpoint: Checkpoint, prefix: str, config: Mapping[str, Any]
) -> list[Rule]:
  """Returns the rules of GPT's embeddings and last norm."""
  return [
    Rule("embedding/table", table(checkpoint, config, f"{prefix}wte.weight")),
    Rule("places/table", f"{prefix}wpe.weight"),
    *hub.norm("final_norm", f"{prefix}ln_f"),
  ]


def copies(config: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns what to ignore: the copy of the embeddings as a head."""
  return (r"^lm_head\.weight$",) if config["tie_word_embeddings"] else ()


def headed(
  checkpoint: Checkpoint,
  config: Mapping[str, Any],
  decoder: Mapping[str, Any],
  rules: Sequence[Rule],
) -> tuple[dict[str, Any], list[Rule]]:
  """Returns model and rules of a decoder with the head that it has.

  Args:
    checkpoint: of the hub.
    config: with its defaults.
    decoder: name and keywords of the decoder, but for `tied`.
    rules: of it, without those of a head.
  """
  shapes = checkpoint.shapes
  for theirs, reads in READERS.items():
    if f"{theirs}.weight" not in shapes:
      continue
    bias = f"{theirs}.bias" in shapes
    model = dict(
      name="decoder_reader",
      decoder=dict(decoder),
      reads="tokens" if bias and reads == "text" else reads,
      classes=shapes[f"{theirs}.weight"][0],
      use_bias=bias,
      pad_id=config["pad_token_id"],
    )
    head = hub.linear("head", theirs, bias)
    return model, [*rename.under("decoder/", "", rules), *head]
  tied = bool(config["tie_word_embeddings"]) or _bare(checkpoint)
  head = [] if tied else [Rule("head", WORDS, LINEAR)]
  return dict(decoder, tied=tied), [*rules, *head]


def _bare(checkpoint: Checkpoint) -> bool:
  """Has the model no head at all? Its names then have no prefix."""
  first = ("wte.weight", "embed_tokens.weight")
  return any(name in checkpoint.shapes for name in first)
