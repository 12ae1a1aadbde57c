"""Which tiles a kernel takes: a table of what was found best, then a rule.

An entry says where it comes from: "static" (the compiler's schedule, nothing
executed) or "measured on CHIP".
"""

import dataclasses
import math
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Whole:
  """Tiles of `tpu_whole`.

  batch, kv_heads, groups: rows, key heads, and query heads of each, a program;
    all query heads, if there are several rows or key heads.
  rows: queries a chunk at most, a multiple of 128 (or all).
  unroll: heads whose code is laid side by side, so that the products of one
    run beside the softmax of the next.
  block_k: keys, a multiple of 128, after which the stages of heads side by side
    take turns: the products of some keys of one come between the softmax of
    some of another; 0 does each as a whole.
  backward: tiles of the backward pass; None takes these.
  """

  batch: int
  kv_heads: int
  groups: int
  rows: int
  unroll: int = 1
  block_k: int = 0
  backward: "Whole | None" = None


@dataclasses.dataclass(frozen=True)
class Flash:
  """Tiles of `tpu_flash`: queries and keys a block, multiples of 128."""

  block_q: int
  block_k: int


class Key(NamedTuple):
  """What tiles depend on.

  chip: "v5e", "v5p", "v6e", "tpu7x", or "h100" and so on.
  kernel: "whole", "whole_backward", "flash", "flash_dq", "flash_dkv".
  length: bucket of S, see `bucket`.
  head_dim: H.
  mask: "none", "static" or "data".
  dtype: name.
  """

  chip: str | None
  kernel: str
  length: int
  head_dim: int
  mask: str
  dtype: str


class Entry(NamedTuple):
  """Tiles and where they come from."""

  tiles: Whole | Flash
  provenance: str


CHIPS = {  # names of devices in JAX
  "TPU v5 lite": "v5e",
  "TPU v5e": "v5e",
  "TPU v5": "v5p",
  "TPU v5p": "v5p",
  "TPU v6 lite": "v6e",
  "TPU v6e": "v6e",
  "TPU7x": "tpu7x",
  "TPU v7x": "tpu7x",
}

LONGEST = 1536  # what the whole-sequence kernel takes
_VMEM = 24 * 2**20  # bytes a program of it plans with, half of what it may take
LANES = 128  # of a register
WIDE = ("v6e", "tpu7x")  # chips that multiply by 256 x 256 at once, not 128

