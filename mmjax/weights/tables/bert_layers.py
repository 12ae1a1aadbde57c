"""Rules of BERT's parts in the model hub's layout, for BERT and its kin.

No table: what those of BERT, RoBERTa, LXMERT and ViLT share. Files from before
2019 call the scale of a norm "gamma" and its bias "beta".
"""

from collections.abc import Iterable, Sequence

from mmjax.weights.rename import Rule
from mmjax.weights.tables import hub

# How the norms of a file call scale and bias.
NEW, OLD = ("weight", "bias"), ("gamma", "beta")


def leaves(names: Iterable[str]) -> tuple[str, str]:
  """Returns how a file with tensors of these names calls scale and bias."""
  old = any(name.endswith("LayerNorm.gamma") for name in names)
  return OLD if old else NEW


def prefix(names: Iterable[str], default: str) -> str:
  """Returns what stands before "embeddings.word_embeddings.weight".

  Args:
    names: of the tensors.
    default: where there is no such tensor.
  """
  for name in names:
    head, found, rest = name.rpartition("embeddings.word_embeddings.weight")
    if found and not rest and not head.endswith("text_"):
      return head
  return default


def norm(ours: str, theirs: str, leaves: tuple[str, str] = NEW) -> list[Rule]:
  """Returns the rules of a norm, whose leaves may have their old names."""
  return [
    Rule(f"{ours}/{name}", f"{theirs}.{leaf}")
    for name, leaf in zip(("scale", "bias"), leaves, strict=True)
  ]


def embeddings(
  ours: str, theirs: str, leaves: tuple[str, str] = NEW
) -> list[Rule]:
  """Returns the rules of `layers.bert.TextEmbed`."""
  tables = (
    ("words", "word"),
    ("positions", "position"),
    ("types", "token_type"),
  )
  return [
    *(
      Rule(f"{ours}/{name}/table", f"{theirs}.{kind}_embeddings.weight")
      for name, kind in tables
    ),
    *norm(f"{ours}/norm", f"{theirs}.LayerNorm", leaves),
  ]


def attention(
  ours: tuple[str, str],
  theirs: tuple[str, str],
  heads: int,
  leaves: tuple[str, str] = NEW,
) -> list[Rule]:
  """Returns the rules of an attention with the norm after it.

  Args:
    ours: names of the attention and of the norm.
    theirs: what stands before "query", and before "dense" and "LayerNorm".
    heads: N.
    leaves: of the norm.
  """
  qkv = [f"{theirs[0]}.{name}" for name in ("query", "key", "value")]
  return [
    *hub.attention(ours[0], qkv, f"{theirs[1]}.dense", heads),
    *norm(ours[1], f"{theirs[1]}.LayerNorm", leaves),
  ]


def mlp(
  ours: tuple[str, str],
  theirs: Sequence[str],
  leaves: tuple[str, str] = NEW,
) -> list[Rule]:
  """Returns the rules of an MLP with the norm after it.

  Args:
    ours: names of the MLP and of the norm.
    theirs: of the layer up; and of what holds the layer down and the norm.
    leaves: of the norm.
  """
  return [
    *hub.linear(f"{ours[0]}/up", f"{theirs[0]}.dense"),
    *hub.linear(f"{ours[0]}/down", f"{theirs[1]}.dense"),
    *norm(ours[1], f"{theirs[1]}.LayerNorm", leaves),
  ]


def layers(
  ours: str, theirs: str, heads: int, leaves: tuple[str, str] = NEW
) -> list[Rule]:
  """Returns the rules of a stack of blocks.

  Args:
    ours: name of the stack.
    theirs: of one block, with "{n}".
    heads: N.
    leaves: of the norms.
  """
  b = f"{ours}/blocks"
  return [
    *attention(
      (f"{b}/attention", f"{b}/norm1"),
      (f"{theirs}.attention.self", f"{theirs}.attention.output"),
      heads,
      leaves,
    ),
    *mlp(
      (f"{b}/mlp", f"{b}/norm2"),
      (f"{theirs}.intermediate", f"{theirs}.output"),
      leaves,
    ),
  ]


def transform(
  ours: str, theirs: str, leaves: tuple[str, str] = NEW
) -> list[Rule]:
  """Returns the rules of `layers.bert.Transform`."""
  return [
    *hub.linear(f"{ours}/dense", f"{theirs}.dense"),
    *norm(f"{ours}/norm", f"{theirs}.LayerNorm", leaves),
  ]


def masked_words(
  ours: str, theirs: str, leaves: tuple[str, str] = NEW
) -> list[Rule]:
  """Returns the rules of `layers.bert.MaskedWords`; theirs holds "bias"."""
  return [
    *transform(f"{ours}/transform", f"{theirs}.transform", leaves),
    Rule(f"{ours}/bias", f"{theirs}.bias"),
  ]
