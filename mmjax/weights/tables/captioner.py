"""Cap and CapPa of Google's big_vision, in .npz.

Files of proj/cappa have no config. `encoder/` is a ViT as in `big_vision`,
without a head; the decoder's blocks are tensors each,
`decoder/EncDecBlock0/...`, or one stack, `decoder/EncDecBlock/...`, of models
that were trained with a scan: there the blocks are the second axis, [D depth
...], not the first. The table of embeddings has one row more than there are
logits if parallel prediction was trained: the last, of the hidden token.

Kernels are laid out as ours and say how many heads there are. Where positions
are sines there is no tensor of them, and nothing says how long a caption may
be: that stands in a config.json beside the file, {"seq_len": 64}.
"""

from typing import Any

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.recipe import Recipe
from mmjax.weights.rename import Rule
from mmjax.weights.tables import big_vision, big_vision_layers

# Their name -> ours, within a block.
NORMS = {
  "LayerNorm1": "norm1",
  "LayerNorm2": "norm_cross",
  "LayerNorm3": "norm2",
}
ATTENTIONS = {"SelfAttn": "attention", "CrossAttn": "cross"}
MLP = {"Dense_0": "up", "Dense_1": "down"}
# A stack's second axis is the blocks.
STACKED = rename.Op(lambda x: x.swapaxes(0, 1), lambda x: x.swapaxes(0, 1))


def build(checkpoint: Checkpoint) -> Recipe | None:
  """Returns the recipe of a captioner, or None for any other checkpoint.

  Raises:
    InputError: an encoder that is no CapPa's, a table of embeddings that does
      not fit the logits, or a length that nothing says.
  """
  shapes = checkpoint.shapes
  for root in ("params/", ""):
    if (
      f"{root}encoder/Transformer/encoder_norm/scale" in shapes
      and f"{root}decoder/LogitsDense/kernel" in shapes
    ):
      return _captioner(checkpoint, root)
  return None


def _captioner(checkpoint: Checkpoint, root: str) -> Recipe:
  shapes = checkpoint.shapes
  image, given, image_rules = big_vision.image(checkpoint, f"{root}encoder/")
  if image["pool"] != "gap":
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: its encoder has a class token "
      f"or an attention head (pool = {image['pool']!r}), which no captioner of "
      "big_vision has; leave its tensors out if nothing reads them."
    )
  theirs = f"{root}decoder/"
  width, vocab = shapes[f"{theirs}LogitsDense/kernel"]
  model, rules = _blocks(checkpoint, theirs)
  length, places = _places(checkpoint, root, width)
  table = f"{theirs}EmbedTargets/embedding"
  rows = shapes[table][0]
  if rows not in (vocab, vocab + 1):
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: {table} has {rows} rows for "
      f"{vocab} logits; known are {vocab} (Cap) and {vocab + 1} (CapPa, whose "
      "last row is the hidden token)."
    )
  masked = rows > vocab
  parts = [("embedding/table", vocab), ("mask", 1)][: 1 + masked]
  rules += [
    *rename.under("image/", "", image_rules),
    *places,
    *rename.packed(
      [(ours, rename.SAME) for ours, _ in parts],
      table,
      [size for _, size in parts],
    ),
    *big_vision_layers.norm("norm", f"{theirs}LayerNorm"),
    Rule("head", f"{theirs}LogitsDense/kernel"),
    Rule("head_bias", f"{theirs}LogitsDense/bias"),
  ]
  return Recipe(
    table="captioner",
    model=dict(
      name="captioner",
      image=image,
      vocab_size=vocab,
      width=width,
      **model,
      length=length,
      posemb="learn" if places else "sincos2d",
      masked=masked,
    ),
    inputs={**given, "tokens": ((1, length), "int32")},
    rules=rules,
    config=checkpoint.config,
    texts={"tokens": length},
    ignore=big_vision_layers.IGNORE,
  )


def _places(
  checkpoint: Checkpoint, root: str, width: int
) -> tuple[int, list[Rule]]:
  """Returns the length of the longest caption, and the rule of positions."""
  table = f"{root}pos_embedding_decoder"
  if table in checkpoint.tensors:
    length = checkpoint.shapes[table][1]
    op = rename.reshape((length, width), (1, length, width))
    return length, [Rule("places/table", table, op)]
  length = checkpoint.config.get("seq_len")
  if not isinstance(length, int) or length < 1:
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: it has no {table}, so its "
      "positions are sines, and nothing says how long a caption may be "
      f"(config.json seq_len = {length!r}); put a config.json that says "
      '{"seq_len": 64} beside it, and give the directory.'
    )
  return length, []


def _blocks(
  checkpoint: Checkpoint, theirs: str
) -> tuple[dict[str, Any], list[Rule]]:
  """Returns sizes and rules of the decoder's blocks."""
  shapes = checkpoint.shapes
  norm = "LayerNorm1/scale"
  stacked = f"{theirs}EncDecBlock/{norm}" in shapes
  block = f"{theirs}EncDecBlock/" if stacked else f"{theirs}EncDecBlock{{n}}/"
  first = block.replace("{n}", "0")
  for name in (norm, "SelfAttn/query/kernel", "MLP/Dense_0/kernel"):
    if f"{first}{name}" not in shapes:
      raise errors.InputError(
        f"weights path = {str(checkpoint.path)!r}: a captioner without "
        f"{first}{name}; give a file of big_vision's proj/cappa."
      )
  depth = shapes[f"{first}{norm}"][1] if stacked else 0
  while not stacked and f"{theirs}EncDecBlock{depth}/{norm}" in shapes:
    depth += 1
  bias = f"{first}LayerNorm1/bias" in shapes
  rules = []
  for name, ours in NORMS.items():
    rules += big_vision_layers.norm(ours, name, bias)
  for name, ours in ATTENTIONS.items():
    for part in ("query", "key", "value", "out"):
      rules += big_vision_layers.dense(
        f"{ours}/{part}", f"{name}/{part}", False
      )
  for name, ours in MLP.items():
    rules += big_vision_layers.dense(f"mlp/{ours}", f"MLP/{name}", bias)
  op = STACKED if stacked else rename.SAME
  rules = [
    Rule(f"decoder/blocks/{r.ours}", f"{block}{r.theirs}", op) for r in rules
  ]
  sizes = dict(
    depth=depth,
    heads=shapes[f"{first}SelfAttn/query/kernel"][-2],
    mlp=shapes[f"{first}MLP/Dense_0/kernel"][-1],
    bias=bias,
  )
  return sizes, rules