# Written by tools/tune_tiles.py from here
TABLE: dict[Key, Entry] = {
  Key("tpu7x", "whole", 256, 64, "none", "bfloat16"): Entry(
    Whole(1, 12, 1, 256, 12, 0),
    "static, libtpu 0.0.42.1: 170 bundles a head of vit",
  ),
  Key("tpu7x", "whole", 1024, 72, "none", "bfloat16"): Entry(
    Whole(1, 16, 1, 1024, 16, 0),
    "static, libtpu 0.0.42.1: 1126 bundles a head of so400m",
  ),
  Key("tpu7x", "whole", 2048, 64, "static", "bfloat16"): Entry(
    Whole(1, 4, 1, 256, 4, 256),
    "static, libtpu 0.0.42.1: 2027 bundles a head of dalle",
  ),
  Key("tpu7x", "whole_backward", 256, 64, "none", "bfloat16"): Entry(
    Whole(1, 12, 1, 256, 12, 0),
    "static, libtpu 0.0.42.1: 222 bundles a head of vit",
  ),
  Key("tpu7x", "whole_backward", 1024, 72, "none", "bfloat16"): Entry(
    Whole(1, 16, 1, 256, 16, 256),
    "static, libtpu 0.0.42.1: 1907 bundles a head of so400m",
  ),
  Key("tpu7x", "whole_backward", 2048, 64, "static", "bfloat16"): Entry(
    Whole(1, 4, 1, 256, 4, 256),
    "static, libtpu 0.0.42.1: 3607 bundles a head of dalle",
  ),
  Key("v5e", "whole", 256, 64, "none", "bfloat16"): Entry(
    Whole(1, 12, 1, 256, 12, 0),
    "static, libtpu 0.0.42.1: 223 bundles a head of vit",
  ),
  Key("v5e", "whole", 512, 64, "none", "bfloat16"): Entry(
    Whole(1, 16, 1, 512, 16, 0),
    "static, libtpu 0.0.42.1: 420 bundles a head of clip",
  ),
  Key("v5e", "whole", 1024, 72, "none", "bfloat16"): Entry(
    Whole(1, 16, 1, 1024, 16, 0),
    "static, libtpu 0.0.42.1: 1982 bundles a head of so400m",
  ),
  Key("v5e", "whole", 2048, 64, "none", "bfloat16"): Entry(
    Whole(1, 4, 1, 512, 4, 0),
    "static, libtpu 0.0.42.1: 7842 bundles a head of whisper",
  ),
  Key("v5e", "whole", 2048, 64, "static", "bfloat16"): Entry(
    Whole(1, 8, 1, 256, 8, 0),
    "static, libtpu 0.0.42.1: 3435 bundles a head of dalle",
  ),
  Key("v5e", "whole_backward", 256, 64, "none", "bfloat16"): Entry(
    Whole(1, 12, 1, 256, 12, 0),
    "static, libtpu 0.0.42.1: 412 bundles a head of vit",
  ),
  Key("v5e", "whole_backward", 512, 64, "none", "bfloat16"): Entry(
    Whole(1, 16, 1, 512, 16, 0),
    "static, libtpu 0.0.42.1: 836 bundles a head of clip",
  ),
  Key("v5e", "whole_backward", 1024, 72, "none", "bfloat16"): Entry(
    Whole(1, 16, 1, 256, 16, 0),
    "static, libtpu 0.0.42.1: 4064 bundles a head of so400m",
  ),
  Key("v5e", "whole_backward", 2048, 64, "none", "bfloat16"): Entry(
    Whole(1, 4, 1, 512, 4, 0),
    "static, libtpu 0.0.42.1: 14726 bundles a head of whisper",
  ),
  Key("v5e", "whole_backward", 2048, 64, "static", "bfloat16"): Entry(
    Whole(1, 8, 1, 256, 8, 0),
    "static, libtpu 0.0.42.1: 6308 bundles a head of dalle",
  ),
  Key("v5p", "whole", 256, 64, "none", "bfloat16"): Entry(
    Whole(1, 12, 1, 256, 12, 0),
    "static, libtpu 0.0.42.1: 233 bundles a head of vit",
  ),
  Key("v5p", "whole", 512, 64, "none", "bfloat16"): Entry(
    Whole(1, 16, 1, 512, 16, 0),
    "static, libtpu 0.0.42.1: 427 bundles a head of clip",
  ),
  Key("v5p", "whole", 1024, 72, "none", "bfloat16"): Entry(
    Whole(1, 16, 1, 1024, 16, 0),
    "static, libtpu 0.0.42.1: 1997 bundles a head of so400m",
  ),
  Key("v5p", "whole", 2048, 64, "none", "bfloat16"): Entry(
    Whole(1, 4, 1, 512, 4, 0),
    "static, libtpu 0.0.42.1: 7957 bundles a head of whisper",
  ),
  Key("v5p", "whole", 2048, 64, "static", "bfloat16"): Entry(
    Whole(1, 8, 1, 256, 8, 0),
    "static, libtpu 0.0.42.1: 3450 bundles a head of dalle",
  ),
  Key("v5p", "whole_backward", 256, 64, "none", "bfloat16"): Entry(
    Whole(1, 12, 1, 256, 12, 0),
    "static, libtpu 0.0.42.1: 421 bundles a head of vit",
  ),
  Key("v5p", "whole_backward", 512, 64, "none", "bfloat16"): Entry(
    Whole(1, 16, 1, 512, 16, 0),
    "static, libtpu 0.0.42.1: 833 bundles a head of clip",
  ),
  Key("v5p", "whole_backward", 1024, 72, "none", "bfloat16"): Entry(
    Whole(1, 16, 1, 256, 16, 0),
    "static, libtpu 0.0.42.1: 4097 bundles a head of so400m",
  ),
  Key("v5p", "whole_backward", 2048, 64, "none", "bfloat16"): Entry(
    Whole(1, 4, 1, 512, 4, 0),
    "static, libtpu 0.0.42.1: 14926 bundles a head of whisper",
  ),
  Key("v5p", "whole_backward", 2048, 64, "static", "bfloat16"): Entry(
    Whole(1, 8, 1, 256, 8, 0),
    "static, libtpu 0.0.42.1: 6368 bundles a head of dalle",
  ),
  Key("v6e", "whole", 256, 64, "none", "bfloat16"): Entry(
    Whole(1, 12, 1, 256, 12, 0),
    "static, libtpu 0.0.42.1: 235 cycles a head of vit",
  ),
  Key("v6e", "whole", 512, 64, "none", "bfloat16"): Entry(
    Whole(1, 16, 1, 512, 16, 0),
    "static, libtpu 0.0.42.1: 303 cycles a head of clip",
  ),
  Key("v6e", "whole", 1024, 72, "none", "bfloat16"): Entry(
    Whole(1, 16, 1, 256, 16, 256),
    "static, libtpu 0.0.42.1: 1383 cycles a head of so400m",
  ),
  Key("v6e", "whole", 2048, 64, "none", "bfloat16"): Entry(
    Whole(1, 8, 1, 256, 8, 256),
    "static, libtpu 0.0.42.1: 5241 cycles a head of whisper",
  ),
  Key("v6e", "whole", 2048, 64, "static", "bfloat16"): Entry(
    Whole(1, 4, 1, 256, 4, 256),
    "static, libtpu 0.0.42.1: 2235 cycles a head of dalle",
  ),
  Key("v6e", "whole_backward", 256, 64, "none", "bfloat16"): Entry(
    Whole(1, 12, 1, 256, 12, 0),
    "static, libtpu 0.0.42.1: 278 cycles a head of vit",
  ),
  Key("v6e", "whole_backward", 512, 64, "none", "bfloat16"): Entry(
    Whole(1, 16, 1, 512, 16, 0),
    "static, libtpu 0.0.42.1: 641 cycles a head of clip",
  ),
  Key("v6e", "whole_backward", 1024, 72, "none", "bfloat16"): Entry(
    Whole(1, 16, 1, 256, 16, 256),
    "static, libtpu 0.0.42.1: 2181 cycles a head of so400m",
  ),
  Key("v6e", "whole_backward", 2048, 64, "none", "bfloat16"): Entry(
    Whole(1, 8, 1, 256, 8, 256),
    "static, libtpu 0.0.42.1: 7942 cycles a head of whisper",
  ),
  Key("v6e", "whole_backward", 2048, 64, "static", "bfloat16"): Entry(
    Whole(1, 4, 1, 256, 4, 256),
    "static, libtpu 0.0.42.1: 3964 cycles a head of dalle",
  ),
}
# to here.


