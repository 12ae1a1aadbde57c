"""The rules of Whisper: names of the hub and OpenAI, and packs of CTranslate2."""

from collections.abc import Sequence
from typing import NamedTuple

from mmjax.weights import rename
from mmjax.weights.rename import Rule
from mmjax.weights.tables import hub

_QUERY, _KEY, _VALUE = "query", "key", "value"


class Names(NamedTuple):
  """How a library names the parts of Whisper.

  Attributes:
    blocks: the stack. norms: before self-attention, cross-attention, MLP.
    attention, cross: both of them. projections: theirs, the last one is out.
    mlp: both layers.
    audio_norm, text_norm: the last one. tokens: the table.
    positions: those of the encoder, and of the decoder.
  """

  blocks: str
  norms: tuple[str, str, str]
  attention: str
  cross: str
  projections: tuple[str, str, str, str]
  mlp: tuple[str, str]
  audio_norm: str
  text_norm: str
  tokens: str
  positions: str


HUB = Names(
  "layers",
  ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
  "self_attn",
  "encoder_attn",
  ("q_proj", "k_proj", "v_proj", "out_proj"),
  ("fc1", "fc2"),
  "layer_norm",
  "layer_norm",
  "embed_tokens",
  "embed_positions.weight",
)
OPENAI = Names(
  "blocks",
  ("attn_ln", "cross_attn_ln", "mlp_ln"),
  "attn",
  "cross_attn",
  ("query", "key", "value", "out"),
  ("mlp.0", "mlp.2"),
  "ln_post",
  "ln",
  "token_embedding",
  "positional_embedding",
)


def encoder(prefix: str, heads: int, names: Names = HUB) -> list[Rule]:
  """Returns the rules of the encoder, whose names begin with a prefix."""
  return [
    *_convolutions(prefix, "."),
    Rule("encoder/posemb", f"{prefix}{names.positions}"),
    *_blocks("encoder", prefix, heads, names),
    *hub.norm("encoder/norm", f"{prefix}{names.audio_norm}"),
  ]


def decoder(prefix: str, heads: int, names: Names = HUB) -> list[Rule]:
  """Returns the rules of the decoder, whose names begin with a prefix."""
  return [
    Rule("decoder/embedding/table", f"{prefix}{names.tokens}.weight"),
    Rule("decoder/posemb/table", f"{prefix}{names.positions}"),
    *_blocks("decoder", prefix, heads, names),
    *hub.norm("decoder/norm", f"{prefix}{names.text_norm}"),
  ]


def _convolutions(prefix: str, dot: str) -> list[Rule]:
  rules = []
  for conv in ("conv1", "conv2"):
    rules += [
      Rule(
        f"encoder/{conv}/kernel", f"{prefix}{conv}{dot}weight", rename.CONV1D
      ),
      Rule(f"encoder/{conv}/bias", f"{prefix}{conv}{dot}bias"),
    ]
  return rules


def _blocks(part: str, prefix: str, heads: int, names: Names) -> list[Rule]:
  ours, theirs = f"{part}/layers/blocks", f"{prefix}{names.blocks}.{{n}}."
  first, between, last = (f"{theirs}{norm}" for norm in names.norms)
  up, down = (f"{theirs}{layer}" for layer in names.mlp)
  rules = [
    *hub.norm(f"{ours}/norm1", first),
    *_attention(
      f"{ours}/attention", f"{theirs}{names.attention}", names, heads
    ),
    *hub.norm(f"{ours}/norm2", last),
    *hub.linear(f"{ours}/mlp/up", up),
    *hub.linear(f"{ours}/mlp/down", down),
  ]
  if part == "decoder":
    rules += [
      *hub.norm(f"{ours}/norm_cross", between),
      *_attention(f"{ours}/cross", f"{theirs}{names.cross}", names, heads),
    ]
  return rules


def _attention(ours: str, theirs: str, names: Names, heads: int) -> list[Rule]:
  """Four projections, of which that to keys has no bias."""
  op = rename.to_heads(heads)
  *qkv, out = names.projections
  rules = []
  for name, part in zip((_QUERY, _KEY, _VALUE), qkv, strict=True):
    rules.append(Rule(f"{ours}/{name}/kernel", f"{theirs}.{part}.weight", op))
    if name != _KEY:
      rules.append(Rule(f"{ours}/{name}/bias", f"{theirs}.{part}.bias", op))
  return [
    *rules,
    Rule(
      f"{ours}/out/kernel", f"{theirs}.{out}.weight", rename.from_heads(heads)
    ),
    Rule(f"{ours}/out/bias", f"{theirs}.{out}.bias"),
  ]


def packed(width: int, heads: int, decoder_heads: int) -> list[Rule]:
  """Returns the rules of CTranslate2's arrays."""
  table = "position_encodings/encodings"
  rules = [
    *_convolutions("encoder/", "/"),
    Rule("encoder/posemb", f"encoder/{table}"),
    Rule("decoder/posemb/table", f"decoder/{table}"),
    Rule("decoder/embedding/table", "decoder/embeddings/weight"),
  ]
  for part, count in (("encoder", heads), ("decoder", decoder_heads)):
    ours, block = f"{part}/layers/blocks/", f"{part}/layer_{{n}}/"
    rules += [
      *_norm(f"{part}/norm", f"{part}/layer_norm"),
      *_norm(f"{ours}norm1", f"{block}self_attention/layer_norm"),
      *_norm(f"{ours}norm2", f"{block}ffn/layer_norm"),
      *_linear(f"{ours}mlp/up", f"{block}ffn/linear_0"),
      *_linear(f"{ours}mlp/down", f"{block}ffn/linear_1"),
      *_packed(
        f"{ours}attention", f"{block}self_attention", width, count, (3,)
      ),
    ]
    if part == "decoder":
      rules += [
        *_norm(f"{ours}norm_cross", f"{block}attention/layer_norm"),
        *_packed(f"{ours}cross", f"{block}attention", width, count, (1, 2)),
      ]
  return rules


def _norm(ours: str, theirs: str) -> list[Rule]:
  return [
    Rule(f"{ours}/scale", f"{theirs}/gamma"),
    Rule(f"{ours}/bias", f"{theirs}/beta"),
  ]


def _linear(ours: str, theirs: str) -> list[Rule]:
  return [
    Rule(f"{ours}/kernel", f"{theirs}/weight", rename.LINEAR),
    Rule(f"{ours}/bias", f"{theirs}/bias"),
  ]


def _packed(
  ours: str, theirs: str, width: int, heads: int, packs: Sequence[int]
) -> list[Rule]:
  """Query, key and value, side by side in linear_0, linear_1, ...

  The key's bias is 0; whatever it was, it would change no attention weight,
  for it adds the same to all scores of a query.
  """
  op, rules, names = rename.to_heads(heads), [], [_QUERY, _KEY, _VALUE]
  for number, size in enumerate(packs):
    for place in range(size):
      name = names.pop(0)
      piece = (place * width, (place + 1) * width, 0)
      for leaf, tensor in (("kernel", "weight"), ("bias", "bias")):
        if name == _KEY and leaf == "bias":
          continue
        named = f"{theirs}/linear_{number}/{tensor}"
        rules.append(Rule(f"{ours}/{name}/{leaf}", named, op, piece))
  last = f"{theirs}/linear_{len(packs)}"
  return [
    *rules,
    Rule(f"{ours}/out/kernel", f"{last}/weight", rename.from_heads(heads)),
    Rule(f"{ours}/out/bias", f"{last}/bias"),
  ]
