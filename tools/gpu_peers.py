"""What `bench_attention.py` times: shapes of models, and who computes them.

A peer of JAX is a function of (mask, width, interpret) that returns one of q, k
and v [B T N H], or raises what it cannot do; one of PyTorch is a name of
`of_torch`.
"""

import importlib

import jax
import numpy as np

from mmjax.ops import masks
from mmjax.ops.kernels import gpu
from mmjax.ops.kernels.gpu_tiles import Tiles

# batch, tokens, heads, width, mask: enough of each that a call takes far
# longer than to send it.
SHAPES = {
  "vit196": (512, 196, 12, 64, None),
  "vit197": (512, 197, 12, 64, None),
  "clip257": (256, 257, 16, 64, None),
  "clip-text77": (1024, 77, 8, 64, "causal"),
  "vit577": (64, 577, 16, 64, None),
  "so400m729": (32, 729, 16, 72, None),
  "whisper1500": (16, 1500, 20, 64, None),
  "dalle1280": (8, 1280, 62, 64, "causal"),
  "dalle-row": (8, 1280, 62, 64, "row"),
  "dalle-column": (8, 1280, 62, 64, "column"),
  "dalle-conv": (8, 1280, 62, 64, "conv"),
  "gpt3-2048": (8, 2048, 16, 128, "causal"),
  "causal8k": (2, 8192, 16, 128, "causal"),
}
MASKS = {
  None: None,
  "causal": masks.Causal(),
  "row": masks.Row(256, 32, 32),
  "column": masks.Column(256, 32, 32),
  "conv": masks.Conv(256, 32, 32, 11),
}


def _ours(mask, width, interpret):
  side = 16 if mask in (None, "causal") else 128
  tiles = (Tiles(side, side),) * 4 if interpret else None

  def attend(q, k, v):
    return gpu.attend(
      q,
      k,
      v,
      mask=MASKS[mask],
      bias=None,
      scale=width**-0.5,
      softcap=None,
      dropout_rate=0.0,
      dropout_seeds=None,
      interpret=interpret,
      tiles=tiles,
    )

  return attend


def seen(mask, length):
  """Returns the mask as booleans [1 1 T T], or None if it is none or causal."""
  if mask in (None, "causal"):
    return None
  with jax.ensure_compile_time_eval():
    return np.asarray(masks.dense(MASKS[mask], length, length)).reshape(
      1, 1, length, length
    )


def _of_jax(implementation):
  def make(mask, width, interpret):
    del width, interpret

    def attend(q, k, v):
      return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=seen(mask, q.shape[1]),
        is_causal=mask == "causal",
        implementation=implementation,
      )

    return attend

  return make


def _in_tree(mask, width, interpret):
  from jax.experimental.pallas.ops.gpu import attention

  if mask not in (None, "causal"):
    raise NotImplementedError("no mask but the causal one")

  def attend(q, k, v):
    return attention.mha(
      q,
      k,
      v,
      segment_ids=None,
      sm_scale=width**-0.5,
      causal=mask == "causal",
      interpret=interpret,
    )

  return attend


def _tokamax(mask, width, interpret):
  tokamax = importlib.import_module("tokamax")
  # It would read our command line.
  importlib.import_module("absl.flags").FLAGS.mark_as_parsed()

  if interpret:
    raise NotImplementedError("tokamax's kernels are not interpreted")
  del width

  def attend(q, k, v):
    return tokamax.dot_product_attention(
      q, k, v, mask=seen(mask, q.shape[1]), is_causal=mask == "causal"
    )

  return attend


# The first that runs is the truth of the others.
JAX_PEERS = {
  "xla": _of_jax("xla"),
  "ours": _ours,
  "cudnn": _of_jax("cudnn"),
  "in-tree": _in_tree,
  "tokamax": _tokamax,
}
FLEX = "flex"
TORCH_PEERS = {
  "torch": None,  # what it takes by itself
  "t-flash": "FLASH_ATTENTION",
  "t-cudnn": "CUDNN_ATTENTION",
  "t-flex": FLEX,
}


def of_torch(backend, mask, T, device):
  """Returns a function of q, k and v [B N T H]; FLEX or of the backend."""
  torch = importlib.import_module("torch")
  pairs = seen(mask, T)
  if pairs is not None:
    pairs = torch.tensor(pairs, device=device)
  if backend != FLEX:
    attend = torch.nn.functional.scaled_dot_product_attention
    return lambda q, k, v: attend(
      q, k, v, attn_mask=pairs, is_causal=mask == "causal"
    )
  flex = importlib.import_module("torch.nn.attention.flex_attention")
  blocks = None
  if mask is not None:

    def rule(b, n, q, k):
      return q >= k if pairs is None else pairs[0, 0, q, k]

    blocks = flex.create_block_mask(rule, None, None, T, T, device=device)
  attend = torch.compile(flex.flex_attention)
  return lambda q, k, v: attend(q, k, v, block_mask=blocks)