def sharing(width: int) -> int:
  """Returns how many heads of a width fill whole tiles of lanes together."""
  return math.lcm(width, LANES) // width


def bucket(length: int) -> int:
  """Returns the bucket of a length: the next of 32, 64, 128, 256, ..."""
  return max(32, 1 << (length - 1).bit_length())


def lookup(key: Key) -> Entry | None:
  """Returns the entry of a key, or None: then a rule decides."""
  return TABLE.get(key)


def flash(key: Key, size: int | None = None) -> Flash:
  """Returns tiles for `tpu_flash`; size is what a static mask asks for."""
  entry = lookup(key)
  if entry is not None and isinstance(entry.tiles, Flash):
    return entry.tiles
  # What depends on the data is pruned by blocks, so they are smaller.
  size = min(size or 1024, 512 if key.mask == "data" else 1024)
  if key.head_dim > 128 or key.dtype != "bfloat16":
    size = min(size, 512)
  return Flash(size, size)


def whole(
  heads: tuple[int, int, int],
  lengths: tuple[int, int],
  widths: tuple[int, int],
  itemsize: int,
  bias: tuple[int, ...] | None,
  key: Key,
  packed: bool = False,
) -> Whole | None:
  """Returns tiles for `tpu_whole`, or None where a head does not fit.

  Args:
    heads: (B, K, G), rows, key heads and query heads of each.
    lengths: (T, S).
    widths: (H, H').
    itemsize: bytes of an element of q.
    bias: its shape [B|1 N|1 T|1 S|1], or None.
    key: for the table, of any of its kernels.
    packed: whether arrays are [B T N*H], so that heads share tiles of lanes.
  """
  B, K, G = heads
  T, S = lengths

  def one(kernel: str) -> Whole | None:
    """Returns the tiles of a pass, the table's or the rule's, cut to fit."""
    entry, wish = lookup(key._replace(kernel=kernel)), _wish(T, S)
    if key.chip in WIDE and S > 384:
      # Turns every 256 keys save 5 to 25 %; with 128 x 128 at once they cost 2.
      wish = dataclasses.replace(wish, rows=256, block_k=256)
    if entry is not None and isinstance(entry.tiles, Whole):
      # It was found at one length of its bucket; longer ones may want fewer
      # heads side by side: 16 of 512 take 1.17 of the cycles of 4.
      least = sharing(widths[0]) if packed else 1
      if entry.tiles.unroll <= max(wish.unroll, least):
        wish = entry.tiles
    chunk_rows = min(wish.rows, T)

    def lanes(n: int) -> int:
      return -(-n // LANES) * LANES

    # Backward, which is larger: p, dp, ds in float32 and in the inputs' dtype.
    chunk = min(chunk_rows, T) * lanes(S) * (12 + 2 * itemsize)
    wide = [w if packed else lanes(w) for w in widths]
    # Blocks come twice: q, its gradient and sums; the output and its gradient.
    per_query = 2 * T * ((2 * wide[0] + 2 * wide[1]) * itemsize + 8 * 4)
    per_key = 4 * S * (wide[0] + wide[1]) * itemsize
    sums = 4 * lanes(S) * (widths[0] + widths[1])
    if bias is not None:
      per_query += 4 * lanes(bias[2]) * lanes(bias[3]) * 4
    left = _VMEM - chunk - sums * min(wish.unroll, K)
    if left < per_query + per_key:
      return None

    def fit(n: int, each: int, most: int) -> int:
      most = max(1, min(most, left // each))
      return max(m for m in range(1, n + 1) if n % m == 0 and m <= most)

    if bias is not None and left < G * per_query + per_key:
      return None  # its gradient wants all query heads of a key head
    group = G if bias is not None else fit(G, per_query + per_key // G, 8)
    head = G * per_query + per_key
    kv_heads = batch = 1
    most = max(1, wish.batch * wish.kv_heads * wish.groups // G)
    if packed and G == 1:
      # Tiles of lanes lie side by side, so that which is known; loops are over
      # rows.
      share = sharing(widths[0])
      # The fewest heads there can be may take more than planned.
      if K % share or left + 3 * _VMEM // 4 < share * head:
        return None
      side = max(1, min(most, wish.unroll) // share)
      kv_heads = share * fit(K // share, share * head, side)
      batch = fit(B, head * kv_heads, max(1, most // kv_heads))
    elif group == G:
      kv_heads = fit(K, head, most)
      batch = fit(B, head * K, max(1, most // K)) if kv_heads == K else 1
    count = batch * kv_heads * group
    unroll = max(m for m in range(1, wish.unroll + 1) if count % m == 0)
    if packed and G == 1:
      unroll = max(unroll, kv_heads)
    return Whole(batch, kv_heads, group, chunk_rows, unroll, wish.block_k)

  forward, backward = one("whole"), one("whole_backward")
  if forward is None or backward is None:
    return None
  return dataclasses.replace(forward, backward=backward)


def _wish(T: int, S: int) -> Whole:
  """Returns what the rule asks for, had it heads and memory enough."""
  rows = T if T <= 768 else 512
  # Heads side by side fill what one alone would wait for, until their scores
  # spill: by the estimates 12 of 197 tokens take 0.63 of the cycles of 4.
  longest = max(T, S)
  most = ((320, 16), (384, 8))
  unroll = next((n for length, n in most if longest <= length), 4)
  # Work enough for a program, dozens of heads of 20, in whole rounds.
  rounds = min(32, 4 * 256 * 256 // (T * S)) // unroll
  return Whole(1, unroll * max(rounds, 1), 1, rows, unroll)
