"""Rules of LiT's BERT, in .npz of Google's big_vision and vision_transformer.

"LiT: Zero-shot transfer with locked-image text tuning", Zhai et al. 2022. The
text encoder is BERT of github google/flaxformer: the first token is read, a
text is padded by 0, which no token sees, and the GELU is the one with tanh.
Kernels of the attention are matrices, [D N*H]; its heads are of 64, as those of
every BERT that Google published.

No table: `big_vision` puts it into its two towers.
"""

from typing import Any

from mmjax import errors
from mmjax.weights import rename
from mmjax.weights.files import Checkpoint
from mmjax.weights.rename import Rule
from mmjax.weights.tables import big_vision_layers as layers

HEAD_DIM = 64
# The texts that LiT was trained with, of BERT's 512 positions.
LENGTH = 16
_TABLES = (("words", "token"), ("positions", "position"), ("types", "segment"))


def marked(checkpoint: Checkpoint, root: str) -> bool:
  """Is the text encoder under this root a BERT?"""
  return _table(root, "token") in checkpoint.shapes


def _table(root: str, kind: str) -> str:
  return f"{root}BertEncoder_0/embedder/embedders_{kind}_ids/embedding"


def text(
  checkpoint: Checkpoint, root: str
) -> tuple[dict[str, Any], list[Rule]]:
  """Returns keywords of the model and the rules, without the head.

  Args:
    checkpoint: that holds it.
    root: what its names begin with, "params/txt/".

  Raises:
    InputError: a width that is no multiple of 64, the width of a head.
  """
  shapes = checkpoint.shapes
  vocab, width = shapes[_table(root, "token")]
  said = checkpoint.config.get("text_heads")
  heads = said or width // HEAD_DIM
  if width % (heads if said else HEAD_DIM):
    what = f"{said} heads" if said else f"heads of {HEAD_DIM}"
    raise errors.InputError(
      f"weights path = {str(checkpoint.path)!r}: its BERT is of width {width}, "
      f"which is no multiple for {what}; names do not say how many there are, "
      'so put a config.json with {"text_heads": ...} beside the file.'
    )
  block = f"{root}BertEncoder_0/encoder_block/layer_sequence/layers_{{n}}/"
  attention, mlp = f"{block}attention_block/", f"{block}mlp_block/"
  first = "mlp_block/mlp/dense_layer/kernel"
  depth = sum(n.startswith(root) and n.endswith(first) for n in shapes)
  ours = "encoder/blocks/"
  square = (width, heads, width // heads)
  kernel = rename.reshape(square, (width, width))
  bias = rename.reshape(square[1:], (width,))
  rules = [
    *(
      Rule(f"embed/{name}/table", _table(root, kind)) for name, kind in _TABLES
    ),
    *layers.norm("embed/norm", f"{root}BertEncoder_0/layer_norm"),
    *layers.norm(f"{ours}norm1", f"{attention}layer_norm"),
    *layers.norm(f"{ours}norm2", f"{mlp}layer_norm"),
    *layers.dense(f"{ours}mlp/up", f"{mlp}mlp/dense_layer"),
    *layers.dense(f"{ours}mlp/down", f"{mlp}dense_layer"),
    Rule(
      f"{ours}attention/out/kernel",
      f"{attention}dense_layer/kernel",
      rename.reshape((*square[1:], width), (width, width)),
    ),
    Rule(f"{ours}attention/out/bias", f"{attention}dense_layer/bias"),
  ]
  for name in ("query", "key", "value"):
    theirs = f"{attention}attention_layer/{name}"
    rules += [
      Rule(f"{ours}attention/{name}/kernel", f"{theirs}/kernel", kernel),
      Rule(f"{ours}attention/{name}/bias", f"{theirs}/bias", bias),
    ]
  model = dict(
    name="bert",
    vocab_size=vocab,
    width=width,
    depth=depth,
    heads=heads,
    mlp=shapes[block.replace("{n}", "0") + first][1],
    length=shapes[_table(root, "position")][0],
    types=shapes[_table(root, "segment")][0],
    pool="cls",
    act="gelu",
  )
  return model, rules
